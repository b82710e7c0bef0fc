package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// keptCommand is a line for the shell, and what it is for.
type keptCommand struct{ what, line string }

// keptCommands use the hosts that stay. The last one removes them.
func (d *demo) keptCommands() []keptCommand {
	first, other := d.daemons[0], d.lab.Hosts()[1]
	commands := []keptCommand{{"a host", fmt.Sprintf("ip netns exec %s bash", first.Host.Name)}}
	if d.docker {
		commands = append(commands, d.keptDocker())
	} else {
		commands = append(commands, keptCommand{"a container", fmt.Sprintf("ip netns exec %s ping -c 3 %s", first.Host.Container.Name, other.Container.Address)})
	}
	if operator := filepath.Join(filepath.Dir(d.binary), "uvxlan"); isFile(operator) {
		for _, name := range []string{"status", "peers", "leases"} {
			commands = append(commands, keptCommand{name, fmt.Sprintf("%s %s -control-socket %s", shellWord(absolute(operator)), name, first.ControlSocket())})
		}
	}
	commands = append(commands,
		keptCommand{"a log", "tail " + first.LogFile()},
		keptCommand{"remove it all", d.cleanupLine()},
	)
	if os.Getenv("SUDO_UID") != "" {
		for i := range commands {
			commands[i].line = "sudo " + commands[i].line
		}
	}
	return commands
}

// cleanupLine removes what stays, by this program if it outlives this run, which one
// that `go run` has built doesn't.
func (d *demo) cleanupLine() string {
	self := d.self
	if self == "" {
		var err error
		if self, err = os.Executable(); err != nil || strings.Contains(self, "/go-build") {
			return "go -C " + shellWord(absolute(".")) + " run uvxlan/bench/demo -cleanup"
		}
	}
	return shellWord(self) + " -cleanup"
}

// tellKept says how to use the hosts that stay.
func (d *demo) tellKept() {
	d.say.title("the hosts stay up; from any directory:")
	for _, c := range d.keptCommands() {
		d.say.line("%-14s %s", c.what, c.line)
	}
}

func isFile(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.Mode().IsRegular()
}

// absolute is the path from any directory.
func absolute(path string) string {
	if abs, err := filepath.Abs(path); err == nil {
		return abs
	}
	return path
}

// shellWord quotes what the shell would take apart.
func shellWord(s string) string {
	if strings.ContainsAny(s, " \t\n'\"\\$&;()<>|*?[]#~`!{}") {
		return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
	}
	return s
}

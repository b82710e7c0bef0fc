package report

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Machine is what the figures depend on.
type Machine struct {
	Time   time.Time `json:"time"`
	Kernel string    `json:"kernel"`
	CPU    string    `json:"cpu"`
	CPUs   int       `json:"cpus"`
	// TCP is the congestion control, which the hosts of a lab have from here.
	TCP      string            `json:"tcp_congestion_control"`
	Commit   string            `json:"commit"`
	Versions map[string]string `json:"versions"`
}

// tools are what versions are asked of, and how.
var tools = [][]string{
	{"iperf3", "--version"},
	{"wireguard-go", "--version"},
	{"flanneld", "--version"},
}

// ThisMachine finds out what it can; what it can't is "unknown".
func ThisMachine(ctx context.Context) Machine {
	m := Machine{
		Time: time.Now(), Kernel: kernel(), CPU: cpu(), CPUs: runtime.NumCPU(), TCP: congestionControl(),
		Commit: commit(ctx), Versions: map[string]string{"go": runtime.Version()},
	}
	for _, t := range tools {
		if _, err := exec.LookPath(t[0]); err == nil {
			m.Versions[t[0]] = firstLine(ctx, t...)
		}
	}
	return m
}

const unknown = "unknown"

func kernel() string {
	var u unix.Utsname
	if unix.Uname(&u) != nil {
		return unknown
	}
	return unix.ByteSliceToString(u.Release[:]) + " " + unix.ByteSliceToString(u.Machine[:])
}

func congestionControl() string {
	text, err := os.ReadFile("/proc/sys/net/ipv4/tcp_congestion_control")
	if err != nil {
		return unknown
	}
	return strings.TrimSpace(string(text))
}

func cpu() string {
	text, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return unknown
	}
	for line := range strings.Lines(string(text)) {
		if name, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(name) == "model name" {
			return strings.TrimSpace(value)
		}
	}
	return unknown
}

// commit is that of the working directory, marked if files differ from it.
func commit(ctx context.Context) string {
	return firstLine(ctx, "git", "describe", "--always", "--dirty", "--exclude=*")
}

func firstLine(ctx context.Context, command ...string) string {
	out, err := exec.CommandContext(ctx, command[0], command[1:]...).CombinedOutput()
	line, _, _ := strings.Cut(strings.TrimSpace(string(out)), "\n")
	if err != nil || line == "" {
		return unknown
	}
	return line
}

// String is the machine in a line.
func (m Machine) String() string {
	return fmt.Sprintf("%s, %d CPUs, Linux %s, TCP %s, commit %s", m.CPU, m.CPUs, m.Kernel, m.TCP, m.Commit)
}

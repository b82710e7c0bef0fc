package completion

import (
	"bytes"
	"flag"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// programs are one of each kind.
func programs() map[string]Program {
	fs := flag.NewFlagSet("", flag.ContinueOnError)
	fs.String("subnet-file", "", "`file` of it: it's [one]")
	fs.String("offload", "", "`auto`, on or off")
	fs.Bool("ip-masq", false, "masquerade")
	fs.Int("port", 0, "`number` of it")
	choices := map[string][]string{"offload": {"auto", "on", "off"}}
	return map[string]Program{
		"single": {Name: "one", Commands: []Command{{Flags: fs, Choices: choices}}},
		"commands": {Name: "many", Commands: []Command{
			{Name: "do", Summary: "do: it", Words: []string{"this", "that"}, Files: true, Flags: fs, Choices: choices},
			{Name: "don't", Summary: "leave it", Flags: flag.NewFlagSet("", flag.ContinueOnError)},
		}},
	}
}

// The scripts are what each shell takes, where it is there.
func TestSyntax(t *testing.T) {
	for name, p := range programs() {
		if name == "commands" {
			p.Commands[1].Name = "leave"
		}
		for _, shell := range Shells() {
			t.Run(name+"/"+shell, func(t *testing.T) {
				path := filepath.Join(t.TempDir(), "script")
				f, err := os.Create(path)
				if err != nil {
					t.Fatal(err)
				}
				defer f.Close()
				if err := p.Write(f, shell); err != nil {
					t.Fatal(err)
				}
				if _, err := exec.LookPath(shell); err != nil {
					t.Skip(err)
				}
				if out, err := exec.CommandContext(t.Context(), shell, "-n", path).CombinedOutput(); err != nil {
					t.Errorf("%v: %s", err, out)
				}
			})
		}
	}
	if err := programs()["single"].Write(&bytes.Buffer{}, "tcsh"); err == nil {
		t.Error("there is a script for tcsh")
	}
}

// A program without commands has its flags and their values completed.
func TestSingleProgram(t *testing.T) {
	p := programs()["single"]
	var zsh, fish bytes.Buffer
	for shell, out := range map[string]*bytes.Buffer{"zsh": &zsh, "fish": &fish} {
		if err := p.Write(out, shell); err != nil {
			t.Fatal(err)
		}
	}
	for _, want := range []string{"'-offload[auto, on or off]:auto:(auto on off)'", `'-subnet-file[file of it\: it'\''s \[one\]]:file:_files'`, "'-ip-masq[masquerade]'"} {
		if !strings.Contains(zsh.String(), want) {
			t.Errorf("no %s in\n%s", want, &zsh)
		}
	}
	for _, want := range []string{"complete -c one -o offload -d 'auto, on or off' -x -a 'auto on off'\n", "complete -c one -o ip-masq -d 'masquerade'\n", "-r -F\n"} {
		if !strings.Contains(fish.String(), want) {
			t.Errorf("no %s in\n%s", want, &fish)
		}
	}
	if _, err := exec.LookPath("bash"); err != nil {
		t.Skip(err)
	}
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "subnet.env"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ words, want string }{
		{"-", "-ip-masq -offload -port -subnet-file"},
		{"--off", ""},
		{"-o", "-offload"},
		{"-offload o", "off on"},
		{"--offload a", "auto"},
		{"-subnet-file s", "subnet.env"},
		{"-port 1", ""},
		{"-ip-masq -p", "-port"},
	} {
		var script bytes.Buffer
		if err := p.Write(&script, "bash"); err != nil {
			t.Fatal(err)
		}
		script.WriteString(`
COMP_WORDS=(one "$@") COMP_CWORD=$#
_one
[ ${#COMPREPLY[@]} -eq 0 ] || printf '%s\n' "${COMPREPLY[@]}"
`)
		cmd := exec.CommandContext(t.Context(), "bash", append([]string{"--norc", "-s", "--"}, strings.Fields(c.words)...)...)
		cmd.Dir, cmd.Stdin = dir, &script
		out, err := cmd.CombinedOutput()
		offered := strings.Fields(string(out))
		slices.Sort(offered)
		if got := strings.Join(offered, " "); err != nil || got != c.want {
			t.Errorf("%q is completed by %q, %v, want %q", c.words, got, err, c.want)
		}
	}
}

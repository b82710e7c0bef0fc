package tcprog

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// The committed objects are what their source gives, where it can be compiled by the
// compiler that they were made by: another version makes other code.
func TestGenerated(t *testing.T) {
	for _, tool := range []string{"clang", "llvm-strip"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("%s isn't installed", tool)
		}
	}
	if _, err := os.Stat("/usr/include/bpf/bpf_helpers.h"); err != nil {
		t.Skipf("libbpf's headers aren't installed: %v", err)
	}
	recorded, err := os.ReadFile("clang.version")
	must(t, err)
	installed, err := exec.CommandContext(t.Context(), "clang", "-dumpversion").Output()
	must(t, err)
	major, _, _ := strings.Cut(string(installed), ".")
	if made := strings.TrimSpace(string(recorded)); major != made {
		t.Skipf("the objects were made by clang %s, installed is %s", made, major)
	}
	dir := t.TempDir()
	command := directive(t, "bpf2go")
	for i, word := range command {
		if word == "bpf2go" {
			command = append(command[:i+1:i+1], append([]string{"-output-dir", dir}, command[i+1:]...)...)
			break
		}
	}
	cmd := exec.CommandContext(t.Context(), command[0], command[1:]...)
	cmd.Env = append(os.Environ(), "GOPACKAGE=tcprog")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", cmd, err, out)
	}
	made, err := filepath.Glob(filepath.Join(dir, "*"))
	must(t, err)
	if len(made) != 4 {
		t.Errorf("made %v, want two objects and their Go files", made)
	}
	for _, name := range made {
		want, err := os.ReadFile(name)
		must(t, err)
		got, err := os.ReadFile(filepath.Base(name))
		must(t, err)
		if !bytes.Equal(got, want) {
			t.Errorf("%s isn't what its source gives: run make generate", filepath.Base(name))
		}
	}
}

// directive is the command of the package's go:generate line that has a word.
func directive(t *testing.T, word string) []string {
	t.Helper()
	source, err := os.ReadFile("doc.go")
	must(t, err)
	for line := range strings.Lines(string(source)) {
		if command, ok := strings.CutPrefix(line, "//go:generate "); ok && strings.Contains(command, word) {
			return strings.Fields(command)
		}
	}
	t.Fatalf("no go:generate line has %s", word)
	return nil
}

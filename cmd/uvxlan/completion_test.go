package main

import (
	"bytes"
	"errors"
	"flag"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// complete is what bash offers for the last of the words.
func complete(t *testing.T, dir string, words ...string) []string {
	t.Helper()
	var script bytes.Buffer
	if err := program().Write(&script, "bash"); err != nil {
		t.Fatal(err)
	}
	// As bash itself does: the function that complete -F named, with the words.
	script.WriteString(`
f=$(complete -p uvxlan | sed 's/.*-F \([^ ]*\).*/\1/')
COMP_WORDS=("$@") COMP_CWORD=$(($# - 1))
$f uvxlan "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD-1]}"
[ ${#COMPREPLY[@]} -eq 0 ] || printf '%s\n' "${COMPREPLY[@]}"
`)
	cmd := exec.CommandContext(t.Context(), "bash", append([]string{"--norc", "-s", "--", "uvxlan"}, words...)...)
	cmd.Dir, cmd.Stdin = dir, &script
	var said bytes.Buffer
	cmd.Stderr = &said
	out, err := cmd.Output()
	if err != nil || said.Len() > 0 {
		t.Fatalf("bash: %v: %s", err, said.String())
	}
	offered := strings.FieldsFunc(string(out), func(r rune) bool { return r == '\n' })
	slices.Sort(offered)
	return offered
}

func TestBashCompletion(t *testing.T) {
	if _, err := exec.LookPath("bash"); err != nil {
		t.Skip(err)
	}
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "my config.json"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		words []string
		want  string
	}{
		{[]string{"st"}, "status"},
		{[]string{"c"}, "cleanup completion config"},
		{[]string{"config", ""}, "check get set"},
		{[]string{"leases", "r"}, "release reserve"},
		{[]string{"config", "s"}, "set"},
		{[]string{"config", "set", "m"}, "my config.json"},
		{[]string{"completion", ""}, "bash fish zsh"},
		{[]string{"status", "-"}, "-alive -control-socket -o -ready"},
		{[]string{"status", ""}, ""},
		{[]string{"top", "-o", ""}, "json table"},
		{[]string{"top", "--o", "j"}, "json"},
		{[]string{"top", "-n", ""}, ""},
		{[]string{"top", "-control-socket", "my"}, "my config.json"},
		{[]string{"top", "-n"}, "-n"},
		{[]string{"top", "-o", "json", "-i"}, "-interval"},
		{[]string{"nothing", ""}, ""},
		{[]string{"", ""}, ""},
	} {
		if got := strings.Join(complete(t, dir, c.words...), " "); got != c.want {
			t.Errorf("%q is completed by %q, want %q", c.words, got, c.want)
		}
	}
}

// Every flag that a command has is offered, by each shell.
func TestCompletionsHaveEveryFlag(t *testing.T) {
	var zsh, fish bytes.Buffer
	if err := errors.Join(program().Write(&zsh, "zsh"), program().Write(&fish, "fish")); err != nil {
		t.Fatal(err)
	}
	for _, c := range commands() {
		fs, _ := c.flags()
		fs.VisitAll(func(f *flag.Flag) {
			if !slices.Contains(complete(t, "", c.name, "-"+f.Name), "-"+f.Name) {
				t.Errorf("bash offers no -%s for %s", f.Name, c.name)
			}
			if !strings.Contains(zsh.String(), "'-"+f.Name+"[") || !strings.Contains(fish.String(), "from "+c.name+"' -o "+f.Name+" -d") {
				t.Errorf("zsh or fish offers no -%s for %s", f.Name, c.name)
			}
		})
	}
}

package main

import (
	"errors"
	"fmt"
	"io"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"uvxlan/tunnel/netnstest"
)

// Each command that -keep prints works as it stands, from another directory.
func TestIntegrationKeptCommandsWork(t *testing.T) {
	netnstest.RequireRoot(t)
	dir := t.TempDir()
	if out, err := exec.CommandContext(t.Context(), "go", "build", "-o", dir+"/", "uvxlan/bench/demo", "uvxlan/cmd/uvxland", "uvxlan/cmd/uvxlan").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	paste := func(c keptCommand) error {
		cmd := exec.CommandContext(t.Context(), "sh", "-c", c.line)
		cmd.Dir = "/"
		out, err := cmd.CombinedOutput()
		t.Logf("$ %s\n%s", c.line, out)
		if err != nil {
			return fmt.Errorf("%s: %s: %w: %s", c.what, c.line, err, out)
		}
		return nil
	}
	var last keptCommand
	count := 0
	_, err := show(t.Context(), options{
		binary: filepath.Join(dir, "uvxland"), self: filepath.Join(dir, "demo"), keep: true, direct: true, duration: time.Second, out: io.Discard,
		whileKept: func(commands []keptCommand) error {
			var errs []error
			for _, c := range commands[:len(commands)-1] {
				errs = append(errs, paste(c))
			}
			last, count = commands[len(commands)-1], len(commands)
			return errors.Join(errs...)
		},
	})
	if err != nil {
		t.Error(err)
	}
	if count != 7 {
		t.Errorf("%d commands, want 7", count)
	}
	if last.line == "" {
		last = keptCommand{"remove it all", filepath.Join(dir, "demo") + " -cleanup"}
	}
	if err := paste(last); err != nil {
		t.Error(err)
	}
}

func TestShellWord(t *testing.T) {
	for _, path := range []string{"/usr/bin/uvxlan", "/home/a b/it's/$HOME/uvxlan"} {
		out, err := exec.CommandContext(t.Context(), "sh", "-c", "printf %s "+shellWord(path)).Output()
		if err != nil || string(out) != path {
			t.Errorf("the shell reads %q of %q, %v", out, path, err)
		}
	}
}

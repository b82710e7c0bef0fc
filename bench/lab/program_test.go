package lab_test

import (
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"uvxlan/bench/lab"
)

// Two programs share the libraries that they are linked with.
func TestProgramsHaveNoFileTwice(t *testing.T) {
	files, err := lab.Programs(t.Context(), "ls", "cat")
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{}
	for _, f := range files {
		if seen[f.Name] {
			t.Errorf("%s is there twice", f.Name)
		}
		seen[f.Name] = true
	}
	if !seen["bin/ls"] || !seen["bin/cat"] {
		t.Errorf("programs are missing: %v", files)
	}
}

// TestProgramsRunElsewhere runs a program in a root that has nothing else.
func TestProgramsRunElsewhere(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("chroot needs root")
	}
	files, err := lab.Programs(t.Context(), "true")
	if err != nil {
		t.Fatal(err)
	}
	root := t.TempDir()
	for _, f := range files {
		if err := copyFile(filepath.Join(root, f.Name), f.Path); err != nil {
			t.Fatal(err)
		}
	}
	if out, err := exec.CommandContext(t.Context(), "chroot", root, "/bin/true").CombinedOutput(); err != nil {
		t.Errorf("it doesn't run: %v: %s", err, out)
	}
}

func copyFile(to, from string) error {
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		return err
	}
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_CREATE|os.O_WRONLY, 0o755)
	if err != nil {
		return err
	}
	if _, err := io.Copy(out, in); err != nil {
		return err
	}
	return out.Close()
}

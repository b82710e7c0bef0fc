package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// CopyPrograms copies programs of this machine into the directory root, so that
// they run with it as their root: each to /bin/NAME there, and the shared
// libraries that it is linked with to where they are here. The names are looked
// for in PATH.
func CopyPrograms(ctx context.Context, root string, names ...string) error {
	for _, name := range names {
		path, err := exec.LookPath(name)
		if err != nil {
			return fmt.Errorf("find a program to copy: %w", err)
		}
		err = copyFile(filepath.Join(root, "bin", name), path)
		// What it prints of a static program has no paths.
		out, _ := exec.CommandContext(ctx, "ldd", path).Output()
		for word := range strings.FieldsSeq(string(out)) {
			if filepath.IsAbs(word) {
				err = errors.Join(err, copyFile(filepath.Join(root, word), word))
			}
		}
		if err != nil {
			return fmt.Errorf("copy %s: %w", name, err)
		}
	}
	return nil
}

func copyFile(to, from string) error {
	content, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	return errors.Join(os.MkdirAll(filepath.Dir(to), 0o755), os.WriteFile(to, content, 0o755))
}

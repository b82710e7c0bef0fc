// Package atomicfile replaces files so that readers see the old one or the new
// one, whole.
package atomicfile

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// Unfinished is the file that [Write] fills before it puts it in path's place. A
// writer that was killed leaves it; the next one takes it over.
func Unfinished(path string) string {
	return filepath.Join(filepath.Dir(path), "."+filepath.Base(path)+".new")
}

// Write replaces the file at path, or makes it, readable by all. It makes the
// directory if need be. Of several writers each waits for the one before.
func Write(path string, text []byte) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	tmp, err := claim(Unfinished(path))
	if err != nil {
		return err
	}
	defer tmp.Close()
	_, err = tmp.Write(text)
	err = errors.Join(err, tmp.Chmod(0o644), tmp.Sync())
	if err == nil {
		err = os.Rename(tmp.Name(), path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(tmp.Name()))
	}
	return nil
}

// Try tells whether [Write] could make a file at path, in a directory that is
// there, and makes none.
func Try(path string) error {
	tmp, err := claim(Unfinished(path))
	if err != nil {
		return err
	}
	return errors.Join(os.Remove(tmp.Name()), tmp.Close())
}

// claim opens the file, empty, for this writer alone. The lock ends with the
// process.
func claim(name string) (*os.File, error) {
	for {
		f, err := os.OpenFile(name, os.O_CREATE|os.O_WRONLY|unix.O_NOFOLLOW, 0o644)
		if err != nil {
			return nil, err
		}
		if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil {
			return nil, errors.Join(fmt.Errorf("lock %s: %w", name, err), f.Close())
		}
		if IsAt(f, name) {
			return f, f.Truncate(0)
		}
		// The writer before has put it in place.
		if err := f.Close(); err != nil {
			return nil, err
		}
	}
}

// IsAt tells whether an open file is still the one of that name.
func IsAt(f *os.File, name string) bool {
	opened, err := f.Stat()
	if err != nil {
		return false
	}
	there, err := os.Lstat(name)
	return err == nil && os.SameFile(opened, there)
}

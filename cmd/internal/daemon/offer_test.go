package daemon

import (
	"net"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"uvxlan/cmd/internal/handover"
)

// A control socket is taken over where it is the file at this daemon's path, not where
// the path is another container's.
func TestKeepControlSocket(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "uvxlan.sock")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	file := fileID(path)
	for _, c := range []struct {
		name, path string
		change     func() error
		kept       bool
	}{
		{"the same", path, func() error { return nil }, true},
		{"another path", path + "2", func() error { return nil }, false},
		{"none", "", func() error { return nil }, false},
		{"the file is gone", path, func() error { return os.Rename(path, path+"3") }, false},
		{"another file", path, func() error { return os.WriteFile(path, nil, 0o600) }, false},
	} {
		if err := c.change(); err != nil {
			t.Fatal(err)
		}
		fd, err := unix.Dup(0)
		if err != nil {
			t.Fatal(err)
		}
		s := handover.State{Health: handover.None, Control: fd, ControlSocket: path, ControlFile: file}
		if err := keepEndpoints(Options{ControlSocket: c.path}, &s); err != nil {
			t.Errorf("%s: %v", c.name, err)
		}
		if kept := s.Control != handover.None; kept != c.kept {
			t.Errorf("%s: kept is %t", c.name, kept)
		}
		if s.Control != handover.None {
			unix.Close(fd)
		}
	}
}

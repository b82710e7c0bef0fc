package device

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// Whatever is in the driver's place, the error is that there is none, and says what is
// there.
func TestOpenDriverThatIsNone(t *testing.T) {
	dir := t.TempDir()
	path := func(name string) string { return filepath.Join(dir, name) }
	if err := errors.Join(os.WriteFile(path("file"), nil, 0o600), os.Mkdir(path("directory"), 0o700), unix.Mkfifo(path("pipe"), 0o600)); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{
		"file": "a plain file", "directory": "a directory", "pipe": "no character device", "nothing": "no such file",
	} {
		fd, err := openDriver(path(name))
		if err == nil {
			unix.Close(fd)
		}
		if !errors.Is(err, ErrNoTUN) || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %s", name, err, want)
		}
	}
}

func TestAttachToAnotherDevice(t *testing.T) {
	f, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := attachQueue(int(f.Fd()), "tun0", unix.IFF_TUN); !errors.Is(err, ErrNoTUN) || !strings.Contains(err.Error(), "another device") {
		t.Error(err)
	}
}

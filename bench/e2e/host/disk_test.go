package host_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"uvxlan/bench/e2e"
)

// A full state directory doesn't keep the containers from their network, and what
// couldn't be noted in it is noted as soon as there is room.
func TestIntegrationStateDirFull(t *testing.T) {
	w := e2e.NewWorld(t, "kb21", "kb22")
	w.Configure(e2e.HybridConfig)
	kb21 := w.Host("kb21")
	e2e.StrictReversePath(t, kb21)
	w.Start("kb22")
	d := w.Start("kb21")[0]
	e2e.End(t, unix.SIGTERM, d)
	if err := unix.Mount("none", d.StateDir(), "tmpfs", 0, "size=64k"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(d.StateDir(), unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	fill := filepath.Join(d.StateDir(), "fill")
	if err := os.WriteFile(fill, make([]byte, 1<<20), 0o600); !errors.Is(err, unix.ENOSPC) {
		t.Fatalf("the disk doesn't become full: %v", err)
	}
	begin := time.Now()
	d = w.Start("kb21")[0]
	w.Mesh("kb21", "kb22")
	e2e.AwaitLine(t, d, begin, "no space left on device", "make room")
	if m := e2e.ReadManifest(t, d.StateDir()); m.Device != "" {
		t.Errorf("the manifest is there: %+v", m)
	}
	if err := os.Remove(fill); err != nil {
		t.Fatal(err)
	}
	var m e2e.Manifest
	for end := time.Now().Add(e2e.Patience); (m.Device == "" || len(m.Sysctls) == 0) && time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		m = e2e.ReadManifest(t, d.StateDir())
	}
	if m.Device != "flannel.1" || len(m.Sysctls) != 1 || m.SubnetFile != d.SubnetFile() {
		t.Errorf("the manifest is %+v", m)
	}
}

// A manifest that makes no sense, as a crash of the host leaves it, is set aside.
func TestIntegrationStateDamaged(t *testing.T) {
	w := e2e.NewWorld(t, "kb21", "kb22")
	d := w.Start("kb21", "kb22")[0]
	e2e.End(t, unix.SIGTERM, d)
	path := e2e.ManifestPath(d.StateDir())
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	begin := time.Now()
	d = w.Start("kb21")[0]
	if line := e2e.AwaitLine(t, d, begin, "isn't known", path); !strings.Contains(line, "level=WARN") {
		t.Errorf("it says %s", line)
	}
	w.Mesh("kb21", "kb22")
	if m := e2e.ReadManifest(t, d.StateDir()); m.Device != "flannel.1" {
		t.Errorf("the manifest is %+v", m)
	}
	if _, err := os.Stat(path + ".damaged"); err != nil {
		t.Error(err)
	}
}

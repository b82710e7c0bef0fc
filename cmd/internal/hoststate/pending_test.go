package hoststate

import (
	"errors"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"uvxlan/cmd/internal/atomicfile"
)

// fullDir is a state directory in which nothing can be written between block and
// free.
func fullDir(t *testing.T) (dir string, block, free func()) {
	t.Helper()
	dir = t.TempDir()
	inTheWay := atomicfile.Unfinished(Path(dir))
	do := func(f func(string) error) func() {
		return func() {
			if err := f(inTheWay); err != nil {
				t.Fatal(err)
			}
		}
	}
	return dir, do(func(p string) error { return os.Mkdir(p, 0o700) }), do(os.Remove)
}

// A manifest that can't be written is in force all the same. It keeps what was
// written before, and it is written as soon as possible.
func TestUnwritten(t *testing.T) {
	dir, block, free := fullDir(t)
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(Update(dir, func(s *State) { s.Device = "flannel.1" }))
	block()
	must(Update(dir, func(s *State) { s.Record(Sysctl{"ipv4/conf/eth0/rp_filter", "1", "2"}) }))
	must(Update(dir, func(s *State) { s.SubnetFile = "/run/flannel/subnet.env" }))
	if err := Unwritten(dir); !errors.Is(err, ErrDir) {
		t.Errorf("it wasn't written: %v", err)
	}
	if err := Retry(dir); !errors.Is(err, ErrDir) {
		t.Errorf("a retry: %v", err)
	}
	complete := func(s State, err error) {
		t.Helper()
		if err != nil || s.Device != "flannel.1" || len(s.Sysctls) != 1 || s.SubnetFile == "" {
			t.Errorf("the manifest is %+v, %v", s, err)
		}
	}
	complete(Load(dir))
	onDisk, err := read(dir)
	if err != nil || onDisk.Device != "flannel.1" || onDisk.SubnetFile != "" {
		t.Errorf("on disk it is %+v, %v", onDisk, err)
	}
	handed := Pending(dir)
	free()
	must(Retry(dir))
	complete(read(dir))
	if Pending(dir) != nil || Unwritten(dir) != nil {
		t.Error("it isn't written yet")
	}
	other := t.TempDir()
	Resume(other, handed)
	complete(read(other))
}

// A manifest that makes no sense is set aside.
func TestSetAside(t *testing.T) {
	for _, text := range []string{"", `{"device": `} {
		dir := t.TempDir()
		if err := SetAside(dir); err != nil {
			t.Errorf("without a manifest: %v", err)
		}
		if err := os.WriteFile(Path(dir), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := SetAside(dir); !errors.Is(err, ErrDamaged) || !strings.Contains(err.Error(), Path(dir)) {
			t.Errorf("%q: %v", text, err)
		}
		if aside, err := os.ReadFile(Damaged(dir)); err != nil || string(aside) != text {
			t.Errorf("%q: set aside is %q, %v", text, aside, err)
		}
		if s, err := Load(dir); err != nil || s.Device != "" || SetAside(dir) != nil {
			t.Errorf("%q: the manifest is %+v, %v", text, s, err)
		}
	}
}

// Two processes may change the manifest at once, and both changes stay.
func TestUpdateBesideAnother(t *testing.T) {
	dir := t.TempDir()
	other, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	if err := unix.Flock(int(other.Fd()), unix.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- Update(dir, func(s *State) { s.Device = "flannel.1" }) }()
	// The other process reads, changes and writes.
	for range 20 {
		if len(done) > 0 {
			t.Fatal("it doesn't wait")
		}
		time.Sleep(time.Millisecond)
	}
	if err := (State{CNIConfig: "10-uvxlan.conflist"}).Save(dir); err != nil {
		t.Fatal(err)
	}
	if err := unix.Flock(int(other.Fd()), unix.LOCK_UN); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if s, err := Load(dir); err != nil || s.Device != "flannel.1" || s.CNIConfig == "" {
		t.Errorf("it became %+v, %v", s, err)
	}
}

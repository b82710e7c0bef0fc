package hoststate

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
)

func TestAcquire(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "lib", "uvxlan")
	first, err := Acquire(dir)
	if err != nil {
		t.Fatal(err)
	}
	_, err = Acquire(dir)
	if !errors.Is(err, ErrRunning) || !strings.Contains(err.Error(), "pid "+strconv.Itoa(os.Getpid())) {
		t.Fatalf("the second got %v", err)
	}
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	if text, err := os.ReadFile(LockPath(dir)); err != nil || len(text) != 0 {
		t.Errorf("after Close the file says %q, %v", text, err)
	}
	again, err := Acquire(dir)
	if err != nil {
		t.Fatal(err)
	}
	// Whoever opened the file before it was removed must not get its lock.
	if err := errors.Join(again.Remove(), again.Close()); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(LockPath(dir)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the removed lock: %v", err)
	}
}

// The cleanup removes the lock file before it gives the lock up. That must not
// let two in, one with the old file and one with a new file.
func TestAcquireRemoved(t *testing.T) {
	dir := t.TempDir()
	var holders atomic.Int32
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for taken := 0; taken < 200; {
				l, err := Acquire(dir)
				if errors.Is(err, ErrRunning) {
					continue
				}
				if err != nil {
					t.Error(err)
					return
				}
				taken++
				if n := holders.Add(1); n != 1 {
					t.Errorf("%d hold the lock", n)
				}
				runtime.Gosched()
				holders.Add(-1)
				if err := errors.Join(l.Remove(), l.Close()); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
}

func TestAcquireErrors(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	held := t.TempDir()
	if err := os.Mkdir(LockPath(held), 0o700); err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{filepath.Join(file, "state"), held, "/proc/nothing/here"} {
		if _, err := Acquire(dir); !errors.Is(err, ErrDir) || !strings.Contains(err.Error(), dir) && !strings.Contains(err.Error(), file) && !strings.Contains(err.Error(), "/proc") {
			t.Errorf("%s: %v", dir, err)
		}
	}
}

// A killed holder's lock lives on in a process that it had just started.
func TestAcquireInherited(t *testing.T) {
	dir := t.TempDir()
	held, err := Acquire(dir)
	if err != nil {
		t.Fatal(err)
	}
	dead := exec.CommandContext(t.Context(), "true")
	if err := dead.Run(); err != nil {
		t.Fatal(err)
	}
	if err := sign(held.file, dead.Process.Pid); err != nil {
		t.Fatal(err)
	}
	heir := exec.CommandContext(t.Context(), "sleep", "0.1")
	heir.ExtraFiles = []*os.File{held.file}
	if err := heir.Start(); err != nil {
		t.Fatal(err)
	}
	if err := held.file.Close(); err != nil {
		t.Fatal(err)
	}
	next, err := Acquire(dir)
	if err != nil {
		t.Fatalf("while the lock was inherited: %v", err)
	}
	if err := next.Close(); err != nil {
		t.Error(err)
	}
	if err := heir.Wait(); err != nil {
		t.Error(err)
	}
}

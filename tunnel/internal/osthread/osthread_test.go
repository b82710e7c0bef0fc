package osthread_test

import (
	"errors"
	"runtime"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"uvxlan/tunnel/internal/osthread"
)

// Whatever runs goroutines at the moment, the process's first thread isn't taken.
func TestRun(t *testing.T) {
	want := errors.New("what it returns")
	var wg sync.WaitGroup
	for range 64 {
		wg.Go(func() {
			for range 64 {
				err := osthread.Run(func() error {
					if unix.Gettid() == unix.Getpid() {
						t.Error("it ran on the process's first thread")
					}
					return want
				})
				if !errors.Is(err, want) {
					t.Errorf("error %v, want the function's", err)
				}
			}
		})
	}
	wg.Wait()
}

func TestRunOfFunctionThatEnds(t *testing.T) {
	if err := osthread.Run(func() error { runtime.Goexit(); return nil }); err == nil {
		t.Error("no error")
	}
}

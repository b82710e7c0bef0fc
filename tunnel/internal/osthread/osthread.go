// Package osthread is for what changes the thread that it runs on.
package osthread

import (
	"errors"
	"runtime"

	"golang.org/x/sys/unix"
)

// Run runs f on a thread that ends with it, so that nobody else meets what f has made of
// the thread, and returns what f returns. It is never the process's first thread: that one
// can't end, and others take its namespaces for the process's (/proc/PID/ns).
func Run(f func() error) error {
	done := make(chan error, 1)
	go func() {
		defer close(done)
		runtime.LockOSThread()
		if unix.Gettid() == unix.Getpid() {
			defer runtime.UnlockOSThread()
			done <- Run(f) // on another thread, since this one is taken
			return
		}
		done <- f()
	}()
	err, ok := <-done
	if !ok {
		return errors.New("the function ended its goroutine")
	}
	return err
}

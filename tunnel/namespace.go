package tunnel

import (
	"errors"
	"fmt"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// Inside runs f in the network namespace that ns is open at, such as
// /proc/1234/ns/net or /run/netns/blue, and returns what f returns. What f opens
// stays with that namespace wherever it is used afterwards; goroutines that f
// starts are outside. It needs CAP_SYS_ADMIN in the caller's user namespace and in
// the one that the network namespace belongs to.
func Inside(ns *os.File, f func() error) error {
	done := make(chan error, 1)
	go func() {
		defer close(done)
		// Never unlocked: the thread ends with the goroutine, so that nobody else
		// finds himself in the namespace.
		runtime.LockOSThread()
		if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
			done <- fmt.Errorf("enter network namespace %s: %w", ns.Name(), err)
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

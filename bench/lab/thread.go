package lab

import (
	"errors"
	"fmt"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// threadNamespace is the calling thread's own namespace; /proc/self is that of
// the thread group's leader.
const threadNamespace = "/proc/thread-self/ns/net"

var errGoexit = errors.New("function ended its goroutine")

// onThread runs f locked to an OS thread whose network namespace f may change.
// It takes a goroutine of its own, since a thread that can't be brought home
// must not be unlocked and dies with its goroutine.
func onThread(f func() error) error {
	done := make(chan error, 1)
	go func() {
		defer close(done)
		done <- visit(f)
	}()
	err, ok := <-done
	if !ok {
		return errGoexit
	}
	return err
}

// visit runs f on the calling thread and then restores its namespace.
func visit(f func() error) error {
	runtime.LockOSThread()
	home, err := os.Open(threadNamespace)
	if err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("open own network namespace: %w", err)
	}
	defer home.Close()
	defer func() {
		if enter(home) == nil {
			runtime.UnlockOSThread()
		}
	}()
	return f()
}

// enter moves the calling thread, which must be locked, into the namespace.
func enter(ns *os.File) error {
	raw, err := ns.SyscallConn()
	if err != nil {
		return err
	}
	var enterErr error
	err = raw.Control(func(fd uintptr) {
		enterErr = os.NewSyscallError("setns", unix.Setns(int(fd), unix.CLONE_NEWNET))
	})
	if err != nil {
		return os.ErrClosed // Control has no other failure, and no error to tell it by
	}
	return enterErr
}

// inside runs f on a thread inside the namespace.
func inside(ns *os.File, f func() error) error {
	return onThread(func() error {
		if err := enter(ns); err != nil {
			return fmt.Errorf("enter network namespace: %w", err)
		}
		return f()
	})
}

// Inside runs f on an OS thread inside the network namespace at a path, such as
// /proc/PID/ns/net of a container's process, as [Node.Do] does inside a node's.
func Inside(path string, f func() error) error {
	ns, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("open network namespace: %w", err)
	}
	defer ns.Close()
	return inside(ns, f)
}

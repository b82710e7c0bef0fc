// Package netnstest gives tests network namespaces of their own, each a host
// without a name that is gone when the test is. [New] makes one that the test
// stays out of, for tests of several hosts; [Enter] moves the test into one,
// with the commands it runs, for code that works on its own host.
//
// A goroutine that such a test starts, and so a subtest, is in no namespace of
// its own: it calls [Namespace.Do], or Enter for another host.
package netnstest

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

var errGoexit = errors.New("function ended its goroutine")

// RequireRoot skips a test that can't run here. Where CI is set in the
// environment it must run, and fails instead.
func RequireRoot(tb testing.TB) {
	tb.Helper()
	if os.Geteuid() == 0 {
		return
	}
	if os.Getenv("CI") != "" {
		tb.Fatal("integration tests need root, and CI must not skip them")
	}
	tb.Skip("needs root for network namespaces")
}

// Namespace is a network namespace whose loopback interface is up. Its handle
// works inside it from any thread, and belongs to it.
type Namespace struct {
	*netlink.Handle
	file *os.File
}

// New makes a namespace that lasts until the test ends. The test needs root, as
// of [RequireRoot].
func New(tb testing.TB) *Namespace {
	tb.Helper()
	return create(tb, onThread)
}

// Enter makes a namespace as New does and moves the calling goroutine, which
// must be the test's own, into it. Its thread stays locked and ends with it.
func Enter(tb testing.TB) *Namespace {
	tb.Helper()
	return create(tb, func(unshare func() error) error {
		runtime.LockOSThread()
		return unshare()
	})
}

// create makes a namespace on the thread that on chooses.
func create(tb testing.TB, on func(func() error) error) *Namespace {
	tb.Helper()
	RequireRoot(tb)
	n := &Namespace{}
	tb.Cleanup(n.close)
	if err := on(n.unshare); err != nil {
		tb.Fatalf("make network namespace: %v", err)
	}
	return n
}

// unshare makes the namespace that of the calling thread.
func (n *Namespace) unshare() (err error) {
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		return os.NewSyscallError("unshare", err)
	}
	if n.file, err = os.Open("/proc/thread-self/ns/net"); err != nil {
		return err
	}
	if n.Handle, err = netlink.NewHandle(unix.NETLINK_ROUTE); err != nil {
		return fmt.Errorf("open netlink socket: %w", err)
	}
	lo, err := n.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("find loopback: %w", err)
	}
	return n.LinkSetUp(lo)
}

func (n *Namespace) close() {
	if n.Handle != nil {
		n.Close()
	}
	n.file.Close()
}

// FD is the namespace's descriptor, as of [netlink.NsFd]. It stays open until
// the test ends.
func (n *Namespace) FD() int { return int(n.file.Fd()) }

// Do runs f inside the namespace, on a thread of its own that ends with it, and
// returns f's error. Commands that f starts are inside as well, but goroutines
// aren't.
func (n *Namespace) Do(f func() error) error {
	return onThread(func() error {
		if err := unix.Setns(n.FD(), unix.CLONE_NEWNET); err != nil {
			return os.NewSyscallError("setns", err)
		}
		return f()
	})
}

// onThread runs f on a thread that may stay in any namespace: it is never
// unlocked, and so ends with its goroutine.
func onThread(f func() error) error {
	done := make(chan error, 1)
	go func() {
		defer close(done)
		runtime.LockOSThread()
		done <- f()
	}()
	err, ok := <-done
	if !ok {
		return errGoexit
	}
	return err
}

// Run runs a command where the calling thread is and returns what it printed. A
// command that fails, fails the test.
func Run(tb testing.TB, name string, args ...string) string {
	tb.Helper()
	cmd := exec.CommandContext(tb.Context(), name, args...)
	out, err := cmd.CombinedOutput()
	if err != nil {
		tb.Fatalf("%s: %v: %s", cmd, err, out)
	}
	return string(out)
}

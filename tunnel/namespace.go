package tunnel

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"uvxlan/tunnel/internal/osthread"
)

// Inside runs f in the network namespace that ns is open at, such as
// /proc/1234/ns/net or /run/netns/blue, and returns what f returns. What f opens
// stays with that namespace wherever it is used afterwards; goroutines that f
// starts are outside. It needs CAP_SYS_ADMIN in the caller's user namespace and in
// the one that the network namespace belongs to.
func Inside(ns *os.File, f func() error) error {
	return osthread.Run(func() error {
		if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("enter network namespace %s: %w", ns.Name(), err)
		}
		return f()
	})
}

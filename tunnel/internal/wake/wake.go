// Package wake gets a thread out of its poll.
package wake

import (
	"encoding/binary"
	"fmt"

	"golang.org/x/sys/unix"
)

// Waker is an eventfd (eventfd(2)). Wake may be called from any goroutine; the
// owner calls Close once nobody does any longer.
type Waker struct {
	// FD polls readable from Wake to Reset; it is negative when there is none.
	FD int
}

// Open makes a Waker that hasn't been woken.
func Open() (Waker, error) {
	fd, err := unix.Eventfd(0, unix.EFD_NONBLOCK|unix.EFD_CLOEXEC)
	if err != nil {
		return Waker{-1}, fmt.Errorf("open eventfd: %w", err)
	}
	return Waker{fd}, nil
}

// Wake makes the descriptor readable. It can't fail: the counter would have to
// be full, and then it is readable.
func (w Waker) Wake() {
	var one [8]byte
	binary.NativeEndian.PutUint64(one[:], 1)
	_, _ = unix.Write(w.FD, one[:])
}

// Reset takes the wakes so far.
func (w Waker) Reset() {
	var count [8]byte
	_, _ = unix.Read(w.FD, count[:])
}

// Close closes the descriptor, if there is one.
func (w Waker) Close() error {
	if w.FD < 0 {
		return nil
	}
	return unix.Close(w.FD)
}

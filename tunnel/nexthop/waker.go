package nexthop

import (
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

// waker is an eventfd that gets Run out of its poll.
type waker struct{ fd int }

func newWaker() (waker, error) {
	fd, err := unix.Eventfd(0, unix.EFD_NONBLOCK|unix.EFD_CLOEXEC)
	if err != nil {
		return waker{-1}, fmt.Errorf("open eventfd: %w", err)
	}
	return waker{fd}, nil
}

// wake makes the descriptor readable. It can't fail: the counter would have to
// be full, and then it is readable.
func (w waker) wake() {
	var one [8]byte
	binary.NativeEndian.PutUint64(one[:], 1)
	_, _ = unix.Write(w.fd, one[:])
}

// reset takes the wakes so far.
func (w waker) reset() {
	var count [8]byte
	_, _ = unix.Read(w.fd, count[:])
}

func (w waker) close() error { return unix.Close(w.fd) }

// forever is the limit of a pollFor without one.
const forever time.Duration = -1

// pollFor waits until one of fds is readable, a signal comes or the limit
// passes.
func pollFor(fds []unix.PollFd, limit time.Duration) error {
	var timeout *unix.Timespec
	if limit != forever {
		spec := unix.NsecToTimespec(int64(limit))
		timeout = &spec
	}
	_, err := unix.Ppoll(fds, timeout, nil)
	if err != nil && !errors.Is(err, unix.EINTR) {
		return fmt.Errorf("poll: %w", err)
	}
	return nil
}

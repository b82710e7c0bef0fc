// Package descriptor has what descriptors of any kind need.
package descriptor

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// Own makes descriptors that somebody else has opened close-on-exec and
// non-blocking.
func Own(fds []int) error {
	for _, fd := range fds {
		unix.CloseOnExec(fd)
		if err := unix.SetNonblock(fd, true); err != nil {
			return fmt.Errorf("make descriptor %d non-blocking: %w", fd, err)
		}
	}
	return nil
}

// CloseAll closes descriptors, each error beside the others.
func CloseAll(fds []int) error {
	var errs []error
	for _, fd := range fds {
		if err := unix.Close(fd); err != nil {
			errs = append(errs, fmt.Errorf("close descriptor: %w", err))
		}
	}
	return errors.Join(errs...)
}

// Poll waits until one of fds is ready, at most for the given time, which a signal
// starts anew, and returns how many are ready; nil means without a limit.
func Poll(fds []unix.PollFd, most *unix.Timespec) (int, error) {
	for {
		n, err := unix.Ppoll(fds, most, nil)
		if !errors.Is(err, unix.EINTR) {
			return n, err
		}
	}
}

// ErrUnfit says that a descriptor is not what it has to be to be adopted.
var ErrUnfit = errors.New("the descriptor doesn't fit")

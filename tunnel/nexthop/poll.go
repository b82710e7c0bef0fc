package nexthop

import (
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

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

// Package descriptor has what descriptors of any kind need.
package descriptor

import (
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

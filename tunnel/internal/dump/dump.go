// Package dump lists what the kernel has, by netlink.
package dump

import (
	"errors"

	"github.com/vishvananda/netlink"
)

// attempts bounds how often a list is asked for that changes meanwhile.
const attempts = 20

// List repeats a request for a list that the kernel calls inconsistent: its entries
// changed while it was made, as interfaces do all the time on a host of containers.
func List[T any](list func() ([]T, error)) (all []T, err error) {
	for range attempts {
		if all, err = list(); !errors.Is(err, netlink.ErrDumpInterrupted) {
			break
		}
	}
	return all, err
}

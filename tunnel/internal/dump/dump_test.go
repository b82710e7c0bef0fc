package dump

import (
	"errors"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

func TestListRepeats(t *testing.T) {
	calls := 0
	all, err := List(func() ([]int, error) {
		calls++
		if calls < 3 {
			return nil, netlink.ErrDumpInterrupted
		}
		return []int{1}, nil
	})
	if err != nil || calls != 3 || len(all) != 1 {
		t.Errorf("%v, %v after %d calls", all, err, calls)
	}
	_, err = List(func() ([]int, error) { return nil, netlink.ErrDumpInterrupted })
	if !errors.Is(err, netlink.ErrDumpInterrupted) {
		t.Errorf("an endless interruption is %v", err)
	}
	calls = 0
	_, err = List(func() ([]int, error) { calls++; return nil, unix.EPERM })
	if !errors.Is(err, unix.EPERM) || calls != 1 {
		t.Errorf("%v after %d calls", err, calls)
	}
}

package kroute

import (
	"errors"
	"fmt"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

func TestRetryInterrupted(t *testing.T) {
	interrupted := fmt.Errorf("list: %w", netlink.ErrDumpInterrupted)
	for _, c := range []struct {
		name    string
		fails   int
		with    error
		calls   int
		wantErr error
	}{
		{"at once", 0, nil, 1, nil},
		{"interrupted twice", 2, interrupted, 3, nil},
		{"always interrupted", 1 << 20, interrupted, dumpTries, netlink.ErrDumpInterrupted},
		{"another error", 1 << 20, unix.EPERM, 1, unix.EPERM},
	} {
		calls := 0
		err := retryInterrupted(func() error {
			calls++
			if calls <= c.fails {
				return c.with
			}
			return nil
		})
		if calls != c.calls || !errors.Is(err, c.wantErr) {
			t.Errorf("%s: %d calls, %v", c.name, calls, err)
		}
	}
}

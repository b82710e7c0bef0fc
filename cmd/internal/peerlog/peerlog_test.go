package peerlog

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"uvxlan/lease"
)

// Few peers are named, of many there is one line a second.
func TestLog(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out bytes.Buffer
		c := New(slog.New(slog.NewTextHandler(&out, nil)))
		lines := func(count int, words ...string) {
			t.Helper()
			synctest.Wait()
			c.mu.Lock() // held while the timer's goroutine writes
			defer c.mu.Unlock()
			text := out.String()
			if n := strings.Count(text, "\n"); n != count {
				t.Errorf("%d lines, want %d:\n%s", n, count, text)
			}
			for _, w := range words {
				if !strings.Contains(text, w) {
					t.Errorf("no %q in\n%s", w, text)
				}
			}
			out.Reset()
		}
		many := func(n int) (all []lease.Lease) {
			for i := range n {
				all = append(all, lease.Lease{Subnet: netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i >> 8), byte(i), 0}), 24)})
			}
			return all
		}
		c.Tell(lease.Update{Leases: many(2), Deleted: many(1)})
		lines(3, "msg=peer subnet=10.0.1.0/24", `msg="peer gone" subnet=10.0.0.0/24`)
		time.Sleep(changesTime)
		lines(0)
		for range 1000 {
			c.Tell(lease.Update{Leases: many(1)})
			c.Tell(lease.Update{Deleted: many(2)})
		}
		lines(manyChanges)
		time.Sleep(changesTime)
		lines(1, fmt.Sprintf("new_or_changed=%d", 1000-7), fmt.Sprintf("gone=%d", 2000-13))
		c.Tell(lease.Update{Leases: many(1)})
		lines(1, "msg=peer ")
		time.Sleep(changesTime)
		lines(0)
	})
}

// However many leases are no peers, there is one short line.
func TestLeftOut(t *testing.T) {
	var out bytes.Buffer
	c := New(slog.New(slog.NewTextHandler(&out, nil)))
	c.LeftOut(errors.Join(nil, nil))
	var errs []error
	for i := range 10000 {
		errs = append(errs, fmt.Errorf("peer %d", i))
	}
	c.LeftOut(errors.Join(errors.Join(errs...), nil))
	if text := out.String(); strings.Count(text, "\n") != 1 || !strings.Contains(text, "count=10000") || !strings.Contains(text, "peer 4") || strings.Contains(text, "peer 5") {
		t.Errorf("it says %.1000s", text)
	}
}

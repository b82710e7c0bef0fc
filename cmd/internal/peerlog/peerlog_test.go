package peerlog

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"uvxlan/cmd/internal/control"
	"uvxlan/lease"
	"uvxlan/tunnel"
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
	c.LeftOut(lease.Update{}, errors.Join(nil, nil))
	var errs []error
	for i := range 10000 {
		errs = append(errs, fmt.Errorf("peer %d", i))
	}
	c.LeftOut(lease.Update{}, errors.Join(errors.Join(errs...), nil))
	if text := out.String(); strings.Count(text, "\n") != 1 || !strings.Contains(text, "count=10000") || !strings.Contains(text, "peer 4") || strings.Contains(text, "peer 5") {
		t.Errorf("it says %.1000s", text)
	}
}

// What is no peer is listed with the reason, until it is one or its lease ends.
func TestWithLeftOut(t *testing.T) {
	c := New(slog.New(slog.DiscardHandler))
	gateway := func(subnet string) lease.Lease {
		return lease.Lease{Subnet: netip.MustParsePrefix(subnet), Attrs: lease.Attrs{PublicIP: netip.MustParseAddr("192.168.14.31"), BackendType: lease.TypeHostGW}}
	}
	apply := func(u lease.Update) {
		var errs []error
		for _, l := range u.Leases {
			_, err := tunnel.PeerFromLease(l)
			errs = append(errs, err)
		}
		c.LeftOut(u, errors.Join(errs...))
	}
	const first, peer, last = `172.7.31.0/24 none its backend is "host-gw", not "vxlan"`, "172.7.32.0/24 vxlan ", `172.7.33.0/24 none its backend is "host-gw", not "vxlan"`
	list := func(want ...string) {
		t.Helper()
		var got []string
		for _, p := range c.WithLeftOut([]control.Peer{{Subnet: netip.MustParsePrefix("172.7.32.0/24"), Path: control.PathVXLAN}}) {
			got = append(got, fmt.Sprint(p.Subnet, " ", p.Path, " ", p.Reason))
		}
		if !slices.Equal(got, want) {
			t.Errorf("listed are\n%q, want\n%q", got, want)
		}
		note := ""
		n := len(want) - 1
		if n == 1 {
			subnet, _, _ := strings.Cut(want[slices.IndexFunc(want, func(w string) bool { return w != peer })], " ")
			note = fmt.Sprintf(`the lease of %s at 192.168.14.31 is no peer: its backend is "host-gw", not "vxlan"; uvxlan peers lists all, and daemons with an old network configuration need a restart`, subnet)
		}
		if n > 1 {
			subnet, _, _ := strings.Cut(want[slices.IndexFunc(want, func(w string) bool { return w != peer })], " ")
			note = fmt.Sprintf(`%d leases are no peers, such as that of %s at 192.168.14.31: its backend is "host-gw", not "vxlan"; uvxlan peers lists all, and daemons with an old network configuration need a restart`, n, subnet)
		}
		if got := c.Note(); got != note {
			t.Errorf("the note is %q, want %q", got, note)
		}
	}
	list(peer)
	apply(lease.Update{Reset: true, Leases: []lease.Lease{gateway("172.7.31.0/24")}})
	list(first, peer)
	apply(lease.Update{Leases: []lease.Lease{gateway("172.7.33.0/24")}})
	list(first, peer, last)
	apply(lease.Update{Deleted: []lease.Lease{{Subnet: netip.MustParsePrefix("172.7.31.0/24")}}})
	list(peer, last)
	vxlan := gateway("172.7.33.0/24")
	vxlan.Attrs.BackendType, vxlan.Attrs.BackendData = lease.TypeVXLAN, []byte(`{"VNI":1,"VtepMAC":"02:00:00:00:00:33"}`)
	apply(lease.Update{Leases: []lease.Lease{vxlan}})
	list(peer)
	apply(lease.Update{Reset: true, Leases: []lease.Lease{gateway("172.7.33.0/24")}})
	apply(lease.Update{Reset: true})
	list(peer)
}

// A reservation that its host hasn't taken yet is listed, and nothing to mend.
func TestUnclaimed(t *testing.T) {
	var out bytes.Buffer
	c := New(slog.New(slog.NewTextHandler(&out, nil)))
	l := lease.Lease{Subnet: netip.MustParsePrefix("172.7.31.0/24"), Permanent: true, Attrs: lease.Attrs{PublicIP: netip.MustParseAddr("192.168.14.31")}}
	_, err := tunnel.PeerFromLease(l)
	c.LeftOut(lease.Update{Leases: []lease.Lease{l}}, err)
	if note := c.Note(); note != "" || out.Len() > 0 {
		t.Errorf("the note is %q, the log %q", note, out.String())
	}
	if all := c.WithLeftOut(nil); len(all) != 1 || !all[0].Unclaimed || !strings.Contains(all[0].Reason, "reserved") {
		t.Errorf("listed are %+v", all)
	}
}

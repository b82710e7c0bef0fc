package nexthop

import (
	"net"
	"net/netip"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"uvxlan/encap"
)

var otherMAC = encap.MAC{2, 0, 0, 0, 0, 0x42}

func macIs(mac encap.MAC) func(Hop) bool {
	return func(h Hop) bool { return h.Resolved() && h.MAC == mac }
}

func TestIntegrationNeighbourStates(t *testing.T) {
	a, b := hosts(t)
	w := a.watch(Config{Neighbours: true}, peer4, peer6)
	for _, peer := range []netip.Addr{peer4, peer6} {
		w.await(peer, "resolved", resolved)
		for _, c := range []struct {
			name   string
			state  int
			reason string
		}{
			{"stale", netlink.NUD_STALE, ""},
			{"failed", netlink.NUD_FAILED, "neighbour failed"},
			{"reachable", netlink.NUD_REACHABLE, ""},
			{"NOARP", netlink.NUD_NOARP, "neighbour needs no MAC"},
			{"permanent", netlink.NUD_PERMANENT, ""},
		} {
			w.after(func() { a.setNeighbour(peer, c.state, otherMAC) }, peer, c.name, func(h Hop) bool {
				return h.OnLink && h.Reason == c.reason && (c.reason != "" || h.MAC == otherMAC)
			})
		}
		a.setNeighbour(peer, netlink.NUD_STALE, b.mac())
		w.await(peer, "the peer's", macIs(b.mac()))
	}
}

// A neighbour that is used and doesn't answer fails, is asked for again and
// comes back.
func TestIntegrationNeighbourComesBack(t *testing.T) {
	a, b := hosts(t)
	a.hasten()
	w := a.watch(Config{Neighbours: true, InUse: always}, peer4, peer6)
	for _, c := range []struct {
		peer   netip.Addr
		prefix string
	}{{peer4, "10.66.0.2/24"}, {peer6, "fd66::2/64"}} {
		w.await(c.peer, "resolved", resolved)
		address, err := netlink.ParseAddr(c.prefix)
		must(t, err)
		must(t, b.AddrDel(b.link(device), address))
		a.setNeighbour(c.peer, netlink.NUD_STALE, b.mac())
		began := time.Now()
		w.await(c.peer, "failed", because("neighbour failed"))
		t.Logf("%s failed after %v, of which the kernel waits 1 s before it probes", c.peer, time.Since(began).Round(time.Millisecond))
		b.address(device, c.prefix)
		began = time.Now()
		w.await(c.peer, "back", macIs(b.mac()))
		t.Logf("%s came back after %v", c.peer, time.Since(began).Round(time.Millisecond))
	}
}

// The peer gets another MAC and says so by itself.
func TestIntegrationPeerMACChanges(t *testing.T) {
	a, b := hosts(t)
	a.hasten()
	b.sysctl("net/ipv4/conf/"+device+"/arp_notify", "1")
	b.sysctl("net/ipv6/conf/"+device+"/ndisc_notify", "1")
	w := a.watch(Config{Neighbours: true}, peer4, peer6)
	w.await(peer4, "resolved", resolved)
	w.await(peer6, "resolved", resolved)
	w.after(func() { must(t, b.LinkSetHardwareAddr(b.link(device), net.HardwareAddr(otherMAC[:]))) },
		peer4, "of the new MAC", macIs(otherMAC))
	w.await(peer6, "of the new MAC", macIs(otherMAC))
}

// An entry that is flushed while in use is told of, and comes back.
func TestIntegrationNeighbourFlushed(t *testing.T) {
	a, b := hosts(t)
	lost := make(chan struct{}, 1)
	var looks atomic.Int32
	w := a.watch(Config{
		Neighbours: true,
		InUse:      func(netip.Addr) bool { looks.Add(1); return true },
		Changed: func(changes []Change) {
			for _, c := range changes {
				if c.Hop.OnLink && c.Hop.MAC == (encap.MAC{}) && looks.Load() > 2 {
					lost <- struct{}{}
				}
			}
		},
	}, peer4)
	w.await(peer4, "resolved", resolved)
	w.until("third look at what is used", func() bool { return looks.Load() > 2 })
	began := time.Now()
	n := a.neighbour(peer4)
	must(t, a.NeighDel(&n))
	select {
	case <-lost:
		t.Logf("told after %v", time.Since(began).Round(10*time.Microsecond))
	case <-time.After(patience):
		t.Fatal("the flush was not told")
	}
	w.await(peer4, "resolved again", macIs(b.mac()))
	t.Logf("back after %v", time.Since(began).Round(10*time.Microsecond))
}

// A stale entry is confirmed while it is used, and only then.
func TestIntegrationStaleInUse(t *testing.T) {
	a, b := hosts(t)
	a.hasten()
	const idle4, idle6 = "10.66.0.3", "fd66::3"
	used := []netip.Addr{peer4, peer6}
	unused := []netip.Addr{netip.MustParseAddr(idle4), netip.MustParseAddr(idle6)}
	b.address(device, idle4+"/24")
	b.address(device, idle6+"/64")
	for _, addr := range append(unused, used...) {
		a.setNeighbour(addr, netlink.NUD_STALE, b.mac())
	}
	var looks atomic.Int32
	w := a.watch(Config{Neighbours: true, InUse: func(addr netip.Addr) bool {
		looks.Add(1)
		return addr == peer4 || addr == peer6
	}}, append(unused, used...)...)
	for _, addr := range used {
		w.until("confirmation of "+addr.String(), func() bool { return a.neighbour(addr).State == netlink.NUD_REACHABLE })
		w.await(addr, "resolved", resolved)
	}
	w.until("third look at each", func() bool { return looks.Load() >= 3*4 })
	for _, addr := range unused {
		if n := a.neighbour(addr); n.State != netlink.NUD_STALE {
			t.Errorf("%s, which isn't used, is %+v", addr, n)
		}
	}
}

// The kernel is never asked for what an administrator or it itself has: asking
// would make an ordinary entry of a permanent one.
func TestIntegrationPermanentStays(t *testing.T) {
	a, _ := hosts(t)
	unanswered := netip.MustParseAddr("10.66.0.9")
	for _, addr := range []netip.Addr{peer4, unanswered} {
		a.setNeighbour(addr, netlink.NUD_PERMANENT, otherMAC)
	}
	var looks atomic.Int32
	w := a.watch(Config{Neighbours: true, InUse: func(netip.Addr) bool { looks.Add(1); return true }}, peer4, unanswered)
	w.until("third look at each", func() bool { return looks.Load() >= 3*2 })
	for _, addr := range []netip.Addr{peer4, unanswered} {
		w.await(addr, "the permanent one", macIs(otherMAC))
		if n := a.neighbour(addr); n.State != netlink.NUD_PERMANENT {
			t.Errorf("%s has become %+v", addr, n)
		}
	}
}

// What NTF_USE does to entries that the kernel has, on which this package
// relies.
func TestIntegrationUse(t *testing.T) {
	a, b := hosts(t)
	use := func(addr netip.Addr) {
		t.Helper()
		must(t, a.NeighAppend(&netlink.Neigh{LinkIndex: a.link(device).Attrs().Index, IP: addr.AsSlice(), Flags: netlink.NTF_USE}))
	}
	for _, peer := range []netip.Addr{peer4, peer6} {
		a.setNeighbour(peer, netlink.NUD_REACHABLE, otherMAC)
		use(peer)
		if n := a.neighbour(peer); n.State != netlink.NUD_REACHABLE || encap.MAC(n.HardwareAddr) != otherMAC {
			t.Errorf("a reachable entry has become %+v", n)
		}
		a.setNeighbour(peer, netlink.NUD_STALE, b.mac())
		use(peer)
		if n := a.neighbour(peer); n.State&(netlink.NUD_DELAY|netlink.NUD_PROBE|netlink.NUD_REACHABLE) == 0 || encap.MAC(n.HardwareAddr) != b.mac() {
			t.Errorf("a stale entry has become %+v", n)
		}
	}
}

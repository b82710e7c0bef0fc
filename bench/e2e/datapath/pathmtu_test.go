package datapath_test

import (
	"encoding/binary"
	"errors"
	"net/netip"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"uvxlan/bench/cluster"
	"uvxlan/bench/e2e"
	"uvxlan/bench/lab"
)

// isFragment tells IPv4 and IPv6 fragments.
func isFragment(p lab.Packet) bool {
	if _, _, next, ok := p.IPv6(); ok {
		return next == unix.IPPROTO_FRAGMENT
	}
	_, _, _, ok := p.IPv4()
	const moreFragments, offset = 0x2000, 0x1fff
	return ok && binary.BigEndian.Uint16(p.Frame[14+6:])&(moreFragments|offset) != 0
}

// captureFragments records what of a host's traffic came in fragments.
func captureFragments(t *testing.T, h *lab.Host) *lab.Capture {
	t.Helper()
	c, err := h.Capture(t.Context(), "eth0", func(p lab.Packet) bool { return !p.Outgoing && isFragment(p) })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// expectFragments counts what a capture has, and whether there is any.
func expectFragments(t *testing.T, w *e2e.World, c *lab.Capture, some bool) {
	t.Helper()
	if err := c.Settle(w.Context()); err != nil {
		t.Fatal(err)
	}
	if n := c.Count(); (n > 0) != some {
		t.Errorf("%d fragments came", n)
	}
}

// awaitPathMTU waits until a daemon tells of the longest packets to another host.
func awaitPathMTU(t *testing.T, d *cluster.Daemon, to *lab.Host, want int) {
	t.Helper()
	got := map[netip.Prefix]int{}
	for late := time.Now().Add(e2e.Patience); ; time.Sleep(20 * time.Millisecond) {
		for _, p := range e2e.AskPeers(t, d) {
			got[p.Subnet] = p.PathMTU
		}
		if got[to.Subnet] == want {
			return
		}
		if time.Now().After(late) {
			t.Fatalf("the path MTUs are %v, want %d of %s", got, want, to.Subnet)
		}
	}
}

// knownMTU is what a container's kernel has learnt of the path to an address, "" if
// that is nothing.
func knownMTU(t *testing.T, c *lab.Container, to netip.Addr) string {
	t.Helper()
	f := strings.Fields(e2e.Command(t, c.Node, "ip route get "+to.String()))
	for i, word := range f[:len(f)-1] {
		if word == "mtu" {
			return f[i+1]
		}
	}
	return ""
}

// forgetMTUs makes a container's kernel forget.
func forgetMTUs(t *testing.T, c *lab.Container) {
	t.Helper()
	e2e.Command(t, c.Node, "ip route flush cache")
}

// The route to a peer takes shorter packets than the interface: senders are told,
// and nothing is fragmented that must not be. Once the route takes more, so does the
// overlay.
func TestIntegrationPathMTUOfARoute(t *testing.T) {
	w := e2e.NewWorld(t, "kb21", "kb31")
	d := w.Start("kb21", "kb31")[0]
	w.Mesh("kb21", "kb31")
	kb21, kb31 := w.Host("kb21"), w.Host("kb31")
	from, to := kb21.Container, kb31.Container
	awaitPathMTU(t, d, kb31, lab.DefaultContainerMTU)
	begin := time.Now()
	e2e.Command(t, kb21.Node, "ip route add 192.168.15.0/24 via 192.168.14.1 mtu 1400")
	awaitPathMTU(t, d, kb31, 1350)
	e2e.AwaitLine(t, d, begin, "path MTU fell", "peer=192.168.15.31", "mtu=1350")

	whole := captureFragments(t, kb31)
	e2e.Transfer(t, from.Node, to, 32<<20)
	if got := knownMTU(t, from, to.Address); got != "1350" {
		t.Errorf("after TCP the container's path MTU is %q", got)
	}
	forgetMTUs(t, from)
	for range 2 { // by the overlay, then by the container's own kernel
		if _, err := from.Ping(w.Context(), to.Address, 1351); !errors.Is(err, unix.EMSGSIZE) {
			t.Errorf("1351 bytes: %v", err)
		}
	}
	if got := knownMTU(t, from, to.Address); got != "1350" {
		t.Errorf("after a ping the container's path MTU is %q", got)
	}
	if _, err := from.Ping(w.Context(), to.Address, 1350); err != nil {
		t.Error(err)
	}
	expectFragments(t, w, whole, false)
	// What may be fragmented still passes.
	forgetMTUs(t, from)
	e2e.Command(t, from.Node, "ping -M dont -s 1422 -c 3 -i 0.2 "+to.Address.String())
	expectFragments(t, w, whole, true)

	begin = time.Now()
	e2e.Command(t, kb21.Node, "ip route del 192.168.15.0/24")
	awaitPathMTU(t, d, kb31, lab.DefaultContainerMTU)
	e2e.AwaitLine(t, d, begin, "path MTU rose", "peer=192.168.15.31")
	forgetMTUs(t, from)
	w.Mesh("kb21", "kb31")
}

// A router on the way tells the host's other traffic that a link takes less. The
// overlay knows what the kernel knows, and for as long.
func TestIntegrationPathMTUExpires(t *testing.T) {
	w := e2e.NewWorld(t, "kb21", "kb31")
	d := w.Start("kb21", "kb31")[0]
	w.Mesh("kb21", "kb31")
	kb21, kb31 := w.Host("kb21"), w.Host("kb31")
	if err := kb21.Sysctl("ipv4/route/mtu_expires", "3"); err != nil {
		t.Fatal(err)
	}
	e2e.Command(t, w.Router(), "ip link set kb31 mtu 1400")
	if _, err := kb21.Ping(w.Context(), kb31.Address, 1500); !errors.Is(err, unix.EMSGSIZE) {
		t.Fatalf("a ping through a narrow link: %v", err)
	}
	for range 3 {
		// The overlay's own packets don't renew what the kernel knows: they have no DF.
		if _, err := kb21.Container.Ping(w.Context(), kb31.Container.Address, 1300); err != nil {
			t.Fatal(err)
		}
	}
	awaitPathMTU(t, d, kb31, 1350)
	if _, err := kb21.Container.Ping(w.Context(), kb31.Container.Address, 1450); !errors.Is(err, unix.EMSGSIZE) {
		t.Errorf("1450 bytes: %v", err)
	}
	e2e.Command(t, w.Router(), "ip link set kb31 mtu 1500")
	awaitPathMTU(t, d, kb31, lab.DefaultContainerMTU)
	forgetMTUs(t, kb21.Container)
	w.Mesh("kb21", "kb31")
}

// IPv6 packets by an IPv6 underlay are told what is left of that.
func TestIntegrationPathMTUOfIPv6(t *testing.T) {
	w := e2e.NewDualWorld(t, e2e.DualConfig, "kb21", "kb31")
	w.Start("kb21", "kb31")
	w.DualMesh("kb21", "kb31")
	kb21, kb31 := w.Host("kb21"), w.Host("kb31")
	from, to := kb21.Container, kb31.Container
	for _, mtu := range []struct {
		path, fits string
		size       int
	}{{"1400", "1330", e2e.DualMTU}, {"1300", "1280", 1330}} {
		route := kb31.IPv6.Underlay.Masked().String() + " via " + kb21.IPv6.Gateway.String() + " mtu " + mtu.path
		e2e.Command(t, kb21.Node, "ip -6 route replace "+route)
		whole := captureFragments(t, kb31)
		for late := time.Now().Add(e2e.Patience); knownMTU(t, from, to.AddressV6) != mtu.fits; {
			_, err := from.Ping(w.Context(), to.AddressV6, mtu.size)
			if time.Now().After(late) {
				t.Fatalf("path MTU %s: the container knows of %q, %d bytes: %v", mtu.path, knownMTU(t, from, to.AddressV6), mtu.size, err)
			}
		}
		if _, err := from.Ping(w.Context(), to.AddressV6, 1280); err != nil {
			t.Errorf("path MTU %s: %v", mtu.path, err)
		}
		if mtu.path == "1300" {
			expectFragments(t, w, whole, true) // nobody sends less than 1280
		}
	}
}

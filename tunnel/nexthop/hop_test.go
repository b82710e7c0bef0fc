package nexthop

import (
	"net"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"uvxlan/encap"
)

const upFlags = unix.IFF_UP | unix.IFF_LOWER_UP

func goodLink() link {
	return link{name: "eth0", index: 2, mtu: 1500, mac: encap.MAC{2, 0, 0, 0, 0, 1}, ethernet: true, kind: "device", flags: upFlags}
}

func TestDecide(t *testing.T) {
	links := map[int]link{2: goodLink()}
	plain := func(edit func(*netlink.Route)) []netlink.Route {
		r := netlink.Route{Type: unix.RTN_UNICAST, LinkIndex: 2}
		if edit != nil {
			edit(&r)
		}
		return []netlink.Route{r}
	}
	for _, c := range []struct {
		name   string
		routes []netlink.Route
		reason string
	}{
		{"on-link", plain(nil), ""},
		{"unspecified gateway", plain(func(r *netlink.Route) { r.Gw = net.IPv4zero }), ""},
		{"none", nil, "no route"},
		{"two", append(plain(nil), plain(nil)...), "no route"},
		{"gateway", plain(func(r *netlink.Route) { r.Gw = net.IPv4(10, 0, 0, 1) }), "via gateway 10.0.0.1"},
		{"gateway of another family", plain(func(r *netlink.Route) {
			r.Via = &netlink.Via{AddrFamily: unix.AF_INET6, Addr: net.ParseIP("fe80::1")}
		}), "via gateway fe80::1"},
		{"encapsulated", plain(func(r *netlink.Route) { r.Encap = &netlink.MPLSEncap{} }), "the route rewrites packets"},
		{"multipath", plain(func(r *netlink.Route) { r.MultiPath = []*netlink.NexthopInfo{{}, {}} }), "several next hops"},
		{"own", plain(func(r *netlink.Route) { r.Type = unix.RTN_LOCAL }), "own address"},
		{"broadcast", plain(func(r *netlink.Route) { r.Type = unix.RTN_BROADCAST }), "broadcast address"},
		{"multicast", plain(func(r *netlink.Route) { r.Type = unix.RTN_MULTICAST }), "multicast address"},
		{"anycast", plain(func(r *netlink.Route) { r.Type = unix.RTN_ANYCAST }), "anycast address"},
		{"blackhole", plain(func(r *netlink.Route) { r.Type = unix.RTN_BLACKHOLE }), "no route"},
		{"nat", plain(func(r *netlink.Route) { r.Type = unix.RTN_NAT }), "route of type 10"},
		{"no link", plain(func(r *netlink.Route) { r.LinkIndex = 0 }), "the route names no link"},
		{"new link", plain(func(r *netlink.Route) { r.LinkIndex = 3 }), "link 3 is unknown"},
	} {
		h := decide(c.routes, links)
		if h.Reason != c.reason || h.OnLink != (c.reason == "") || h.Resolved() {
			t.Errorf("%s: %+v, want reason %q", c.name, h, c.reason)
		}
	}
}

func TestDecideMTU(t *testing.T) {
	links := map[int]link{2: goodLink()}
	for mtu, want := range map[int]encap.OuterMTU{0: 1500, 1400: 1400, 9000: 1500} {
		h := decide([]netlink.Route{{Type: unix.RTN_UNICAST, LinkIndex: 2, MTU: mtu}}, links)
		if h.MTU != want {
			t.Errorf("route MTU %d: %d, want %d", mtu, h.MTU, want)
		}
	}
}

func TestLinkUnfit(t *testing.T) {
	for _, c := range []struct {
		edit   func(*link)
		reason string
	}{
		{func(*link) {}, ""},
		{func(l *link) { l.kind = "bond" }, ""},
		{func(l *link) { l.excluded = true }, "link eth0 is not the underlay's"},
		{func(l *link) { l.flags |= unix.IFF_LOOPBACK }, "loopback link eth0"},
		{func(l *link) { l.flags |= unix.IFF_POINTOPOINT }, "point-to-point link eth0"},
		{func(l *link) { l.kind = "vxlan" }, "tunnel link eth0 (vxlan)"},
		{func(l *link) { l.kind = "tuntap" }, "tunnel link eth0 (tuntap)"},
		{func(l *link) { l.ethernet = false }, "link eth0 is not Ethernet"},
		{func(l *link) { l.mac = encap.MAC{} }, "link eth0 is not Ethernet"},
		{func(l *link) { l.flags |= unix.IFF_NOARP }, "link eth0 resolves no addresses"},
		{func(l *link) { l.flags = 0 }, "link eth0 is down"},
		{func(l *link) { l.flags = unix.IFF_UP }, "link eth0 has no carrier"},
	} {
		l := goodLink()
		c.edit(&l)
		if got := l.unfit(); got != c.reason {
			t.Errorf("%+v: %q, want %q", l, got, c.reason)
		}
	}
}

func TestRouteError(t *testing.T) {
	for err, reason := range map[error]string{
		unix.ENETUNREACH:  "no route",
		unix.EHOSTUNREACH: "no route",
		unix.EACCES:       "no route: permission denied",
		unix.EINVAL:       "no route: invalid argument",
	} {
		if h := routeError(err); h.OnLink || h.Reason != reason || passing(err) {
			t.Errorf("%v: %+v, want reason %q", err, h, reason)
		}
	}
	if !passing(unix.ENOBUFS) {
		t.Error("a full socket passes for a missing route")
	}
}

func TestNeighbourOnHop(t *testing.T) {
	mac := encap.MAC{2, 0, 0, 0, 0, 2}
	for _, c := range []struct {
		n          neighbour
		reason     string
		resolvable bool
	}{
		{neighbour{}, "neighbour unresolved", true},
		{neighbour{netlink.NUD_INCOMPLETE, encap.MAC{}}, "neighbour unresolved", true},
		{neighbour{netlink.NUD_FAILED, mac}, "neighbour failed", true},
		{neighbour{netlink.NUD_NOARP, mac}, "neighbour needs no MAC", false},
		{neighbour{netlink.NUD_REACHABLE, encap.MAC{}}, "neighbour unresolved", true},
		{neighbour{netlink.NUD_PERMANENT, encap.MAC{}}, "neighbour unresolved", false},
		{neighbour{netlink.NUD_REACHABLE, mac}, "", false},
		{neighbour{netlink.NUD_STALE, mac}, "", false},
		{neighbour{netlink.NUD_DELAY, mac}, "", false},
		{neighbour{netlink.NUD_PROBE, mac}, "", false},
		{neighbour{netlink.NUD_PERMANENT, mac}, "", false},
	} {
		h := c.n.on(Hop{OnLink: true})
		if h.Reason != c.reason || h.Resolved() != (c.reason == "") || c.n.resolvable() != c.resolvable {
			t.Errorf("%+v: %+v, resolvable %t, want reason %q", c.n, h, c.n.resolvable(), c.reason)
		}
		far := Hop{Reason: "no route"}
		if got := c.n.on(far); got != far {
			t.Errorf("%+v off-link: %+v", c.n, got)
		}
	}
}

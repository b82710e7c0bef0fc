package nexthop

import (
	"errors"
	"net"
	"net/netip"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"uvxlan/encap"
)

func TestIntegrationOnLink(t *testing.T) {
	a, b := hosts(t)
	mapped := netip.AddrFrom16(peer4.As16())
	w := a.watch(Config{Neighbours: true}, mapped, peer6, ours4, ours6)
	want := Hop{
		OnLink: true, Link: device, Index: a.link(device).Attrs().Index, MTU: 1400, Source: a.mac(), MAC: b.mac(),
	}
	for _, peer := range []netip.Addr{peer4, peer6} {
		if h := w.await(peer, "resolved", resolved); h != want {
			t.Errorf("%s: %+v, want %+v", peer, h, want)
		}
	}
	for _, own := range []netip.Addr{ours4, ours6} {
		w.await(own, "our own", because("own address"))
	}
	if h, ok := w.Lookup(mapped); !ok || !h.Resolved() {
		t.Errorf("the mapped form is unknown: %+v", h)
	}
	w.Track(nil, []netip.Addr{peer4})
	if h, ok := w.Lookup(peer4); ok {
		t.Errorf("a removed address is %+v", h)
	}
	w.Replace([]netip.Addr{peer4, peer6})
	w.await(peer4, "resolved", resolved)
	if _, ok := w.Lookup(ours6); ok {
		t.Error("a replaced address is still known")
	}
}

func TestIntegrationNeighboursLeftAlone(t *testing.T) {
	a, _ := hosts(t)
	w := a.watch(Config{InUse: always}, peer4)
	if h := w.await(peer4, "on-link", onLink); h.Reason != "" || h.Resolved() {
		t.Errorf("%+v", h)
	}
	w.until("second round", func() bool { _, routes := w.counts(); return routes > 0 })
	if n := a.neighbour(peer4); n.State != netlink.NUD_NONE {
		t.Errorf("the kernel has %+v", n)
	}
}

func TestIntegrationNotOnLink(t *testing.T) {
	a, _ := hosts(t)
	index := a.link(device).Attrs().Index
	on := func(name string) func(*netlink.Route) {
		return func(r *netlink.Route) { r.LinkIndex = a.link(name).Attrs().Index }
	}
	kind := func(kind int) func(*netlink.Route) { return func(r *netlink.Route) { r.Type = kind } }
	several := func(gateways ...netip.Addr) func(*netlink.Route) {
		return func(r *netlink.Route) {
			for _, g := range gateways {
				r.MultiPath = append(r.MultiPath, &netlink.NexthopInfo{LinkIndex: index, Gw: g.AsSlice()})
			}
		}
	}
	crossed := func(r *netlink.Route) {
		r.LinkIndex, r.Via = index, &netlink.Via{AddrFamily: unix.AF_INET6, Addr: gate6.AsSlice()}
	}
	attrs := func(name string) netlink.LinkAttrs { return netlink.LinkAttrs{Name: name} }
	for _, c := range []struct {
		name, to string
		link     netlink.Link
		edit     func(*netlink.Route)
		reason   string
	}{
		{"no route", "198.51.100.1", nil, nil, "no route"},
		{"no route, v6", "2001:db8::1", nil, nil, "no route"},
		{"broadcast", "10.66.0.255", nil, nil, "broadcast address"},
		{"multicast, v6", "ff02::1", nil, nil, "multicast address"},
		{"link-local", "fe80::1", nil, nil, "link-local address"},
		{"unspecified", "0.0.0.0", nil, nil, "unspecified address"},
		{"loopback", "127.0.0.2", nil, nil, "own address"},
		{"gateway", "10.67.0.1", nil, via(gate4), "via gateway 10.66.0.254"},
		{"gateway, v6", "fd67::1", nil, via(gate6), "via gateway fd66::fe"},
		{"v6 gateway of v4", "10.67.0.2", nil, crossed, "via gateway fd66::fe"},
		{"multipath", "10.67.0.3", nil, several(gate4, peer4), "several next hops"},
		{"multipath, v6", "fd67::3", nil, several(gate6, peer6), "several next hops"},
		{"blackhole", "10.67.0.4", nil, kind(unix.RTN_BLACKHOLE), "no route: invalid argument"},
		{"blackhole, v6", "fd67::4", nil, kind(unix.RTN_BLACKHOLE), "no route: invalid argument"},
		{"unreachable", "10.67.0.5", nil, kind(unix.RTN_UNREACHABLE), "no route"},
		{"unreachable, v6", "fd67::5", nil, kind(unix.RTN_UNREACHABLE), "no route"},
		{"prohibit", "10.67.0.6", nil, kind(unix.RTN_PROHIBIT), "no route: permission denied"},
		{"prohibit, v6", "fd67::6", nil, kind(unix.RTN_PROHIBIT), "no route: permission denied"},
		{"dummy", "10.68.0.1", &netlink.Dummy{LinkAttrs: attrs("dummy1")}, on("dummy1"), "link dummy1 resolves no addresses"},
		{"dummy, v6", "fd68::1", &netlink.Dummy{LinkAttrs: attrs("dummy2")}, on("dummy2"), "link dummy2 resolves no addresses"},
		{"tun", "10.68.0.2", &netlink.Tuntap{LinkAttrs: attrs("tun1"), Mode: netlink.TUNTAP_MODE_TUN}, on("tun1"), "point-to-point link tun1"},
		{"tap", "10.68.0.3", &netlink.Tuntap{LinkAttrs: attrs("tap1"), Mode: netlink.TUNTAP_MODE_TAP}, on("tap1"), "tunnel link tap1 (tuntap)"},
		{"gretap", "10.68.0.4", &netlink.Gretap{LinkAttrs: attrs("gt1"), Local: ours4.AsSlice(), Remote: peer4.AsSlice()}, on("gt1"), "tunnel link gt1 (gretap)"},
		{"vxlan", "10.68.0.5", &netlink.Vxlan{LinkAttrs: attrs("vx1"), VxlanId: 7, Port: 4790}, on("vx1"), "tunnel link vx1 (vxlan)"},
		{"geneve", "10.68.0.6", &netlink.Geneve{LinkAttrs: attrs("gn1"), ID: 7, Remote: peer4.AsSlice()}, on("gn1"), "tunnel link gn1 (geneve)"},
		{"wireguard", "10.68.0.7", &netlink.Wireguard{LinkAttrs: attrs("wg1")}, on("wg1"), "point-to-point link wg1"},
		{"ipip", "10.68.0.8", &netlink.Iptun{LinkAttrs: attrs("ipip1"), Local: ours4.AsSlice(), Remote: peer4.AsSlice()}, on("ipip1"), "point-to-point link ipip1"},
		{"excluded", "10.68.0.9", &netlink.Bridge{LinkAttrs: attrs("flannel.1")}, on("flannel.1"), "link flannel.1 is not the underlay's"},
		{"no carrier", "10.68.0.10", &netlink.Veth{LinkAttrs: attrs("lone1"), PeerName: "lone2"}, on("lone1"), "link lone1 has no carrier"},
	} {
		t.Run(c.name, func(t *testing.T) {
			a := a.in(t)
			if c.link != nil {
				err := do(a, func() (error, error) { return a.LinkAdd(c.link), nil })
				if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENOENT) {
					t.Skipf("this kernel has no such link: %v", err)
				}
				must(t, err)
				a.up(c.link.Attrs().Name)
			}
			if c.edit != nil {
				a.routeAdd(route(c.to, c.edit))
			}
			to := netip.MustParseAddr(c.to)
			w := a.watch(Config{Neighbours: true, Exclude: []string{"flannel.1"}}, to)
			if h := w.await(to, c.reason, because(c.reason)); h.OnLink {
				t.Errorf("%+v", h)
			}
		})
	}
}

// Every kind of link that carries neighbours of ours.
func TestIntegrationLinks(t *testing.T) {
	a, _ := hosts(t)
	parent := a.link(device).Attrs().Index
	attrs := func(name string) netlink.LinkAttrs { return netlink.LinkAttrs{Name: name, ParentIndex: parent} }
	for _, l := range []netlink.Link{
		&netlink.Vlan{LinkAttrs: attrs("vlan7"), VlanId: 7},
		&netlink.Macvlan{LinkAttrs: attrs("mac1"), Mode: netlink.MACVLAN_MODE_BRIDGE},
	} {
		t.Run(l.Type(), func(t *testing.T) {
			a := a.in(t)
			err := a.LinkAdd(l)
			if errors.Is(err, unix.EOPNOTSUPP) {
				t.Skipf("this kernel has no such link: %v", err)
			}
			must(t, err)
			a.up(l.Attrs().Name)
			to := netip.AddrFrom4([4]byte{10, 70, byte(len(l.Attrs().Name)), 1})
			a.routeAdd(route(to.String(), func(r *netlink.Route) { r.LinkIndex = l.Attrs().Index }))
			w := a.watch(Config{}, to)
			if h := w.await(to, "on-link", onLink); h.Link != l.Attrs().Name {
				t.Errorf("%+v", h)
			}
		})
	}
}

func TestIntegrationRoutesChange(t *testing.T) {
	a, b := hosts(t)
	w := a.watch(Config{Neighbours: true}, peer4, peer6)
	for _, c := range []struct {
		peer, gateway netip.Addr
		own           string
	}{{peer4, gate4, "10.66.0.2/32"}, {peer6, gate6, "fd66::2/128"}} {
		w.await(c.peer, "resolved", resolved)
		detour := route(c.peer.String(), via(c.gateway))
		w.after(func() { a.routeAdd(detour) }, c.peer, "behind a gateway", because("via gateway "+c.gateway.String()))
		direct := route(c.peer.String(), func(r *netlink.Route) { r.LinkIndex = a.link(device).Attrs().Index })
		w.after(func() { must(t, a.RouteReplace(direct)) }, c.peer, "back on the link", resolved)
		// IPv6 keeps routes with and without a gateway side by side.
		_ = a.RouteDel(detour)
		must(t, a.RouteDel(direct))

		rule := netlink.NewRule()
		rule.Dst, rule.Type = ipNet(netip.PrefixFrom(c.peer, c.peer.BitLen())), unix.RTN_UNREACHABLE
		rule.Priority, rule.Family = 10, familyOf(c.peer)
		w.after(func() { must(t, a.RuleAdd(rule)) }, c.peer, "ruled out", because("no route"))
		w.after(func() { must(t, a.RuleDel(rule)) }, c.peer, "admitted again", resolved)

		var own *netlink.Addr
		w.after(func() { own = a.address("lo", c.own) }, c.peer, "our own", because("own address"))
		w.after(func() { must(t, a.AddrDel(a.link("lo"), own)) }, c.peer, "a peer again", resolved)
	}
	if h, _ := w.Lookup(peer4); h.MAC != b.mac() {
		t.Errorf("%+v", h)
	}
}

func familyOf(a netip.Addr) int {
	if a.Is4() {
		return netlink.FAMILY_V4
	}
	return netlink.FAMILY_V6
}

func TestIntegrationLinkChanges(t *testing.T) {
	a, b := hosts(t)
	a.sysctl("net/ipv6/conf/"+device+"/keep_addr_on_down", "1")
	w := a.watch(Config{Neighbours: true}, peer4, peer6)
	w.await(peer4, "resolved", resolved)
	w.await(peer6, "resolved", resolved)
	down := func(h Hop) bool { return !h.OnLink && h.Reason != "" }

	w.after(func() { must(t, a.LinkSetMTU(a.link(device), 1300)) }, peer4, "of another MTU", func(h Hop) bool { return h.MTU == 1300 })
	w.after(func() { must(t, a.LinkSetARPOff(a.link(device))) }, peer4, "not resolved", because("link "+device+" resolves no addresses"))
	w.after(func() { must(t, a.LinkSetARPOn(a.link(device))) }, peer4, "on the link again", onLink)
	w.await(peer4, "resolved again", resolved)
	w.await(peer6, "resolved again", resolved)
	mac := encap.MAC{2, 0, 0, 0, 0, 0x17}
	w.after(func() { must(t, a.LinkSetHardwareAddr(a.link(device), net.HardwareAddr(mac[:]))) }, peer4,
		"of another source", func(h Hop) bool { return h.Source == mac })
	w.after(func() { a.down(device) }, peer4, "off a link that is down", down)
	w.await(peer6, "off a link that is down", down)
	w.after(func() { a.up(device) }, peer4, "on the link again", onLink)
	w.await(peer4, "resolved again", resolved)
	w.await(peer6, "resolved again", resolved)
	b.down(device)
	w.await(peer4, "without carrier", because("link "+device+" has no carrier")) // the kernel says so within a second
	w.after(func() { b.up(device) }, peer4, "on the link again", onLink)
	w.await(peer4, "resolved again", resolved)

	list, err := a.AddrList(a.link(device), netlink.FAMILY_V4)
	must(t, err)
	w.after(func() { must(t, a.AddrDel(a.link(device), &list[0])) }, peer4, "without our address", because("no route"))
	w.after(func() { a.address(device, ours4.String()+"/24") }, peer4, "with our address", onLink)
	w.after(func() { must(t, a.LinkDel(a.link(device))) }, peer4, "without the link", because("no route"))
}

// When a link goes down, IPv4 loses a route by it without a word, and the route
// behind that one comes into force.
func TestIntegrationSilentFlush(t *testing.T) {
	a, _ := hosts(t)
	other := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "uvx-nh-eth1"}, PeerName: "uvx-nh-eth2"}
	must(t, a.LinkAdd(other))
	a.up(other.Name)
	a.up(other.PeerName)
	to := netip.MustParseAddr("10.69.0.1")
	for metric, name := range map[int]string{10: device, 20: other.Name} {
		a.routeAdd(route("10.69.0.0/24", func(r *netlink.Route) { r.LinkIndex, r.Priority = a.link(name).Attrs().Index, metric }))
	}
	w := a.watch(Config{}, to)
	w.await(to, "on the first link", func(h Hop) bool { return h.OnLink && h.Link == device })
	w.after(func() { a.down(device) }, to, "on the other link", func(h Hop) bool { return h.OnLink && h.Link == other.Name })
}

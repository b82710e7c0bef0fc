package nexthop

import (
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"uvxlan/encap"
)

// Hop is how the kernel reaches one address of the underlay at one moment. It is
// comparable. What is known of the link is told whenever a single one is used,
// whether the address is on it or behind it.
type Hop struct {
	// OnLink says that the address is a neighbour on an Ethernet link that
	// resolves addresses, is up and has a carrier.
	OnLink bool
	// Link and Index are the link's name and number.
	Link  string
	Index int
	// MTU is the link's, or the route's if that is smaller.
	MTU encap.OuterMTU
	// Source is the link's own MAC.
	Source encap.MAC
	// MAC is the neighbour's; zero while the kernel has no valid entry, and
	// always if neighbours aren't followed.
	MAC encap.MAC
	// Reason says in words why the address isn't on-link or has no MAC; it is
	// empty when nothing is missing.
	Reason string
}

// Resolved says that Ethernet frames can be sent: from Source to MAC by Link.
func (h Hop) Resolved() bool { return h.OnLink && h.MAC != (encap.MAC{}) }

// decide judges what a FIB match returned for an address.
func decide(routes []netlink.Route, links map[int]link) Hop {
	if len(routes) != 1 {
		return Hop{Reason: noRoute}
	}
	r := &routes[0]
	switch {
	case r.Type != unix.RTN_UNICAST:
		return Hop{Reason: routeType(r.Type)}
	case len(r.MultiPath) > 0:
		return Hop{Reason: "several next hops"}
	case r.LinkIndex == 0: // nexthop objects with net.ipv4.nexthop_compat_mode off
		return Hop{Reason: "the route names no link"}
	}
	l, ok := links[r.LinkIndex]
	if !ok {
		return Hop{Index: r.LinkIndex, Reason: fmt.Sprintf("link %d is unknown", r.LinkIndex)}
	}
	h := Hop{Link: l.name, Index: l.index, MTU: l.mtu, Source: l.mac}
	if r.MTU > 0 {
		h.MTU = min(h.MTU, encap.OuterMTU(r.MTU))
	}
	if h.Reason = detour(r); h.Reason == "" {
		h.Reason = l.unfit()
	}
	h.OnLink = h.Reason == ""
	return h
}

const noRoute = "no route"

// detour says what stands between us and the route's destination.
func detour(r *netlink.Route) string {
	via, _ := r.Via.(*netlink.Via)
	switch {
	case via != nil:
		return "via gateway " + via.Addr.String()
	case len(r.Gw) > 0 && !r.Gw.IsUnspecified():
		return "via gateway " + r.Gw.String()
	case r.Via != nil || r.Encap != nil || r.NewDst != nil:
		return "the route rewrites packets"
	}
	return ""
}

func routeType(t int) string {
	switch t {
	case unix.RTN_LOCAL:
		return "own address"
	case unix.RTN_BROADCAST:
		return "broadcast address"
	case unix.RTN_ANYCAST:
		return "anycast address"
	case unix.RTN_MULTICAST:
		return "multicast address"
	case unix.RTN_BLACKHOLE, unix.RTN_UNREACHABLE, unix.RTN_PROHIBIT:
		return noRoute
	}
	return fmt.Sprintf("route of type %d", t)
}

// routeError is the Hop of an address that the kernel has no route for. It says
// so by an error, as of a blackhole (EINVAL) and a prohibition (EACCES).
func routeError(err error) Hop {
	if errors.Is(err, unix.ENETUNREACH) || errors.Is(err, unix.EHOSTUNREACH) {
		return Hop{Reason: noRoute}
	}
	return Hop{Reason: noRoute + ": " + err.Error()}
}

// passing says that err tells of the moment rather than of the routes.
func passing(err error) bool {
	for _, errno := range []error{unix.EAGAIN, unix.EINTR, unix.ENOBUFS, unix.ENOMEM} {
		if errors.Is(err, errno) {
			return true
		}
	}
	return false
}

// foreclosed judges addresses that a route tells nothing about.
func foreclosed(a netip.Addr) string {
	switch {
	case a.IsUnspecified():
		return "unspecified address"
	case a.Is6() && a.IsLinkLocalUnicast(), a.Zone() != "":
		return "link-local address"
	}
	return ""
}

func ipOf(a netip.Addr) net.IP { return a.AsSlice() }

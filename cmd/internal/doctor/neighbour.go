package doctor

import (
	"errors"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// neighbour is the next hop to an address, as the kernel has it.
type neighbour struct {
	route  string // in words
	err    error  // why there is no route
	link   string
	hop    netip.Addr // the gateway, or the address itself
	onLink bool       // it is the address itself
	state  string     // the neighbour's, in the kernel's words; empty if there is none
	mac    string
	failed bool // nobody answers ARP, or neighbour discovery
}

// states are those of neighbours (rtnetlink(7), ndm_state).
var states = map[int]string{
	netlink.NUD_INCOMPLETE: "incomplete", netlink.NUD_REACHABLE: "reachable", netlink.NUD_STALE: "stale", netlink.NUD_DELAY: "delay",
	netlink.NUD_PROBE: "probe", netlink.NUD_FAILED: "failed", netlink.NUD_NOARP: "noarp", netlink.NUD_PERMANENT: "permanent",
}

// neighbourOf asks the kernel, in the calling thread's network namespace.
func neighbourOf(a netip.Addr) (n neighbour) {
	routes, err := netlink.RouteGet(a.AsSlice())
	if err == nil && len(routes) == 0 {
		err = unix.ENETUNREACH
	}
	if err != nil {
		n.err = err
		return n
	}
	r := routes[0]
	n.hop, n.onLink = a, true
	gateway := r.Gw
	if via, is := r.Via.(*netlink.Via); is { // of the other family (RFC 8950)
		gateway = via.Addr
	}
	if gw, ok := netip.AddrFromSlice(gateway); ok && !gw.IsUnspecified() {
		n.hop, n.onLink = gw.Unmap(), false
	}
	if i, err := net.InterfaceByIndex(r.LinkIndex); err == nil {
		n.link = i.Name
	}
	if !n.onLink {
		n.route = "via " + n.hop.String() + " "
	}
	n.route += "dev " + n.link
	if src, ok := netip.AddrFromSlice(r.Src); ok {
		n.route += " src " + src.Unmap().String()
	}
	family := netlink.FAMILY_V4
	if n.hop.Is6() {
		family = netlink.FAMILY_V6
	}
	entries, err := netlink.NeighList(r.LinkIndex, family)
	if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
		return n
	}
	for _, e := range entries {
		if ip, ok := netip.AddrFromSlice(e.IP); ok && ip.Unmap() == n.hop {
			n.state, n.mac = states[e.State], e.HardwareAddr.String()
			n.failed = e.State == netlink.NUD_FAILED || e.State == netlink.NUD_INCOMPLETE
		}
	}
	return n
}

// filters tells whether the reverse-path filter drops a packet that came. The kernel
// takes it for one without a mark.
func filters(s *sighting) bool {
	if !s.dst.Is4() || s.link == 0 {
		return false // there is no such filter
	}
	_, err := netlink.RouteGetWithOptions(s.dst.AsSlice(), &netlink.RouteGetOptions{IifIndex: s.link, SrcAddr: s.src.AsSlice()})
	return errors.Is(err, unix.EXDEV) || errors.Is(err, unix.EINVAL) // the newer kernels' word
}

// mayEncrypt tells whether this host may send frames in IPsec, so that nobody sees them
// leave.
func mayEncrypt() bool {
	states, err := netlink.XfrmStateList(netlink.FAMILY_ALL)
	return len(states) > 0 || err != nil && !errors.Is(err, unix.EPROTONOSUPPORT)
}

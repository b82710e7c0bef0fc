package overlay

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"uvxlan/cmd/internal/host"
	"uvxlan/tunnel"
	"uvxlan/tunnel/kroute"
)

// maxNamed is how many foreign routes are named; of more their number is told.
const maxNamed = 5

// concernsRoutes passes over our own routes and those into other networks.
func (v *Overlay) concernsRoutes(e host.Event) bool {
	switch e.Kind {
	case host.Rule:
		return true
	case host.Route:
		return e.Protocol != kroute.Protocol && slices.ContainsFunc(v.config.Networks(), e.Prefix.Overlaps)
	}
	return false
}

// foreign is the foreign route that takes a peer's packets past the overlay, in
// words; empty if there is none.
func (v *Overlay) foreign(peer netip.Prefix) string {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.bypassed[peer]
}

// checkForeignRoutes looks for routes of others that the kernel prefers to ours.
func (v *Overlay) checkForeignRoutes(context.Context) []host.Fault {
	router, down := v.inForce()
	if down != nil {
		return nil
	}
	device, err := net.InterfaceByName(v.name)
	if err != nil {
		return nil // the device's fault
	}
	routes, err := v.foreignRoutes(device.Index)
	if err != nil {
		return []host.Fault{{What: fmt.Sprintf("whether others have routes to peers is not known: %v", err)}}
	}
	var faults []host.Fault
	bypassed := map[netip.Prefix]string{}
	if len(routes) > 0 {
		peers := router.Peers()
		for _, r := range routes {
			taken := r.takes(peers)
			if len(taken) == 0 {
				continue
			}
			for _, p := range taken {
				bypassed[p.Subnet] = "route " + r.String()
			}
			faults = append(faults, r.fault(r.network, taken))
		}
	}
	v.mu.Lock()
	v.bypassed = bypassed
	v.mu.Unlock()
	if len(faults) > maxNamed {
		rest := len(faults) - maxNamed
		faults = append(faults[:maxNamed], host.Fault{What: fmt.Sprintf("%d more routes lead packets for peers past the overlay", rest)})
	}
	return faults
}

// foreignRoute is somebody else's route into the overlay's network.
type foreignRoute struct {
	netlink.Route
	to, network netip.Prefix // to leads into network
}

// foreignRoutes are those that could win over ours: into a network, of others, and
// not to our own containers.
func (v *Overlay) foreignRoutes(device int) (found []foreignRoute, err error) {
	for _, n := range v.config.Networks() {
		family := netlink.FAMILY_V4
		if n.Addr().Is6() {
			family = netlink.FAMILY_V6
		}
		all := &netlink.Route{Table: unix.RT_TABLE_UNSPEC}
		err := netlink.RouteListFilteredIter(family, all, netlink.RT_FILTER_TABLE, func(r netlink.Route) bool {
			if f, ok := v.foreignRoute(r, n, device); ok {
				found = append(found, f)
			}
			return true
		})
		if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
			return nil, err
		}
	}
	return found, nil
}

func (v *Overlay) foreignRoute(r netlink.Route, n netip.Prefix, device int) (foreignRoute, bool) {
	if r.Dst == nil || r.Table == unix.RT_TABLE_LOCAL || r.LinkIndex == device || r.Protocol == kroute.Protocol {
		return foreignRoute{}, false
	}
	f := foreignRoute{r, prefixOf(r.Dst), n}
	if !f.to.IsValid() || r.Table == unix.RT_TABLE_MAIN && f.to.Bits() < n.Bits() {
		return foreignRoute{}, false
	}
	own := slices.ContainsFunc(v.own.Subnets(), func(own netip.Prefix) bool {
		return own.Bits() <= f.to.Bits() && own.Contains(f.to.Addr())
	})
	return f, f.to.Overlaps(n) && !own
}

// takes are the peers whose packets the kernel sends by the route.
func (f foreignRoute) takes(peers []tunnel.Peer) (taken []tunnel.Peer) {
	for _, p := range peers {
		if !f.to.Overlaps(p.Subnet) {
			continue
		}
		// An address that both have: the narrower one's first behind its base.
		at := p.Subnet
		if f.to.Bits() > at.Bits() {
			at = f.to
		}
		addr := at.Addr()
		if next := addr.Next(); at.Contains(next) {
			addr = next
		}
		by, err := netlink.RouteGetWithOptions(addr.AsSlice(), &netlink.RouteGetOptions{FIBMatch: true})
		if err != nil && f.Type != unix.RTN_UNICAST || // which answers with an error
			len(by) > 0 && by[0].Table == f.Table && by[0].Protocol == f.Protocol && prefixOf(by[0].Dst) == f.to {
			taken = append(taken, p)
		}
	}
	return taken
}

// prefixOf is a route's destination; a default route's may be nil.
func prefixOf(n *net.IPNet) netip.Prefix {
	if n == nil {
		return netip.Prefix{}
	}
	addr, ok := netip.AddrFromSlice(n.IP)
	if !ok {
		return netip.Prefix{}
	}
	bits, _ := n.Mask.Size()
	return netip.PrefixFrom(addr.Unmap(), bits)
}

// String is the route as ip-route(8) writes it.
func (f foreignRoute) String() string {
	words := []string{f.to.String()}
	switch f.Type {
	case unix.RTN_BLACKHOLE, unix.RTN_UNREACHABLE, unix.RTN_PROHIBIT, unix.RTN_THROW:
		words = []string{map[int]string{
			unix.RTN_BLACKHOLE: "blackhole", unix.RTN_UNREACHABLE: "unreachable", unix.RTN_PROHIBIT: "prohibit", unix.RTN_THROW: "throw",
		}[f.Type], words[0]}
	}
	if f.Gw != nil {
		words = append(words, "via", f.Gw.String())
	}
	if l, err := netlink.LinkByIndex(f.LinkIndex); err == nil && f.LinkIndex > 0 {
		words = append(words, "dev", l.Attrs().Name)
	}
	if f.Table != unix.RT_TABLE_MAIN {
		words = append(words, "table", fmt.Sprint(f.Table))
	}
	return strings.Join(words, " ")
}

// fault names a route that takes peers' packets. A table of policy routing has its
// own purpose, from which the overlay's network is to be exempt.
func (f foreignRoute) fault(network netip.Prefix, taken []tunnel.Peer) host.Fault {
	who := fmt.Sprintf("peer %s at %s", taken[0].Subnet, taken[0].Underlay)
	if len(taken) > 1 {
		who = fmt.Sprintf("%d peers, such as %s at %s,", len(taken), taken[0].Subnet, taken[0].Underlay)
	}
	ip := "ip "
	if f.to.Addr().Is6() {
		ip = "ip -6 "
	}
	remedy := ip + "route del " + f.String()
	if f.Table != unix.RT_TABLE_MAIN {
		remedy = fmt.Sprintf("%srule add to %s lookup main priority 1", ip, network)
	}
	return host.Fault{
		What:   fmt.Sprintf("route %s leads packets for %s past the overlay", f, who),
		Remedy: remedy,
	}
}

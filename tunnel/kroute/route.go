package kroute

import (
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
)

// Route is a kernel route to a subnet via a gateway.
type Route struct {
	// Subnet is the destination.
	Subnet netip.Prefix
	// Via is the gateway, of Subnet's family and on-link.
	Via netip.Addr
	// Link is the index of the interface that the gateway is on.
	Link int
	// Source is the address the host's own packets are given; the zero Addr
	// leaves it to the kernel.
	Source netip.Addr
}

// normal returns the route as the kernel would tell it.
func (r Route) normal() (Route, error) {
	r.Subnet, r.Via, r.Source = r.Subnet.Masked(), r.Via.Unmap().WithZone(""), r.Source.Unmap().WithZone("")
	switch {
	case !r.Subnet.IsValid() || !r.Via.IsValid():
		return r, &Error{Route: r, Reason: errors.New("subnet or gateway is missing")}
	case r.Subnet.Addr().Is4() != r.Via.Is4():
		return r, &Error{Route: r, Reason: fmt.Errorf("the subnet %s and the gateway %s are of two IP versions", r.Subnet, r.Via)}
	case r.Source.IsValid() && r.Source.Is4() != r.Via.Is4():
		return r, &Error{Route: r, Reason: fmt.Errorf("the source %s and the gateway %s are of two IP versions", r.Source, r.Via)}
	}
	return r, nil
}

// family is the address family, as in socket(2).
func (r Route) family() int {
	if r.Subnet.Addr().Is4() {
		return netlink.FAMILY_V4
	}
	return netlink.FAMILY_V6
}

// sameWay tells whether two routes to a subnet end up at the same gateway.
func (r Route) sameWay(o Route) bool {
	return r.Subnet == o.Subnet && r.Via == o.Via && r.Link == o.Link
}

func (r Route) netlink(protocol int) *netlink.Route {
	n := &netlink.Route{
		Dst:       &net.IPNet{IP: r.Subnet.Addr().AsSlice(), Mask: net.CIDRMask(r.Subnet.Bits(), r.Subnet.Addr().BitLen())},
		Gw:        r.Via.AsSlice(),
		LinkIndex: r.Link,
		Protocol:  netlink.RouteProtocol(protocol),
	}
	if r.Source.IsValid() {
		n.Src = r.Source.AsSlice()
	}
	return n
}

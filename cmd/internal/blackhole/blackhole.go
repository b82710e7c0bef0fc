// Package blackhole drops what is sent to containers of a host that aren't
// there.
//
// As long as a bridge has the host's subnet, its route is the way to them. While
// it hasn't, a packet to the subnet would follow a wider route: into the overlay
// and back, or by the default route to strangers.
package blackhole

import (
	"errors"
	"fmt"
	"math"
	"net"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"uvxlan/tunnel/kroute"
)

// metric is the worst that the netlink library writes on every architecture, so
// that any other route to the subnet is preferred, whoever makes it and when.
const metric = math.MaxInt32

// Add makes the route, in the calling thread's network namespace. One that is
// there already, whoever made it, is no error.
func Add(subnet netip.Prefix) error {
	if err := netlink.RouteAdd(route(subnet)); err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("add route blackhole %s: %w", subnet, err)
	}
	return nil
}

// Exists tells whether the route is there and ours. A zero subnet has none.
func Exists(subnet netip.Prefix) (bool, error) {
	if !subnet.IsValid() {
		return false, nil
	}
	const mask = netlink.RT_FILTER_TABLE | netlink.RT_FILTER_DST | netlink.RT_FILTER_PROTOCOL | netlink.RT_FILTER_TYPE
	family := netlink.FAMILY_V4
	if subnet.Addr().Is6() {
		family = netlink.FAMILY_V6
	}
	routes, err := netlink.RouteListFiltered(family, route(subnet), mask)
	if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
		return false, fmt.Errorf("look for route blackhole %s: %w", subnet, err)
	}
	return slices.ContainsFunc(routes, func(r netlink.Route) bool { return r.Priority == metric }), nil
}

// Remove removes the route if it is there and ours, and tells whether it was.
func Remove(subnet netip.Prefix) (bool, error) {
	found, err := Exists(subnet)
	if err != nil || !found {
		return false, err
	}
	if err := netlink.RouteDel(route(subnet)); err != nil && !errors.Is(err, unix.ESRCH) {
		return false, fmt.Errorf("remove route blackhole %s: %w", subnet, err)
	}
	return true, nil
}

func route(subnet netip.Prefix) *netlink.Route {
	addr := subnet.Addr()
	return &netlink.Route{
		Dst:   &net.IPNet{IP: addr.AsSlice(), Mask: net.CIDRMask(subnet.Bits(), addr.BitLen())},
		Table: unix.RT_TABLE_MAIN, Type: unix.RTN_BLACKHOLE, Protocol: kroute.Protocol, Priority: metric,
	}
}

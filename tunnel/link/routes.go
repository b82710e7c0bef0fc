package link

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"uvxlan/tunnel/kroute"
)

// checkRoutes refuses routes that somebody else has already by another interface.
// It may miss one in a table that changes meanwhile; then adding ours is refused.
func checkRoutes(link netlink.Link, routes []netip.Prefix) error {
	for _, n := range routes {
		others, err := routesTo(n)
		if err != nil {
			return err
		}
		for _, r := range others {
			if r.LinkIndex != link.Attrs().Index {
				return routeExists(n, r)
			}
		}
	}
	return nil
}

// routeExists names the route that is in the way.
func routeExists(n netip.Prefix, r netlink.Route) error {
	by := fmt.Sprintf("interface %d", r.LinkIndex)
	if l, err := netlink.LinkByIndex(r.LinkIndex); err == nil {
		by = l.Attrs().Name
	}
	return fmt.Errorf("%w: to %s by %s", ErrRouteExists, n, by)
}

// routesTo are the routes to just that destination in the main table that are in
// the place of ours: of the same metric.
func routesTo(n netip.Prefix) (routes []netlink.Route, err error) {
	family, priority := netlink.FAMILY_V4, 0
	if n.Addr().Is6() {
		family, priority = netlink.FAMILY_V6, kroute.PriorityV6
	}
	all, err := netlink.RouteListFiltered(family, &netlink.Route{Dst: ipNet(n)}, netlink.RT_FILTER_DST)
	if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
		return nil, fmt.Errorf("list routes: %w", err)
	}
	for _, r := range all {
		if r.Priority == priority {
			routes = append(routes, r)
		}
	}
	return routes, nil
}

func addRoutes(link netlink.Link, c Config) error {
	have, err := routesInto(link, c)
	if err != nil {
		return err
	}
	var errs []error
	for _, n := range c.Destinations() {
		wanted := routeInto(link, c, n)
		if slices.ContainsFunc(have, func(r netlink.Route) bool { return sameRoute(r, wanted) }) {
			continue
		}
		// One of ours with another source is replaced; somebody else's isn't.
		add := netlink.RouteAdd
		if slices.ContainsFunc(have, func(r netlink.Route) bool { return routeDst(r) == n }) {
			add = netlink.RouteReplace
		}
		if err := add(&wanted); err != nil {
			if errors.Is(err, unix.EEXIST) {
				err = fmt.Errorf("%w: %w", ErrRouteExists, err)
			}
			errs = append(errs, fmt.Errorf("%s: %w", n, err))
		}
	}
	return errors.Join(errs...)
}

// removeRoutes removes those of ours that aren't wanted.
func removeRoutes(link netlink.Link, c Config) error {
	have, err := routesInto(link, c)
	if err != nil {
		return err
	}
	for _, r := range have {
		if slices.Contains(c.Destinations(), routeDst(r)) {
			continue
		}
		if err := netlink.RouteDel(&r); err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("%s: %w", routeDst(r), err)
		}
	}
	return nil
}

func wrongRoutes(link netlink.Link, c Config) (wrong []error) {
	have, err := routesInto(link, c)
	if err != nil {
		return []error{err}
	}
	for _, n := range c.Destinations() {
		wanted := routeInto(link, c, n)
		if slices.ContainsFunc(have, func(r netlink.Route) bool { return sameRoute(r, wanted) }) {
			continue
		}
		others, err := routesTo(n)
		switch i := slices.IndexFunc(others, func(r netlink.Route) bool { return r.LinkIndex != link.Attrs().Index }); {
		case err != nil:
			wrong = append(wrong, err)
		case i >= 0:
			wrong = append(wrong, routeExists(n, others[i]))
		default:
			wrong = append(wrong, fmt.Errorf("its route to %s is missing", n))
		}
	}
	for _, r := range have {
		if !slices.Contains(c.Destinations(), routeDst(r)) {
			wrong = append(wrong, fmt.Errorf("its route to %s isn't wanted", routeDst(r)))
		}
	}
	return wrong
}

// routesInto are our routes into the interface.
func routesInto(link netlink.Link, c Config) (routes []netlink.Route, err error) {
	families := []int{netlink.FAMILY_V4}
	if c.ipv6() {
		families = append(families, netlink.FAMILY_V6)
	}
	for _, family := range families {
		of := &netlink.Route{LinkIndex: link.Attrs().Index, Protocol: kroute.Protocol, Table: unix.RT_TABLE_MAIN}
		found, err := netlink.RouteListFiltered(family, of, netlink.RT_FILTER_OIF|netlink.RT_FILTER_PROTOCOL|netlink.RT_FILTER_TABLE)
		if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
			return nil, fmt.Errorf("list routes: %w", err)
		}
		routes = append(routes, found...)
	}
	return routes, nil
}

func routeInto(link netlink.Link, c Config, n netip.Prefix) netlink.Route {
	route := netlink.Route{
		LinkIndex: link.Attrs().Index, Dst: ipNet(n), Protocol: kroute.Protocol, Scope: netlink.SCOPE_LINK,
	}
	for _, a := range c.Addresses {
		if a.Is4() == n.Addr().Is4() {
			route.Src = a.AsSlice()
		}
	}
	return route
}

// sameRoute tells whether r is as wanted: what matters is where it leads and the
// source that it gives.
func sameRoute(r, wanted netlink.Route) bool {
	to, _ := netip.AddrFromSlice(wanted.Dst.IP)
	bits, _ := wanted.Dst.Mask.Size()
	return routeDst(r) == netip.PrefixFrom(to.Unmap(), bits) && (wanted.Src == nil || r.Src.Equal(wanted.Src))
}

// routeDst is a route's; a default route has the zero Prefix.
func routeDst(r netlink.Route) netip.Prefix {
	if r.Dst == nil {
		return netip.Prefix{}
	}
	addr, ok := netip.AddrFromSlice(r.Dst.IP)
	if !ok {
		return netip.Prefix{}
	}
	bits, _ := r.Dst.Mask.Size()
	return netip.PrefixFrom(addr.Unmap(), bits)
}

package kroute

import (
	"errors"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
)

// Leftover lists the routes of a protocol that have a gateway and lead into one
// of the networks, or anywhere if none is given, whoever made them, in the
// calling thread's network namespace.
func Leftover(protocol int, networks ...netip.Prefix) ([]Route, error) {
	var routes []Route
	err := eachLeftover(protocol, networks, func(_ kernel, e entry) error {
		routes = append(routes, e.Route)
		return nil
	})
	return routes, err
}

// RemoveLeftover removes the routes that [Leftover] lists, as they stay behind
// when a daemon is killed. It returns those that it removed.
func RemoveLeftover(protocol int, networks ...netip.Prefix) ([]Route, error) {
	var routes []Route
	err := eachLeftover(protocol, networks, func(k kernel, e entry) error {
		err := k.remove(e)
		if err == nil {
			routes = append(routes, e.Route)
		}
		return err
	})
	return routes, err
}

func eachLeftover(protocol int, networks []netip.Prefix, do func(kernel, entry) error) error {
	k, err := openKernel(protocol)
	if err != nil {
		return err
	}
	defer k.handle.Close()
	entries, err := k.dump(protocol, netlink.FAMILY_V4, netlink.FAMILY_V6)
	if err != nil {
		return err
	}
	slices.SortStableFunc(entries, func(a, b entry) int { return a.Subnet.Compare(b.Subnet) })
	var errs []error
	for _, e := range entries {
		if k.ours(e) && into(networks, e.Subnet) {
			errs = append(errs, do(k, e))
		}
	}
	return errors.Join(errs...)
}

// into tells whether a subnet lies in one of the networks, of which none means
// any.
func into(networks []netip.Prefix, subnet netip.Prefix) bool {
	return len(networks) == 0 || slices.ContainsFunc(networks, func(n netip.Prefix) bool {
		return n.Bits() <= subnet.Bits() && n.Contains(subnet.Addr())
	})
}

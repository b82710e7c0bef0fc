package extiface

import (
	"cmp"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"regexp"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

func (all candidates) byNameOrAddress(name string, prefer netip.Addr) (Interface, error) {
	if a, err := netip.ParseAddr(name); err == nil && a.Is6() {
		return all.byAddressV6(a, prefer)
	} else if err == nil {
		return all.byAddress(a)
	}
	for _, c := range all {
		if c.name == name {
			return all.choose(c, prefer)
		}
	}
	return Interface{}, fmt.Errorf("no interface is called %s", name)
}

// byAddress finds the interface that has address a, and sends from it.
func (all candidates) byAddress(a netip.Addr) (Interface, error) {
	for _, c := range all {
		for _, has := range c.addrs {
			if address(has) != a {
				continue
			}
			if f := fault(has); f != "" {
				return Interface{}, fmt.Errorf("%s has the address %s, but that is %s", c.name, a, f)
			}
			if c.leadsNowhere() {
				return Interface{}, all.refuse(c, a)
			}
			return Interface{Name: c.name, Index: c.index, MTU: c.mtu, Address: a}, nil
		}
	}
	return Interface{}, fmt.Errorf("no interface has the address %s (behind a NAT, name the interface as well: -iface)", a)
}

// byAddressV6 finds the interface that has the IPv6 address a, and sends from its
// best IPv4 one.
func (all candidates) byAddressV6(a, prefer netip.Addr) (Interface, error) {
	for _, c := range all {
		if slices.ContainsFunc(c.addrsV6, func(has netlink.Addr) bool { return address(has) == a }) {
			return all.choose(c, prefer)
		}
	}
	return Interface{}, fmt.Errorf("no interface has the address %s (behind a NAT, name the interface as well: -iface)", a)
}

// byPattern looks at all addresses before it looks at a name. What matches but
// can't be used is passed over.
func (all candidates) byPattern(p *regexp.Regexp, prefer netip.Addr) (Interface, error) {
	var passed []error
	for _, c := range all {
		for _, a := range c.addrs {
			switch {
			case !p.MatchString(address(a).String()):
			case c.flags&net.FlagUp == 0:
				passed = append(passed, fmt.Errorf("%s of %s, which is down", address(a), c.name))
			case fault(a) != "":
				passed = append(passed, fmt.Errorf("%s of %s, which is %s", address(a), c.name, fault(a)))
			case c.leadsNowhere():
				passed = append(passed, fmt.Errorf("%s of %s, which leads to no other host", address(a), c.name))
			default:
				return Interface{Name: c.name, Index: c.index, MTU: c.mtu, Address: address(a)}, nil
			}
		}
	}
	for _, c := range all {
		if !p.MatchString(c.name) {
			continue
		}
		found, err := all.choose(c, prefer)
		switch {
		case c.flags&net.FlagUp == 0:
			passed = append(passed, fmt.Errorf("%s, which is down", c.name))
		case err != nil:
			passed = append(passed, err)
		default:
			return found, nil
		}
	}
	if len(passed) > 0 {
		return Interface{}, fmt.Errorf("-iface-regex %q matches only what can't be used: %w", p, errors.Join(passed...))
	}
	return Interface{}, fmt.Errorf("-iface-regex %q matches no address and no name", p)
}

// byReach asks the kernel how it would send to the address.
func (all candidates) byReach(to netip.Addr) (Interface, error) {
	routes, err := netlink.RouteGet(to.AsSlice())
	if err == nil && len(routes) == 0 {
		err = unix.ENETUNREACH
	}
	if err != nil {
		return Interface{}, fmt.Errorf("-iface-can-reach: route to %s: %w", to, err)
	}
	r := routes[0]
	from, ok := netip.AddrFromSlice(r.Src)
	if r.Type != unix.RTN_UNICAST || !ok {
		return Interface{}, fmt.Errorf("-iface-can-reach: %s is no other host's address", to)
	}
	i := slices.IndexFunc(all, func(c candidate) bool { return c.index == r.LinkIndex })
	if i < 0 {
		return Interface{}, fmt.Errorf("-iface-can-reach: the interface to %s, number %d, is gone", to, r.LinkIndex)
	}
	return Interface{Name: all[i].name, Index: all[i].index, MTU: all[i].mtu, Address: from.Unmap()}, nil
}

// byDefaultRoute takes the first default route whose interface can be used.
func (all candidates) byDefaultRoute(prefer netip.Addr) (Interface, error) {
	indexes, err := defaultLinks()
	if err != nil {
		return Interface{}, err
	}
	var errs []error
	for _, index := range indexes {
		i := slices.IndexFunc(all, func(c candidate) bool { return c.index == index })
		if i < 0 {
			continue
		}
		found, err := all.choose(all[i], prefer)
		if err == nil {
			return found, nil
		}
		errs = append(errs, fmt.Errorf("default route: %w", err))
	}
	if len(errs) > 0 {
		return Interface{}, errors.Join(errs...)
	}
	return Interface{}, errors.New("there is no default route: name the interface with -iface")
}

// defaultLinks are the interfaces of the main table's default routes, in the
// order of their metrics.
func defaultLinks() (indexes []int, err error) {
	routes, err := netlink.RouteListFiltered(unix.AF_INET, &netlink.Route{Table: unix.RT_TABLE_MAIN}, netlink.RT_FILTER_TABLE)
	if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
		return nil, fmt.Errorf("list routes: %w", err)
	}
	slices.SortStableFunc(routes, func(a, b netlink.Route) int { return cmp.Compare(a.Priority, b.Priority) })
	for _, r := range routes {
		if !isDefault(r) || r.Type != unix.RTN_UNICAST {
			continue
		}
		if r.LinkIndex != 0 {
			indexes = append(indexes, r.LinkIndex)
		}
		for _, hop := range r.MultiPath {
			indexes = append(indexes, hop.LinkIndex)
		}
	}
	return indexes, nil
}

func isDefault(r netlink.Route) bool {
	if r.Dst == nil {
		return true
	}
	ones, _ := r.Dst.Mask.Size()
	return ones == 0 && r.Dst.IP.IsUnspecified()
}

package extiface

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
)

// ErrNoIPv6 says that what was chosen has no IPv6 address that peers can be told.
var ErrNoIPv6 = errors.New("no IPv6 address")

// Follow returns what has become of a choice: the same interface under the name and
// with the MTU that it has at the moment, as long as it has the chosen addresses;
// otherwise what is to be chosen now, by w or, if only the interface's name has
// changed, on that interface. It prefers what there is to what would be better. The
// error says that nothing can be chosen; it is [ErrNoIPv6] if only for want of that.
func Follow(w Wanted, now Interface, ipv6 bool) (Interface, error) {
	all, err := list()
	if err != nil {
		return Interface{}, fmt.Errorf("look at the external interface: %w", err)
	}
	i := slices.IndexFunc(all, func(c candidate) bool {
		return c.index == now.Index || now.Index == 0 && c.name == now.Name
	})
	if i >= 0 && all.keeps(all[i], w, now, ipv6) {
		now.Index, now.Name, now.MTU = all[i].index, all[i].name, all[i].mtu
		now.Local = all.elsewhere(now.PublicIP, now.Address)
		if ipv6 {
			now.LocalV6 = all.elsewhere(now.PublicIPv6, now.AddressV6)
		}
		return now, nil
	}
	next, err := Choose(w)
	if err != nil && i >= 0 && w.byName() {
		// The name that was asked for was this interface's.
		w.Names, w.Patterns, w.CanReach = []string{all[i].name}, nil, netip.Addr{}
		next, err = Choose(w)
	}
	if err != nil || !ipv6 {
		return next, err
	}
	if next, err = next.addIPv6(w); err != nil {
		return Interface{}, fmt.Errorf("%w: %w", ErrNoIPv6, err)
	}
	return next, nil
}

// byName tells whether an interface was asked for by its name.
func (w Wanted) byName() bool {
	return slices.ContainsFunc(w.Names, func(name string) bool {
		_, err := netip.ParseAddr(name)
		return err != nil
	})
}

// keeps tells whether a choice may stay: the interface has its addresses, or the
// host has those that were given elsewhere.
func (all candidates) keeps(c candidate, w Wanted, now Interface, ipv6 bool) bool {
	has := func(own, given netip.Addr) bool { return c.has(own) || own == given && all.have(own) }
	return has(now.Address, w.PublicIP) && (!ipv6 || has(now.AddressV6, w.PublicIPv6)) && all.public(w, now)
}

// has tells whether the interface has an address.
func (c candidate) has(a netip.Addr) bool {
	same := func(has netlink.Addr) bool { return address(has) == a }
	return slices.ContainsFunc(c.addrs, same) || slices.ContainsFunc(c.addrsV6, same)
}

// public tells whether the public addresses still are what the choice made of
// them: one that was given always is.
func (all candidates) public(w Wanted, now Interface) bool {
	return w.PublicIP.IsValid() || now.PublicIP == now.Address
}

// Changes are what has changed from one choice to the next, in words.
func (i Interface) Changes(next Interface) string {
	var words []string
	for _, c := range []struct {
		what        string
		before, now any
	}{
		{"the interface", i.Name, next.Name},
		{"its address", i.Address, next.Address},
		{"its IPv6 address", i.AddressV6, next.AddressV6},
		{"the address on another interface", i.Local, next.Local},
		{"the IPv6 address on another interface", i.LocalV6, next.LocalV6},
		{"its MTU", i.MTU, next.MTU},
	} {
		if c.before != c.now {
			words = append(words, fmt.Sprintf("%s is %v, no longer %v", c.what, c.now, c.before))
		}
	}
	if len(words) == 0 {
		return fmt.Sprintf("%s is another interface of that name", i.Name)
	}
	return strings.Join(words, ", ")
}

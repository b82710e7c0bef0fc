// Package extiface chooses the interface and address by which a host's peers
// reach it.
package extiface

import (
	"errors"
	"fmt"
	"net/netip"
	"regexp"
	"slices"

	"uvxlan/encap"
)

// Interface is the choice.
type Interface struct {
	Name string
	// Index is the interface's number, by which it is known when it is renamed.
	Index int
	MTU   encap.OuterMTU
	// Address is the interface's own, or else Local.
	Address netip.Addr
	// PublicIP is what peers send to: Address, unless a NAT stands between or the
	// host has it elsewhere.
	PublicIP netip.Addr
	// Local is PublicIP if the host has that on another interface, such as lo; the
	// zero Addr otherwise.
	Local netip.Addr
	// AddressV6, PublicIPv6 and LocalV6 are the same of IPv6, once
	// [Interface.AddIPv6] has chosen them.
	AddressV6, PublicIPv6, LocalV6 netip.Addr
}

// Sockets are the addresses that packets are sent from and received at: those that
// peers know, where the host has them.
func (i Interface) Sockets() (v4, v6 netip.Addr) {
	v4, v6 = i.Address, i.AddressV6
	if i.Local.IsValid() {
		v4 = i.Local
	}
	if i.LocalV6.IsValid() {
		v6 = i.LocalV6
	}
	return v4, v6
}

// Wanted is what the user said about it.
type Wanted struct {
	// Names are names or addresses of interfaces, tried in order.
	Names []string
	// Patterns are tried in order after Names, each on the addresses of all
	// interfaces that are up and then on their names.
	Patterns []*regexp.Regexp
	// CanReach is tried last: the interface and address that the kernel would
	// send from to get there.
	CanReach netip.Addr
	// PublicIP overrides the address that peers are told. If nothing else is
	// wanted, it also chooses the interface that has it.
	PublicIP netip.Addr
	// PublicIPv6 overrides the IPv6 address that peers are told.
	PublicIPv6 netip.Addr
}

// Choose finds the interface: by w.Names, w.Patterns and w.CanReach, whatever
// of them fits first; without any of these, the one that has w.PublicIP, else
// that of the default route. An interface that leads to no other host, such as lo,
// is never chosen. Choose looks at the calling thread's network namespace. The error
// says what was tried, why nothing fitted, and what there was to choose from.
func Choose(w Wanted) (Interface, error) {
	all, err := list()
	if err != nil {
		return Interface{}, fmt.Errorf("choose the external interface: %w", err)
	}
	found, err := w.find(all)
	if err != nil {
		return Interface{}, fmt.Errorf("choose the external interface: %w (there are: %s)", err, all)
	}
	found.PublicIP = found.Address
	if w.PublicIP.IsValid() {
		found.PublicIP, found.Local = w.PublicIP, all.elsewhere(w.PublicIP, found.Address)
	}
	return found, nil
}

// elsewhere is a public address that the host has and its interface to the others
// has not; the zero Addr otherwise.
func (all candidates) elsewhere(public, own netip.Addr) netip.Addr {
	if public == own || !all.have(public) {
		return netip.Addr{}
	}
	return public
}

// have tells whether one of the interfaces has an address that peers can be told.
func (all candidates) have(a netip.Addr) bool {
	return slices.ContainsFunc(all, func(c candidate) bool { return c.offers(a) })
}

// find takes the first way that leads somewhere.
func (w Wanted) find(all candidates) (Interface, error) {
	var errs []error
	for _, way := range w.ways(all) {
		found, err := way()
		if err == nil {
			return found, nil
		}
		errs = append(errs, err)
	}
	return Interface{}, errors.Join(errs...)
}

func (w Wanted) ways(all candidates) (ways []func() (Interface, error)) {
	for _, name := range w.Names {
		ways = append(ways, func() (Interface, error) { return all.byNameOrAddress(name, w.PublicIP) })
	}
	for _, p := range w.Patterns {
		ways = append(ways, func() (Interface, error) { return all.byPattern(p, w.PublicIP) })
	}
	if w.CanReach.IsValid() {
		ways = append(ways, func() (Interface, error) { return all.byReach(w.CanReach) })
	}
	switch {
	case len(ways) > 0:
		return ways
	case w.PublicIP.IsValid() && !all.inward(w.PublicIP):
		return append(ways, func() (Interface, error) { return all.byAddress(w.PublicIP) })
	}
	return append(ways, func() (Interface, error) { return all.byDefaultRoute(w.PublicIP) })
}

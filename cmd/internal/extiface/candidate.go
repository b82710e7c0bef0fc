package extiface

import (
	"cmp"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"uvxlan/encap"
)

// candidate is an interface of the host.
type candidate struct {
	name    string
	index   int
	mtu     encap.OuterMTU
	flags   net.Flags
	kind    string         // the kernel's word for its type
	addrs   []netlink.Addr // IPv4, the best first
	addrsV6 []netlink.Addr
}

type candidates []candidate

// list reads all interfaces with their addresses.
func list() (candidates, error) {
	links, err := netlink.LinkList()
	if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
		return nil, fmt.Errorf("list interfaces: %w", err)
	}
	v4, err := addresses(netlink.FAMILY_V4)
	if err != nil {
		return nil, err
	}
	v6, err := addresses(netlink.FAMILY_V6)
	if err != nil {
		return nil, err
	}
	var all candidates
	for _, link := range links {
		a := link.Attrs()
		all = append(all, candidate{a.Name, a.Index, encap.OuterMTU(a.MTU), a.Flags, link.Type(), v4[a.Index], v6[a.Index]})
	}
	return all, nil
}

// addresses are those of a family by the interface's number, the best first.
func addresses(family int) (map[int][]netlink.Addr, error) {
	addrs, err := netlink.AddrList(nil, family)
	if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
		return nil, fmt.Errorf("list addresses: %w", err)
	}
	slices.SortStableFunc(addrs, func(a, b netlink.Addr) int { return cmp.Compare(rank(a), rank(b)) })
	all := map[int][]netlink.Addr{}
	for _, a := range addrs {
		all[a.LinkIndex] = append(all[a.LinkIndex], a)
	}
	return all, nil
}

// rank orders addresses, best first: global ones, then the first of its subnet
// or, with IPv6, what isn't temporary, then permanent ones.
func rank(a netlink.Addr) (r int) {
	if a.Scope != unix.RT_SCOPE_UNIVERSE || a.IP.IsLinkLocalUnicast() {
		r += 4
	}
	if a.Flags&unix.IFA_F_SECONDARY != 0 {
		r += 2
	}
	if a.Flags&unix.IFA_F_PERMANENT == 0 {
		r++
	}
	return r
}

func address(a netlink.Addr) netip.Addr {
	ip, _ := netip.AddrFromSlice(a.IP)
	return ip.Unmap()
}

// fault says why peers can't be told this address; "" if they can.
func fault(a netlink.Addr) string {
	switch {
	case a.Flags&unix.IFA_F_DEPRECATED != 0:
		return "deprecated"
	case a.Scope == unix.RT_SCOPE_HOST:
		return "of this host only"
	}
	return ""
}

// leadsNowhere tells whether packets that are sent by the interface reach no other
// host.
func (c candidate) leadsNowhere() bool { return c.flags&net.FlagLoopback != 0 || c.kind == "dummy" }

// inward tells whether the address is that of an interface that leads nowhere.
func (all candidates) inward(a netip.Addr) bool {
	return slices.ContainsFunc(all, func(c candidate) bool { return c.leadsNowhere() && c.has(a) })
}

// refuse says why an interface that leads nowhere isn't chosen, and what is meant
// instead.
func (all candidates) refuse(c candidate, a netip.Addr) error {
	name := "NAME"
	if i, err := all.byDefaultRoute(netip.Addr{}); err == nil {
		name = i.Name
	}
	if !a.IsValid() {
		a = c.best()
	}
	if !a.IsValid() {
		return fmt.Errorf("%s leads to no other host: name the interface that does, -iface %s", c.name, name)
	}
	return fmt.Errorf("%s leads to no other host: name the interface that does and, if the others know this host by %s, that: -iface %s -public-ip %s",
		c.name, a, name, a)
}

// offers tells whether the interface has an address that peers can be told.
func (c candidate) offers(a netip.Addr) bool {
	same := func(has netlink.Addr) bool { return address(has) == a && fault(has) == "" }
	return slices.ContainsFunc(c.addrs, same) || slices.ContainsFunc(c.addrsV6, same)
}

// best is the interface's best IPv4 address that peers can be told, the zero Addr
// if it has none.
func (c candidate) best() netip.Addr {
	for _, a := range c.addrs {
		if fault(a) == "" {
			return address(a)
		}
	}
	return netip.Addr{}
}

// choose picks the interface's best address, or prefer if it has that. With no
// address of its own it takes prefer if the host has that elsewhere.
func (all candidates) choose(c candidate, prefer netip.Addr) (Interface, error) {
	if c.leadsNowhere() {
		return Interface{}, all.refuse(c, netip.Addr{})
	}
	best := Interface{Name: c.name, Index: c.index, MTU: c.mtu}
	switch {
	case c.offers(prefer) || !c.best().IsValid() && all.have(prefer):
		best.Address = prefer
	case c.best().IsValid():
		best.Address = c.best()
	default:
		return Interface{}, fmt.Errorf("%s has no IPv4 address that peers could be told", c.name)
	}
	return best, nil
}

// String is the interface with all that a choice may depend on.
func (c candidate) String() string {
	var words []string
	for _, a := range c.addrs {
		word := address(a).String()
		if f := fault(a); f != "" {
			word += " " + f
		}
		words = append(words, word)
	}
	if len(words) == 0 {
		words = []string{"no IPv4 address"}
	}
	return fmt.Sprintf("%s (%s) %s", c.name, c.state(), strings.Join(words, ", "))
}

func (c candidate) state() string {
	switch {
	case c.flags&net.FlagUp == 0:
		return "down"
	case c.flags&net.FlagRunning == 0:
		return "no carrier"
	}
	return "up"
}

func (all candidates) String() string {
	var words []string
	for _, c := range all {
		words = append(words, c.String())
	}
	return strings.Join(words, ", ")
}

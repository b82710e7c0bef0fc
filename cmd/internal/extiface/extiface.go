// Package extiface chooses the interface and address by which a host's peers
// reach it.
package extiface

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"uvxlan/encap"
)

// Interface is the choice.
type Interface struct {
	Name string
	MTU  encap.OuterMTU
	// Address is the interface's own, which packets are sent from.
	Address netip.Addr
	// PublicIP is what peers send to: Address, unless a NAT stands between.
	PublicIP netip.Addr
}

// Wanted is what the user said about it.
type Wanted struct {
	// Names are names or addresses of interfaces, tried in order.
	Names []string
	// PublicIP overrides the address that peers are told. Without Names it also
	// chooses the interface that has it.
	PublicIP netip.Addr
}

// Choose finds the interface: the first of w.Names that fits; else the one that
// has w.PublicIP; else that of the default route. The error says what was tried
// and why it was passed over.
func Choose(w Wanted) (Interface, error) {
	found, err := w.find()
	if err != nil {
		return Interface{}, fmt.Errorf("choose the external interface: %w", err)
	}
	found.PublicIP = found.Address
	if w.PublicIP.IsValid() {
		found.PublicIP = w.PublicIP
	}
	return found, nil
}

func (w Wanted) find() (Interface, error) {
	if len(w.Names) == 0 {
		if w.PublicIP.IsValid() {
			return byAddress(w.PublicIP)
		}
		return byDefaultRoute()
	}
	var errs []error
	for _, name := range w.Names {
		found, err := byNameOrAddress(name, w.PublicIP)
		if err == nil {
			return found, nil
		}
		errs = append(errs, err)
	}
	return Interface{}, errors.Join(errs...)
}

func byNameOrAddress(name string, prefer netip.Addr) (Interface, error) {
	if a, err := netip.ParseAddr(name); err == nil {
		return byAddress(a)
	}
	link, err := netlink.LinkByName(name)
	if err != nil {
		return Interface{}, fmt.Errorf("%s: %w (there are %s)", name, err, names())
	}
	return describe(link, prefer)
}

// byAddress finds the interface that has address a, and sends from it.
func byAddress(a netip.Addr) (Interface, error) {
	links, err := netlink.LinkList()
	if err != nil {
		return Interface{}, fmt.Errorf("list interfaces: %w", err)
	}
	for _, link := range links {
		found, err := describe(link, a)
		if err == nil && found.Address == a {
			return found, nil
		}
	}
	return Interface{}, fmt.Errorf("no interface has the address %s (behind a NAT, name the interface as well: -iface)", a)
}

func byDefaultRoute() (Interface, error) {
	routes, err := netlink.RouteListFiltered(unix.AF_INET, &netlink.Route{Table: unix.RT_TABLE_MAIN}, netlink.RT_FILTER_TABLE)
	if err != nil {
		return Interface{}, fmt.Errorf("list routes: %w", err)
	}
	slices.SortStableFunc(routes, func(a, b netlink.Route) int { return cmp.Compare(a.Priority, b.Priority) })
	for _, r := range routes {
		if !isDefault(r) {
			continue
		}
		index := r.LinkIndex
		if index == 0 && len(r.MultiPath) > 0 {
			index = r.MultiPath[0].LinkIndex
		}
		link, err := netlink.LinkByIndex(index)
		if err != nil {
			return Interface{}, fmt.Errorf("the default route's interface: %w", err)
		}
		return describe(link, netip.Addr{})
	}
	return Interface{}, fmt.Errorf("there is no default route: name the interface with -iface (there are %s)", names())
}

func isDefault(r netlink.Route) bool {
	if r.Dst == nil {
		return true
	}
	ones, _ := r.Dst.Mask.Size()
	return ones == 0 && r.Dst.IP.IsUnspecified()
}

// describe picks the interface's address: prefer if it has it, else the best
// by scope and permanence.
func describe(link netlink.Link, prefer netip.Addr) (Interface, error) {
	name := link.Attrs().Name
	addrs, err := netlink.AddrList(link, netlink.FAMILY_V4)
	if err != nil {
		return Interface{}, fmt.Errorf("%s: list addresses: %w", name, err)
	}
	addrs = slices.DeleteFunc(addrs, func(a netlink.Addr) bool { return a.Flags&unix.IFA_F_DEPRECATED != 0 })
	slices.SortStableFunc(addrs, func(a, b netlink.Addr) int { return cmp.Compare(rank(a, prefer), rank(b, prefer)) })
	if len(addrs) == 0 {
		return Interface{}, fmt.Errorf("%s: it has no IPv4 address", name)
	}
	return Interface{Name: name, MTU: encap.OuterMTU(link.Attrs().MTU), Address: address(addrs[0])}, nil
}

// rank orders addresses, best first.
func rank(a netlink.Addr, prefer netip.Addr) (r int) {
	switch {
	case address(a) == prefer:
		return -1
	case a.Scope != unix.RT_SCOPE_UNIVERSE:
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

// names lists the interfaces that are there, for an error's sake.
func names() string {
	links, err := netlink.LinkList()
	if err != nil {
		return "none that could be listed"
	}
	var all []string
	for _, l := range links {
		all = append(all, l.Attrs().Name)
	}
	return strings.Join(all, ", ")
}

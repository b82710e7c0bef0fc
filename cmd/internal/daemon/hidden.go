package daemon

import (
	"fmt"
	"net/netip"
	"net/url"
	"slices"

	"github.com/vishvananda/netlink"

	"uvxlan/cmd/internal/extiface"
	"uvxlan/lease"
)

// checkHidden refuses an overlay whose routes would lead to the underlay: packets
// between hosts would loop, or neither a gateway nor etcd be reached.
func checkHidden(o Options, c *lease.Config, ext extiface.Interface) error {
	routes := c.Allocatable()
	hidden := func(a netip.Addr) (netip.Prefix, bool) {
		i := slices.IndexFunc(routes, func(n netip.Prefix) bool { return n.Contains(a) })
		if i < 0 {
			return netip.Prefix{}, false
		}
		return routes[i], true
	}
	for _, a := range []struct {
		addr        netip.Addr
		field, flag string
	}{{ext.PublicIP, "Network", "-iface"}, {ext.PublicIPv6, "IPv6Network", "-public-ipv6"}} {
		if n, is := hidden(a.addr); is {
			return fmt.Errorf("the public address %s lies inside the overlay network %s: packets between hosts would loop, choose another %s or %s",
				a.addr, n, a.field, a.flag)
		}
	}
	if c.Backend.Type == lease.TypeHostGW {
		return nil // it has no route but those to peers
	}
	for what, addrs := range map[string][]netip.Addr{"the gateway": gateways(ext.Name), "etcd at": etcdAddresses(o)} {
		for _, a := range addrs {
			if n, is := hidden(a); is && !onLink(a, n) {
				return fmt.Errorf("%s %s lies inside the overlay network %s, whose route would hide it: choose another Network, or SubnetMin and SubnetMax that leave its part of the network out",
					what, a, n)
			}
		}
	}
	return nil
}

// gateways are the next hops of the routes by an interface.
func gateways(iface string) (all []netip.Addr) {
	link, err := netlink.LinkByName(iface)
	if err != nil {
		return nil
	}
	routes, err := netlink.RouteList(link, netlink.FAMILY_ALL)
	if err != nil {
		return nil
	}
	for _, r := range routes {
		if a, ok := netip.AddrFromSlice(r.Gw); ok {
			all = append(all, a.Unmap())
		}
	}
	return all
}

// etcdAddresses are the addresses of etcd that are given as such.
func etcdAddresses(o Options) (all []netip.Addr) {
	for _, e := range o.Etcd.Endpoints {
		u, err := url.Parse(e)
		if err != nil {
			continue
		}
		if a, err := netip.ParseAddr(u.Hostname()); err == nil {
			all = append(all, a.Unmap())
		}
	}
	return all
}

// onLink tells whether the kernel has a narrower route to an address than n, which
// it prefers, or the address is the host's own.
func onLink(a netip.Addr, n netip.Prefix) bool {
	found, err := netlink.RouteGetWithOptions(a.AsSlice(), &netlink.RouteGetOptions{FIBMatch: true})
	if err != nil || len(found) == 0 || found[0].Dst == nil {
		return false
	}
	bits, _ := found[0].Dst.Mask.Size()
	return bits > n.Bits()
}

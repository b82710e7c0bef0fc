package lease

import "net/netip"

// Networks returns the networks of the containers, one for each enabled family.
func (c *Config) Networks() []netip.Prefix {
	if c.EnableIPv6 {
		return []netip.Prefix{c.Network, c.IPv6Network}
	}
	return []netip.Prefix{c.Network}
}

// Allocatable returns the fewest prefixes that have all subnets that hosts can
// be given: the networks, or less of them where SubnetMin and SubnetMax say so.
// The slice is the caller's.
func (c *Config) Allocatable() []netip.Prefix {
	all := c.ipv4().allocatable()
	if c.EnableIPv6 {
		all = append(all, c.ipv6().allocatable()...)
	}
	return all
}

// allocatable includes the first subnet, although it is skipped unless
// SubnetMin says otherwise. Without it the network would fall into many parts.
func (p pool) allocatable() []netip.Prefix {
	if p.bits == 0 || !p.first.IsValid() {
		return []netip.Prefix{p.network}
	}
	first := p.first
	if usual, _ := following(netip.PrefixFrom(p.network.Addr(), p.bits)); first == usual.Addr() {
		first = p.network.Addr()
	}
	return covering(first, lastAddr(netip.PrefixFrom(p.last, p.bits)))
}

// covering returns the fewest prefixes that have exactly the addresses from
// first to last.
func covering(first, last netip.Addr) (all []netip.Prefix) {
	for first.IsValid() && !last.Less(first) {
		widest := netip.PrefixFrom(first, first.BitLen())
		for widest.Bits() > 0 {
			wider := netip.PrefixFrom(first, widest.Bits()-1)
			if wider.Masked() != wider || last.Less(lastAddr(wider)) {
				break
			}
			widest = wider
		}
		all = append(all, widest)
		first = lastAddr(widest).Next()
	}
	return all
}

// Subnets returns the lease's subnets, of either family.
func (l Lease) Subnets() []netip.Prefix { return subnetsIn(l) }

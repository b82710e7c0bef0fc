package lease

import (
	"encoding/json"
	"fmt"
	"net/netip"
)

// familyRules are flannel's rules for one address family.
type familyRules struct {
	name, prefix string // "IPv4"; what the field names start with
	example      string
	width        int // bits of an address
	usual        int // subnet length where the network has room for it
	smallest     int // longest network prefix that is useful
}

var (
	ipv4Rules = familyRules{"IPv4", "", "10.5.0.0/16", 32, 24, 28}
	ipv6Rules = familyRules{"IPv6", "IPv6", "2001:cafe:42::/56", 128, 64, 124}
)

type networkFields struct {
	network, subnetLen, subnetMin, subnetMax json.RawMessage
}

// parse reports what is wrong with each field, even if another field that it
// depends on is wrong too.
func (r familyRules) parse(p *problems, raw networkFields) pool {
	network, err := decodePrefix(raw.network)
	if err != nil || network.Addr().BitLen() != r.width {
		p.add(r.prefix+"Network", raw.network, fmt.Sprintf("must be an %s network such as %q", r.name, r.example))
		network = netip.Prefix{}
	}
	all := pool{network: network, bits: r.subnetLen(p, network, raw)}
	if all.bits > 0 {
		first, _ := following(netip.PrefixFrom(network.Addr(), all.bits))
		all.first = first.Addr()
		all.last = netip.PrefixFrom(lastAddr(network), all.bits).Masked().Addr()
	}
	r.bound(p, "SubnetMin", raw.subnetMin, all, &all.first)
	r.bound(p, "SubnetMax", raw.subnetMax, all, &all.last)
	if all.bits > 0 && all.last.Less(all.first) {
		p.add(r.prefix+"SubnetMax", raw.subnetMax, fmt.Sprintf("must not be below %sSubnetMin %s", r.prefix, all.first))
	}
	return all
}

// subnetLen returns the prefix length of a host's subnet, 0 if it isn't known.
func (r familyRules) subnetLen(p *problems, network netip.Prefix, raw networkFields) int {
	n := 0
	if !absent(raw.subnetLen) && !decodeInt(p, r.prefix+"SubnetLen", raw.subnetLen, 0, r.width-2, &n) {
		return 0
	}
	least := network.Bits() + 2
	switch {
	case !network.IsValid():
		return 0
	case n == 0 && network.Bits() > r.smallest:
		p.add(r.prefix+"Network", raw.network, fmt.Sprintf("must have a prefix of at most /%d to have room for subnets", r.smallest))
		return 0
	case n == 0:
		return max(r.usual, least)
	case n < least:
		p.add(r.prefix+"SubnetLen", raw.subnetLen, fmt.Sprintf("must be at least %d, so that %s has room for four subnets", least, network))
		return 0
	}
	return n
}

func (r familyRules) bound(p *problems, field string, raw json.RawMessage, all pool, to *netip.Addr) {
	if absent(raw) {
		return
	}
	a, err := decodeAddr(raw)
	switch {
	case err != nil || a.BitLen() != r.width || a.Zone() != "":
		p.add(r.prefix+field, raw, "must be an "+r.name+" address")
	case all.network.IsValid() && !all.network.Contains(a):
		p.add(r.prefix+field, raw, "must lie inside "+all.network.String())
	case all.bits > 0 && netip.PrefixFrom(a, all.bits).Masked().Addr() != a:
		p.add(r.prefix+field, raw, fmt.Sprintf("must be the first address of a /%d subnet", all.bits))
	default:
		*to = a
	}
}

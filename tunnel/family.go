package tunnel

import "net/netip"

// family is an address family, as an index.
type family uint8

const (
	ipv4 family = iota
	ipv6

	families
)

func familyOf(a netip.Addr) family {
	if a.Is4() {
		return ipv4
	}
	return ipv6
}

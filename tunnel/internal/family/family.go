// Package family is the two address families, as indices.
package family

import "net/netip"

// Family is an address family, as an index.
type Family uint8

// The families, and how many there are.
const (
	IPv4 Family = iota
	IPv6

	Count
)

// Of is the family of an address.
func Of(a netip.Addr) Family {
	if a.Is4() {
		return IPv4
	}
	return IPv6
}

// Package leasepeer reads peers out of leases.
package leasepeer

import (
	"fmt"
	"net/netip"

	"uvxlan/lease"
	"uvxlan/tunnel/internal/family"
)

// Side is what a lease says of one address family.
type Side struct {
	lease.Lease
	Family family.Family
}

// Subnet is the family's; the zero Prefix if the lease has none.
func (s Side) Subnet() netip.Prefix {
	if s.Family == family.IPv6 {
		return s.IPv6Subnet
	}
	return s.Lease.Subnet
}

// Host is the owner's address on the family's underlay.
func (s Side) Host() netip.Addr {
	if s.Family == family.IPv6 {
		return s.Attrs.PublicIPv6
	}
	return s.Attrs.PublicIP
}

// VXLAN is what the family's VTEP needs.
func (s Side) VXLAN() (lease.VXLANData, error) {
	if s.Family == family.IPv6 {
		return s.Attrs.VXLANv6()
	}
	return s.Attrs.VXLAN()
}

// Read reads the peers that an update brings, and the subnets that have none any
// longer: those of deleted leases, and those of leases that read refuses, each
// with its error. Each family of a lease is a peer of its own; without v6 the
// IPv6 subnets are nobody's business.
func Read[P any](u lease.Update, v6 bool, read func(Side) (P, error)) (peers []P, gone []netip.Prefix, errs []error) {
	each := func(leases []lease.Lease, do func(Side)) {
		for _, l := range leases {
			do(Side{l, family.IPv4})
			if v6 && l.IPv6Subnet.IsValid() {
				do(Side{l, family.IPv6})
			}
		}
	}
	each(u.Deleted, func(s Side) { gone = append(gone, s.Subnet().Masked()) })
	each(u.Leases, func(s Side) {
		p, err := read(s)
		if err != nil {
			errs = append(errs, err)
			gone = append(gone, s.Subnet().Masked())
			return
		}
		peers = append(peers, p)
	})
	return peers, gone, errs
}

// Unclaimed tells whether the lease is reserved for a host that hasn't taken it yet.
func (s Side) Unclaimed() bool { return s.Permanent && s.Attrs.BackendType == "" }

// Refused is why a side is no peer.
func (s Side) Refused(format string, args ...any) error {
	return &lease.PeerError{Subnet: s.Subnet(), Underlay: s.Host(), Err: fmt.Errorf(format, args...)}
}

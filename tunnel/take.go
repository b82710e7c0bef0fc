package tunnel

import (
	"net/netip"

	"uvxlan/lease"
)

// side is what a lease says of one address family.
type side struct {
	lease.Lease
	family family
}

// subnet is the family's; the zero Prefix if the lease has none.
func (s side) subnet() netip.Prefix {
	if s.family == ipv6 {
		return s.IPv6Subnet
	}
	return s.Subnet
}

// host is the owner's address on the family's underlay.
func (s side) host() netip.Addr {
	if s.family == ipv6 {
		return s.Attrs.PublicIPv6
	}
	return s.Attrs.PublicIP
}

func (s side) vxlan() (lease.VXLANData, error) {
	if s.family == ipv6 {
		return s.Attrs.VXLANv6()
	}
	return s.Attrs.VXLAN()
}

// take reads the peers that an update brings, and the subnets that have none any
// longer: those of deleted leases, and those of leases that read refuses, each
// with its error. Each family of a lease is a peer of its own; without v6 the
// IPv6 subnets are nobody's business.
func take[P any](u lease.Update, v6 bool, read func(side) (P, error)) (peers []P, gone []netip.Prefix, errs []error) {
	each := func(leases []lease.Lease, do func(side)) {
		for _, l := range leases {
			do(side{l, ipv4})
			if v6 && l.IPv6Subnet.IsValid() {
				do(side{l, ipv6})
			}
		}
	}
	each(u.Deleted, func(s side) { gone = append(gone, s.subnet().Masked()) })
	each(u.Leases, func(s side) {
		p, err := read(s)
		if err != nil {
			errs = append(errs, err)
			gone = append(gone, s.subnet().Masked())
			return
		}
		peers = append(peers, p)
	})
	return peers, gone, errs
}

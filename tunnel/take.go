package tunnel

import (
	"net/netip"

	"uvxlan/lease"
)

// take reads the peers that an update brings, and the subnets that have none any
// longer: those of deleted leases, and those of leases that read refuses, each
// with its error.
func take[P any](u lease.Update, read func(lease.Lease) (P, error)) (peers []P, gone []netip.Prefix, errs []error) {
	for _, l := range u.Deleted {
		gone = append(gone, l.Subnet.Masked())
	}
	for _, l := range u.Leases {
		p, err := read(l)
		if err != nil {
			errs = append(errs, err)
			gone = append(gone, l.Subnet.Masked())
			continue
		}
		peers = append(peers, p)
	}
	return peers, gone, errs
}

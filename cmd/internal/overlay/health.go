package overlay

import (
	"net/netip"
	"time"

	"uvxlan/cmd/internal/health"
)

var _ health.Network = (*Overlay)(nil)

// ProbeTargets implements [health.Network]: each peer's VTEP has the first address of
// its subnet, as ours has. Of direct peers with IPv6 the hosts are asked.
func (v *Overlay) ProbeTargets() []health.Target {
	router, _ := v.inForce()
	mtu := v.MTU()
	peers := router.Peers()
	targets := make([]health.Target, len(peers))
	for i, p := range peers {
		t := health.Target{Subnet: p.Subnet, Host: p.Underlay, Address: p.Subnet.Addr(), Size: mtu}
		switch direct := router.Path(p.Subnet).Direct; {
		case !direct:
			t.Size = int(router.PathMTU(p.Subnet))
		case p.Subnet.Addr().Is6():
			// The first address of an IPv6 subnet is also its routers' anycast address
			// (RFC 4291, section 2.6.1), for the bridge's sake. As that one Linux takes
			// what arrives by another interface than the VTEP's, and its answer leaves by
			// that interface's routes.
			t.Address = p.Underlay
		}
		targets[i] = t
	}
	return targets
}

// ProbeSources implements [health.Network].
func (v *Overlay) ProbeSources() []netip.Addr { return v.link().Addresses }

// Carries implements [health.Network].
func (v *Overlay) Carries() bool { return v.carries() }

// Heard implements [health.Network].
func (v *Overlay) Heard(subnet netip.Prefix) time.Time {
	router, _ := v.inForce()
	return router.Traffic(subnet).LastSeen
}

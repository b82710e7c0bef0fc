package hostgw

import (
	"net/netip"
	"time"

	"uvxlan/cmd/internal/health"
)

var _ health.Network = (*Gateway)(nil)

// ProbeTargets implements [health.Network]. There are no VTEPs: the hosts themselves
// are asked.
func (g *Gateway) ProbeTargets() []health.Target {
	mtu := g.MTU()
	list := g.inForce().List()
	targets := make([]health.Target, len(list))
	for i, p := range list {
		targets[i] = health.Target{Subnet: p.Subnet, Host: p.Underlay, Address: p.Underlay, Size: mtu}
	}
	return targets
}

// ProbeSources implements [health.Network]: the kernel chooses.
func (g *Gateway) ProbeSources() []netip.Addr {
	return []netip.Addr{netip.IPv4Unspecified(), netip.IPv6Unspecified()}
}

// Carries implements [health.Network].
func (g *Gateway) Carries() bool { return g.isLoaded() }

// Heard implements [health.Network]: the kernel carries the packets.
func (g *Gateway) Heard(netip.Prefix) time.Time { return time.Time{} }

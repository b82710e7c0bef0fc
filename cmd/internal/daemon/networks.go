package daemon

import (
	"net/netip"
	"slices"

	"uvxlan/cmd/internal/hoststate"
	"uvxlan/lease"
	"uvxlan/tunnel"
	"uvxlan/tunnel/kroute"
)

// recordNetworks notes for which networks there will be routes and rules on the
// host, since those of other daemons look the same. Kernel routes to the networks
// of an earlier run go.
func recordNetworks(o Options, c *lease.Config, own lease.Lease) error {
	state, err := hoststate.Load(o.StateDir)
	if err != nil {
		return err
	}
	now := networksOf(c, own)
	removeRoutes(o, earlier(state.Networks, now))
	state.Networks = now
	return state.Save(o.StateDir)
}

func networksOf(c *lease.Config, own lease.Lease) (all []hoststate.Network) {
	for _, n := range []hoststate.Network{{Network: c.Network, Subnet: own.Subnet}, {Network: c.IPv6Network, Subnet: own.IPv6Subnet}} {
		if n.Network.IsValid() && n.Subnet.IsValid() {
			all = append(all, n)
		}
	}
	return all
}

// earlier are the networks of before that are no longer there.
func earlier(before, now []hoststate.Network) (networks []netip.Prefix) {
	for _, n := range before {
		if !slices.ContainsFunc(now, func(o hoststate.Network) bool { return o.Network == n.Network }) {
			networks = append(networks, n.Network)
		}
	}
	return networks
}

func removeRoutes(o Options, networks []netip.Prefix) {
	if len(networks) == 0 {
		return
	}
	routes, err := kroute.RemoveLeftover(tunnel.RouteProtocol, networks...)
	if len(routes) > 0 {
		o.Logger.Info("removed routes into an earlier run's network", "count", len(routes))
	}
	if err != nil {
		o.Logger.Warn("routes into an earlier run's network may be left", "error", err)
	}
}

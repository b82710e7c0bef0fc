package daemon

import (
	"errors"
	"net/netip"
	"slices"

	"uvxlan/cmd/internal/handover"
	"uvxlan/cmd/internal/hoststate"
	"uvxlan/lease"
	"uvxlan/tunnel/kroute"
)

// openRecord makes the state directory's manifest ready for use. A damaged one is no
// reason to leave the containers without a network.
func openRecord(o Options, before *handover.State) error {
	if before != nil {
		hoststate.Resume(o.StateDir, before.Record)
	}
	err := hoststate.SetAside(o.StateDir)
	if errors.Is(err, hoststate.ErrDamaged) {
		o.Logger.Warn("what an earlier run has left on the host isn't known, and may stay", "error", err, "set_aside", hoststate.Damaged(o.StateDir))
		return nil
	}
	return err
}

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
	return hoststate.Update(o.StateDir, func(s *hoststate.State) {
		s.Networks = now
		s.Firewall = s.Firewall || o.Firewall.Masquerade || o.Firewall.Forward // an earlier run's stay
	})
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
	routes, err := kroute.RemoveLeftover(kroute.Protocol, networks...)
	if len(routes) > 0 {
		o.Logger.Info("removed routes into an earlier run's network", "count", len(routes))
	}
	if err != nil {
		o.Logger.Warn("routes into an earlier run's network may be left", "error", err)
	}
}

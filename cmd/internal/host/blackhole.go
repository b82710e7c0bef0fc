package daemon

import (
	"net/netip"

	"uvxlan/cmd/internal/blackhole"
	"uvxlan/cmd/internal/hoststate"
	"uvxlan/lease"
)

// addBlackhole makes the blackhole routes of our subnets, if they are wanted.
func addBlackhole(o Options, own lease.Lease) error {
	if !o.Blackhole {
		return nil
	}
	err := hoststate.Update(o.StateDir, func(s *hoststate.State) { s.Blackhole, s.BlackholeV6 = own.Subnet, own.IPv6Subnet })
	if err == nil {
		err = blackhole.Add(own.Subnet)
	}
	if err == nil && own.IPv6Subnet.IsValid() {
		err = blackhole.Add(own.IPv6Subnet)
	}
	return err
}

// removeBlackhole removes the routes that this daemon has made, or an earlier one
// that was killed.
func removeBlackhole(o Options) {
	state, err := hoststate.Load(o.StateDir)
	if err != nil || !state.Blackhole.IsValid() && !state.BlackholeV6.IsValid() {
		return // what can't be read was reported at the start
	}
	for _, subnet := range []*netip.Prefix{&state.Blackhole, &state.BlackholeV6} {
		if _, err := blackhole.Remove(*subnet); err != nil {
			o.Logger.Warn("a blackhole route may be left", "error", err)
			continue
		}
		*subnet = netip.Prefix{}
	}
	if err := state.Save(o.StateDir); err != nil {
		o.Logger.Warn("a blackhole route may be left", "error", err)
	}
}

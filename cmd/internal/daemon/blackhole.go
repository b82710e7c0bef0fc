package daemon

import (
	"net/netip"

	"uvxlan/cmd/internal/blackhole"
	"uvxlan/cmd/internal/hoststate"
)

// addBlackhole makes our subnet's blackhole route, if it is wanted.
func addBlackhole(o Options, subnet netip.Prefix) error {
	if !o.Blackhole {
		return nil
	}
	if err := hoststate.Update(o.StateDir, func(s *hoststate.State) { s.Blackhole = subnet }); err != nil {
		return err
	}
	return blackhole.Add(subnet)
}

// removeBlackhole removes the route that this daemon has made, or an earlier one
// that was killed.
func removeBlackhole(o Options) {
	state, err := hoststate.Load(o.StateDir)
	if err != nil || !state.Blackhole.IsValid() {
		return // what can't be read was reported at the start
	}
	_, err = blackhole.Remove(state.Blackhole)
	if err == nil {
		state.Blackhole = netip.Prefix{}
		err = state.Save(o.StateDir)
	}
	if err != nil {
		o.Logger.Warn("a blackhole route may be left", "error", err)
	}
}

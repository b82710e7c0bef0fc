package host

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"time"

	"uvxlan/cmd/internal/blackhole"
	"uvxlan/cmd/internal/hoststate"
	"uvxlan/tunnel/kroute"
)

// Blackholes is the part for the blackhole routes of our subnets. They are noted in
// the state directory first, since they outlive a daemon that is killed.
func Blackholes(stateDir string, subnets []netip.Prefix) Part {
	return Part{
		Name: "blackhole-route", Interval: 30 * time.Second,
		Wakes: func(e Event) bool {
			return e.Kind == Route && e.Protocol == kroute.Protocol
		},
		Check: func(context.Context) (faults []Fault) {
			for _, n := range subnets {
				there, err := blackhole.Exists(n)
				switch {
				case err != nil:
					faults = append(faults, Fault{What: err.Error()})
				case !there:
					faults = append(faults, Fault{What: fmt.Sprintf("the blackhole route to %s is missing", n)})
				}
			}
			return faults
		},
		Repair: func(context.Context) error {
			err := hoststate.Update(stateDir, func(s *hoststate.State) {
				for _, n := range subnets {
					if n.Addr().Is4() {
						s.Blackhole = n
					} else {
						s.BlackholeV6 = n
					}
				}
			})
			if err != nil {
				return err
			}
			for _, n := range subnets {
				if err := blackhole.Add(n); err != nil {
					return err
				}
			}
			return nil
		},
	}
}

// RemoveBlackholes removes the blackhole routes that this daemon has made, or an
// earlier one that was killed.
func RemoveBlackholes(stateDir string, log *slog.Logger) {
	state, err := hoststate.Load(stateDir)
	if err != nil || !state.Blackhole.IsValid() && !state.BlackholeV6.IsValid() {
		return // what can't be read was reported at the start
	}
	for _, subnet := range []*netip.Prefix{&state.Blackhole, &state.BlackholeV6} {
		if _, err := blackhole.Remove(*subnet); err != nil {
			log.Warn("a blackhole route may be left", "error", err)
			continue
		}
		*subnet = netip.Prefix{}
	}
	err = hoststate.Update(stateDir, func(s *hoststate.State) { s.Blackhole, s.BlackholeV6 = state.Blackhole, state.BlackholeV6 })
	if err != nil {
		log.Warn("a blackhole route may be left", "error", err)
	}
}

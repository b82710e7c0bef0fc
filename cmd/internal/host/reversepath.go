package host

import (
	"context"
	"fmt"
	"log/slog"
	"path/filepath"
	"time"

	"uvxlan/cmd/internal/hoststate"
	"uvxlan/cmd/internal/sysctl"
)

// Values of rp_filter (Documentation/networking/ip-sysctl.rst).
const (
	rpStrict = "1"
	rpLoose  = "2"
)

// ReversePath is the part for an interface's reverse-path filter. It must be loose
// where packets of peers' containers arrive without VXLAN while our route to them
// leads into the device: a strict filter would drop them silently.
// iface returns the interface's name at the moment.
func ReversePath(stateDir string, iface func() string) Part {
	f := reversePath{stateDir, iface}
	return Part{Name: "reverse-path", Check: f.check, Repair: f.repair, Wakes: Is(Setting), Interval: 5 * time.Second}
}

type reversePath struct {
	stateDir string
	iface    func() string
}

func (f reversePath) setting() string { return filepath.Join("ipv4/conf", f.iface(), "rp_filter") }

// strict returns the interface's own setting and whether the filter is strict: the
// looser of the interface's and of that for all interfaces counts. One that is gone
// has no filter.
func (f reversePath) strict() (own string, is bool, err error) {
	all, _, err := sysctl.Read("ipv4/conf/all/rp_filter")
	if err != nil {
		return "", false, err
	}
	own, there, err := sysctl.Read(f.setting())
	return own, there && max(all, own) == rpStrict, err
}

func (f reversePath) check(context.Context) []Fault {
	_, strict, err := f.strict()
	switch {
	case err != nil:
		return []Fault{{What: fmt.Sprintf("whether the reverse-path filter drops packets of on-link peers is not known: %v", err)}}
	case strict:
		return []Fault{{
			What:   fmt.Sprintf("the reverse-path filter of %s is strict, which drops packets of on-link peers", f.iface()),
			Remedy: "sysctl -w net/" + f.setting() + "=2",
			Stops:  true,
		}}
	}
	return nil
}

// repair changes the interface's own setting, which is enough.
func (f reversePath) repair(context.Context) error {
	before, strict, err := f.strict()
	if err != nil || !strict {
		return err
	}
	change := hoststate.Sysctl{Path: f.setting(), Before: before, Set: rpLoose}
	if err := hoststate.Update(f.stateDir, func(s *hoststate.State) { s.Record(change) }); err != nil {
		return err
	}
	return sysctl.Write(change.Path, rpLoose)
}

// RestoreSysctls undoes what a daemon changed and didn't restore: this one when
// it ends, or an earlier one that was killed.
func RestoreSysctls(stateDir string, log *slog.Logger) {
	restored, err := hoststate.RestoreSysctls(stateDir)
	for _, c := range restored {
		log.Info("restored", "sysctl", c.Path, "value", c.Before)
	}
	if err != nil {
		log.Warn("what was changed on the host is not restored", "error", err)
	}
}

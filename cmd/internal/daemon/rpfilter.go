package daemon

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"uvxlan/cmd/internal/hoststate"
)

// Values of rp_filter (Documentation/networking/ip-sysctl.rst).
const (
	rpStrict = "1"
	rpLoose  = "2"
)

// loosenReversePath lets packets of peers' containers in that arrive on the
// external interface without VXLAN, while our route to them leads into the
// device: a strict reverse-path filter would drop them in silence. It changes
// the interface's own setting, which is enough since the looser of the two
// counts, and nothing where the filter isn't strict.
func loosenReversePath(stateDir, iface string) (*hoststate.Sysctl, error) {
	own := filepath.Join("ipv4/conf", iface, "rp_filter")
	all, err := readSysctl("ipv4/conf/all/rp_filter")
	if err != nil {
		return nil, err
	}
	before, err := readSysctl(own)
	if err != nil || max(all, before) != rpStrict {
		return nil, err
	}
	change := hoststate.Sysctl{Path: own, Before: before, Set: rpLoose}
	if err := hoststate.Update(stateDir, func(s *hoststate.State) { s.Record(change) }); err != nil {
		return nil, err
	}
	return &change, os.WriteFile(filepath.Join("/proc/sys/net", own), []byte(rpLoose), 0)
}

// restoreSysctls undoes what a daemon changed and didn't restore: this one when
// it ends, or an earlier one that was killed.
func restoreSysctls(o Options) {
	restored, err := hoststate.RestoreSysctls(o.StateDir)
	for _, c := range restored {
		o.Logger.Info("restored", "sysctl", c.Path, "value", c.Before)
	}
	if err != nil {
		o.Logger.Warn("what was changed on the host is not restored", "error", err)
	}
}

// readSysctl returns a variable's value, "" if this kernel has none of the name.
func readSysctl(path string) (string, error) {
	text, err := os.ReadFile(filepath.Join("/proc/sys/net", path))
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	return strings.TrimSpace(string(text)), err
}

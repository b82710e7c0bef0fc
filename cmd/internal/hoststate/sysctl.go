package hoststate

import (
	"errors"
	"slices"

	"uvxlan/cmd/internal/sysctl"
)

// Sysctl is a variable that was changed.
type Sysctl struct {
	// Path lies below /proc/sys/net, such as "ipv4/conf/eth0/rp_filter".
	Path string `json:"path"`
	// Before is the value that was found, and Set the one that was written.
	Before string `json:"before"`
	Set    string `json:"set"`
}

// Record notes that a variable is about to be changed. If its value is the one
// that an earlier run has set, that run's Before stays.
func (s *State) Record(c Sysctl) {
	i := slices.IndexFunc(s.Sysctls, func(o Sysctl) bool { return o.Path == c.Path })
	switch {
	case i < 0:
		s.Sysctls = append(s.Sysctls, c)
	case s.Sysctls[i].Set == c.Before:
		s.Sysctls[i].Set = c.Set
	default:
		s.Sysctls[i] = c
	}
}

// RestoreSysctls restores all variables in the manifest of the state directory.
// It takes them out of the manifest, except those that can't be restored. It
// returns those that were still in force.
func RestoreSysctls(dir string) ([]Sysctl, error) {
	s, err := Load(dir)
	if err != nil || len(s.Sysctls) == 0 {
		return nil, err
	}
	var restored, kept []Sysctl
	var errs []error
	for _, c := range s.Sysctls {
		inForce, err := c.InForce()
		if err == nil && inForce {
			err = c.Restore()
		}
		switch {
		case err != nil:
			errs, kept = append(errs, err), append(kept, c)
		case inForce:
			restored = append(restored, c)
		}
	}
	errs = append(errs, Update(dir, func(s *State) { s.Sysctls = kept }))
	return restored, errors.Join(errs...)
}

// InForce tells whether the variable still has the value that was set. A
// variable that is gone, for example with its interface, hasn't.
func (c Sysctl) InForce() (bool, error) {
	now, there, err := sysctl.Read(c.Path)
	return there && now == c.Set, err
}

// Restore gives the variable back the value that it had, unless somebody has
// changed it since.
func (c Sysctl) Restore() error {
	inForce, err := c.InForce()
	if err != nil || !inForce {
		return err
	}
	return sysctl.Write(c.Path, c.Before)
}

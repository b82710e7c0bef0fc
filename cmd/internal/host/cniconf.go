package host

import (
	"context"
	"errors"
	"fmt"

	"uvxlan/cmd/internal/cniconf"
	"uvxlan/cmd/internal/hoststate"
)

// CNIConfig is the part for the CNI configuration at path. want returns what it
// should say at the moment. Where a file beside it has flannel's plugin connect the
// containers, none is written. The path is noted in the state directory first, since
// the file outlives the daemon.
func CNIConfig(stateDir, path string, want func() cniconf.Config) Part {
	return Part{
		Name: "cni-config",
		Check: func(context.Context) []Fault {
			other, err := cniconf.Flannel(path)
			if err == nil && other != "" {
				return nil
			}
			written, writtenErr := want().Written(path)
			switch err = errors.Join(err, writtenErr); {
			case err != nil:
				return []Fault{{What: err.Error(), Stops: true}}
			case !written:
				return []Fault{{What: fmt.Sprintf("%s doesn't have this host's subnet, by which the container runtime gives addresses", path), Stops: true}}
			}
			return nil
		},
		Repair: func(context.Context) error {
			err := hoststate.Update(stateDir, func(s *hoststate.State) { s.CNIConfig = path })
			return errors.Join(want().Write(path), err)
		},
	}
}

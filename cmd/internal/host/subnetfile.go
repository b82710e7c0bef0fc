package host

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"uvxlan/cmd/internal/hoststate"
	"uvxlan/cmd/internal/subnetfile"
)

// SubnetFile is the part for the subnet file at path. want returns what the file
// should say at the moment. The path is noted in the state directory first, since
// the file outlives the daemon. right is called when the file is as wanted.
func SubnetFile(stateDir, path string, want func() subnetfile.File, right func()) Part {
	return Part{
		Name: "subnet-file",
		Check: func(context.Context) []Fault {
			now, err := subnetfile.Read(path)
			switch {
			case err != nil:
				return []Fault{{What: err.Error(), Stops: true}}
			case now != want():
				return []Fault{{What: fmt.Sprintf("%s doesn't have this host's subnet, by which the container runtime gives addresses", path), Stops: true}}
			}
			right()
			return nil
		},
		Repair: func(context.Context) error {
			note := func(at time.Time) error {
				return hoststate.Update(stateDir, func(s *hoststate.State) { s.SubnetFile, s.SubnetFileTime = path, at })
			}
			recorded := note(time.Time{})
			if err := want().Write(path); err != nil {
				return errors.Join(err, recorded)
			}
			if info, err := os.Stat(path); err == nil {
				recorded = errors.Join(recorded, note(info.ModTime()))
			}
			return recorded
		},
	}
}

package host

import (
	"context"

	"uvxlan/cmd/internal/hoststate"
)

// Record is the part for the manifest in the state directory, from which a cleanup
// knows what to remove. The network works without it.
func Record(stateDir string) Part {
	return Part{
		Name: "record",
		Check: func(context.Context) []Fault {
			if err := hoststate.Unwritten(stateDir); err != nil {
				return []Fault{{
					What:   "what is on the host can't be noted for the cleanup: " + err.Error(),
					Remedy: "make room, or choose another -state-dir",
				}}
			}
			return nil
		},
		Repair: func(context.Context) error { return hoststate.Retry(stateDir) },
	}
}

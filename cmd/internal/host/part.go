package host

import (
	"context"
	"time"
)

// Part is one thing on the host that somebody else may change.
type Part struct {
	// Name tells it from other parts in the status, the log and the metrics, such
	// as "route".
	Name string
	// Check returns what isn't as wanted, nothing if all is well. It changes
	// nothing.
	Check func(ctx context.Context) []Fault
	// Repair mends what Check has found, as far as that is ours to mend; nil if
	// none of it is. Its error says why it could not be done. It is called again
	// at the next look if the fault stays.
	Repair func(ctx context.Context) error
	// Wakes tells whether an event asks for a look; nil means that none does. All
	// parts' events wait while it is called.
	Wakes func(Event) bool
	// Interval is the time after which the part is looked at in any case; 0 means
	// DefaultInterval.
	Interval time.Duration
}

// DefaultInterval is the Interval of a part that has none of its own.
const DefaultInterval = 2 * time.Second

// Fault is something that isn't as wanted.
type Fault struct {
	// What says what is wrong, in words, without the part's name.
	What string
	// Remedy is what the operator can do about it, best a command; empty if the
	// daemon mends it or nobody can.
	Remedy string
	// Stops says that the containers' packets don't pass while it lasts.
	Stops bool
	// Starting marks what every start begins with: it passes, and isn't logged.
	Starting bool
}

// String is the fault with its remedy.
func (f Fault) String() string {
	if f.Remedy == "" {
		return f.What
	}
	return f.What + ": " + f.Remedy
}

// Finding is a fault that a part has at the moment.
type Finding struct {
	Fault
	// Part is the part's name.
	Part string
	// Since is when the fault was first seen.
	Since time.Time
}

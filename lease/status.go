package lease

import (
	"sync"
	"time"
)

// Status is a manager's health at a moment.
type Status struct {
	// Connected says whether the registry answered last time.
	Connected bool
	// Since is when Connected last changed; zero before the first attempt.
	Since time.Time
	// Err is why the registry is not connected.
	Err error
	// WriteErr is why a registry that answers refuses to write our lease; nil if
	// it doesn't.
	WriteErr error
	// Failures counts the attempts that have failed so far. LastErr is why the
	// last of them did, and LastErrAt when. Both stay, however long the registry
	// has answered since.
	Failures  uint64
	LastErr   error
	LastErrAt time.Time
	// Lease is the lease that Run keeps; zero outside Run.
	Lease Lease
	// Renewed is when this process, or the one that handed Lease over to it, last
	// took, renewed or restored Lease.
	Renewed time.Time
	// Conflict says in words that another host claims our subnet as well and that
	// both write the entry. It is "" if none does.
	Conflict string
	// Refused says in words why the manager waits for the registry although an
	// earlier run has stored a lease. It is "" if it doesn't.
	Refused string
	// Unassigned says in words why an [Assigner] has no subnets for this host any
	// longer, so that the other hosts don't send here. It is "" if it has them.
	Unassigned string
	// ConfigChange says in words how the configuration in the registry differs
	// from the one in force. It is "" if it doesn't.
	ConfigChange string
	// Watched is the time since which the leases are watched without a gap. It is
	// zero while they aren't watched: what Run reported last may be out of date
	// then.
	Watched time.Time
	// AsOf is the moment at which the leases that Run reported last were all
	// there were, if they aren't watched. That is when the watch ended. Stored
	// says that an earlier run stored the leases; then it is when that run's
	// watch ended. AsOf is zero while the leases are watched, and before.
	AsOf   time.Time
	Stored bool
	// Heard is when Run last heard of any lease, its own included; zero before.
	Heard time.Time
}

// Status returns the manager's health. It may be called at any time.
func (m *Manager) Status() Status {
	var s Status
	m.outage.fill(&s)
	m.watch.fill(&s)
	s.Conflict = m.conflict()
	if words := m.configChange.Load(); words != nil {
		s.ConfigChange = *words
	}
	if words := m.unassigned.Load(); words != nil {
		s.Unassigned = *words
	}
	if e := m.refused.Load(); e != nil {
		s.Refused = m.refusal(e)
	}
	if l := m.current.Load(); l != nil {
		s.Lease = *l
		// By the wall clock: the other one stands still while the machine is suspended.
		s.Lease.Expires, s.Lease.Renewed = l.Expires.Round(0), l.Renewed.Round(0)
		s.Renewed = s.Lease.Renewed
	}
	return s
}

// watching knows whether the leases are watched, how old they are if not, and
// when one was last heard of.
type watching struct {
	mu           sync.Mutex // guards all
	since, heard time.Time
	asOf         time.Time
	restored     bool
}

// stored says that the leases are those of an earlier run.
func (w *watching) stored(asOf time.Time) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.asOf, w.restored = asOf, true
}

func (w *watching) begin() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.since = time.Now()
	w.heard = w.since // the snapshot before it
	w.asOf, w.restored = time.Time{}, false
}

func (w *watching) event() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.heard = time.Now()
}

// end ends the watch. It returns the moment from which on the leases get old.
func (w *watching) end() time.Time {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.since, w.asOf = time.Time{}, time.Now()
	return w.asOf
}

func (w *watching) fill(s *Status) {
	w.mu.Lock()
	defer w.mu.Unlock()
	s.Watched, s.Heard, s.AsOf, s.Stored = w.since, w.heard, w.asOf, w.restored
}

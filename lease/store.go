package lease

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// DefaultPatience is how long a manager that has a stored state waits for the
// registry before it starts from that state.
const DefaultPatience = 3 * time.Second

// State is what a run leaves for the next one, which may have to start while the
// registry doesn't answer.
type State struct {
	// Config is the cluster's configuration as it was read.
	Config []byte
	// Own is the host's lease, and Renewed is when it was last taken or renewed.
	// The registry's handles aren't kept. If the host has lost its lease, Own is
	// the zero Lease.
	Own     Lease
	Renewed time.Time
	// Peers are the other hosts' leases, all there were at AsOf.
	Peers []Lease
	AsOf  time.Time
}

// Store keeps a [State] from one run to the next. A manager calls one method at
// a time.
type Store interface {
	// Load returns what was saved last, nil if nothing was. An error means that
	// there is something that can't be used; it is logged.
	Load() (*State, error)
	// Save replaces what was saved, in one step. It may not keep the state's
	// slices.
	Save(s State) error
}

// earlier is a stored state that can be used, with its configuration.
type earlier struct {
	State
	config *Config
}

// loadEarlier returns nil if there is nothing that can be used. It is called
// once.
func (m *Manager) loadEarlier() *earlier {
	if m.opts.Store == nil {
		return nil
	}
	s, err := m.opts.Store.Load()
	if s == nil && err == nil {
		return nil
	}
	var e *earlier
	if err == nil {
		e, err = m.newEarlier(*s)
	}
	if err != nil {
		m.log.Warn("what an earlier run has stored can't be used", "error", err)
		return nil
	}
	return e
}

func (m *Manager) newEarlier(s State) (*earlier, error) {
	c, err := m.parse(s.Config)
	switch {
	case err != nil:
		return nil, fmt.Errorf("stored configuration: %w", err)
	case !s.Own.Subnet.IsValid():
		return nil, errors.New("the host had lost its lease")
	case !m.compatible(c, s.Own):
		return nil, fmt.Errorf("stored lease %s does not fit the stored configuration", s.Own.Subnet)
	}
	s.Own.Own = m.assigner() != nil
	return &earlier{s, c}, nil
}

// clockTolerance is how far back a clock may be set before it is doubted.
const clockTolerance = time.Minute

// refusal says in words why no run may start from a stored state without asking
// the registry. It returns "" if one may.
func (m *Manager) refusal(e *earlier) string {
	now, end := m.opts.Now().Round(0), e.Own.Expires
	if end.IsZero() {
		end = e.Renewed.Add(m.opts.TTL)
	}
	switch {
	case m.opts.UseExpired || e.Own.Permanent:
		return ""
	case now.Before(e.AsOf.Add(-clockTolerance)):
		return fmt.Sprintf("the stored lease on %s may have run out: this host's clock is behind the time at which it was stored", e.Own.Subnet)
	case !now.Before(end):
		return fmt.Sprintf("the stored lease on %s ran out %s ago, and the subnet may be another host's", e.Own.Subnet, now.Sub(end).Round(time.Second))
	}
	return ""
}

// refuse takes note that the manager waits for the registry in spite of a
// stored state.
func (m *Manager) refuse(e *earlier, why string) {
	if m.refused.Swap(e) != e {
		m.log.Warn("waiting for the lease registry", "error", why)
	}
}

// patiently repeats op while the registry doesn't answer. If there is a state
// to fall back on, it gives up after some time and returns true. It doesn't
// give up if the registry has answered meanwhile, even if only that something
// is missing.
func (m *Manager) patiently(ctx context.Context, fallback *earlier, answered func() bool, op func(context.Context) error) (away bool, err error) {
	if fallback != nil {
		limited, cancel := context.WithTimeout(ctx, m.opts.Patience)
		defer cancel()
		err = m.persist(limited, func() error { return op(limited) })
		if limited.Err() == nil || err == nil || ctx.Err() != nil {
			return false, err
		}
		if !answered() {
			m.outage.silent(m.opts.Patience)
			why := m.refusal(fallback)
			if why == "" {
				return true, nil
			}
			m.refuse(fallback, why)
			defer m.refused.Store(nil)
		}
	}
	return false, m.persist(ctx, func() error { return op(ctx) })
}

// fallBack takes note that this run starts from an earlier one's state.
func (m *Manager) fallBack(e *earlier) {
	if m.fallback.Swap(e) == e {
		return
	}
	m.log.Warn("the lease registry doesn't answer: starting from the leases that an earlier run stored",
		"subnet", e.Own.Subnet, "peers", len(e.Peers), "age", time.Since(e.AsOf).Round(time.Second))
}

// endFallBack ends the fallback: the registry has told its leases.
func (m *Manager) endFallBack() { m.fallback.Store(nil) }

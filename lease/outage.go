package lease

import (
	"fmt"
	"log/slog"
	"sync"
	"time"
)

// nagInterval is how often a lasting outage is logged again.
const nagInterval = 30 * time.Second

// outage knows whether the registry answers, and logs its going once, then at a
// slow pace, and its return.
type outage struct {
	log *slog.Logger

	mu     sync.Mutex
	up     bool      // guarded by mu, as all below
	since  time.Time // when up last changed
	logged time.Time
	err    error
	// what went wrong so far: how often, and the last of it
	failures uint64
	last     error
	lastAt   time.Time
}

func (o *outage) failed(err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	now := time.Now()
	if o.up || o.since.IsZero() {
		o.up, o.since, o.logged = false, now, time.Time{}
	}
	o.err, o.last, o.lastAt = err, err, now
	o.failures++
	if now.Sub(o.logged) < nagInterval {
		return
	}
	o.logged = now
	o.log.Warn("waiting for the lease registry", "error", err, "for", now.Sub(o.since).Round(time.Second))
}

// silent takes note of a registry that was waited for, if no attempt has failed
// with a better reason.
func (o *outage) silent(waited time.Duration) {
	o.mu.Lock()
	known := o.err != nil
	o.mu.Unlock()
	if !known {
		o.failed(fmt.Errorf("%w: no answer within %s", ErrUnavailable, waited))
	}
}

func (o *outage) answered() {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.up {
		return
	}
	if o.err != nil {
		o.log.Info("lease registry answers", "after", time.Since(o.since).Round(time.Millisecond))
	}
	o.up, o.since, o.err = true, time.Now(), nil
}

func (o *outage) fill(s *Status) {
	o.mu.Lock()
	defer o.mu.Unlock()
	s.Connected, s.Since, s.Err = o.up, o.since, o.err
	s.Failures, s.LastErr, s.LastErrAt = o.failures, o.last, o.lastAt
}

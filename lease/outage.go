package lease

import (
	"fmt"
	"log/slog"
	"sync"
	"time"
)

// nagInterval is how often a lasting outage is logged again.
const nagInterval = 30 * time.Second

// outage knows whether the registry answers. It logs when the registry goes,
// then again at a slow pace, and when it returns.
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
	// writing: reads may pass although writes don't
	writeErr    error
	writeLogged time.Time
}

func (o *outage) failed(err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	now := time.Now()
	if o.up || o.since.IsZero() {
		o.up, o.since, o.logged = false, now, time.Time{}
	}
	o.err = err
	o.countLocked(err, now)
	if now.Sub(o.logged) < nagInterval {
		return
	}
	o.logged = now
	o.log.Warn("waiting for the lease registry", "error", err, "for", now.Sub(o.since).Round(time.Second))
}

func (o *outage) countLocked(err error, now time.Time) {
	o.last, o.lastAt = err, now
	o.failures++
}

// refused takes note of a write that the registry refuses. Whether it answers is for
// the reads to tell.
func (o *outage) refused(err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	now := time.Now()
	o.writeErr = err
	o.countLocked(err, now)
	if now.Sub(o.writeLogged) < nagInterval {
		return
	}
	o.writeLogged = now
	o.log.Warn("the lease registry refuses to write", "error", err)
}

// written takes note of a write that was made.
func (o *outage) written() {
	o.answered()
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.writeErr != nil {
		o.log.Info("the lease registry writes again")
	}
	o.writeErr, o.writeLogged = nil, time.Time{}
}

// silent takes note that the registry was waited for in vain, unless an attempt
// has failed with a better reason.
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
	s.WriteErr = o.writeErr
	s.Failures, s.LastErr, s.LastErrAt = o.failures, o.last, o.lastAt
}

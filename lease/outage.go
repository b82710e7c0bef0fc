package lease

import (
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
}

func (o *outage) failed(err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	now := time.Now()
	if o.up || o.since.IsZero() {
		o.up, o.since, o.logged = false, now, time.Time{}
	}
	o.err = err
	if now.Sub(o.logged) < nagInterval {
		return
	}
	o.logged = now
	o.log.Warn("waiting for the lease registry", "error", err, "for", now.Sub(o.since).Round(time.Second))
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

func (o *outage) state() (up bool, since time.Time, err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.up, o.since, o.err
}

package lease

import (
	"context"
	"log/slog"
	"sync"
	"time"
)

// Bounds of how often the state is saved: at most once in saveInterval. In
// large clusters it is saved so seldom that saving takes a small share of the
// time.
const (
	saveInterval = time.Second
	saveShare    = 100
	// saveRetry is how long to wait after a save that failed: a full disk may get
	// room.
	saveRetry = 5 * time.Second
)

// journal keeps the store up to date. A nil journal does nothing.
type journal struct {
	store   Store
	log     *slog.Logger
	changed chan struct{} // holds one

	mu    sync.Mutex     // guards both
	state State          // without Peers
	peers func() []Lease // it returns nil without a snapshot

	failed bool // the last save; run's alone
}

func newJournal(store Store, log *slog.Logger) *journal {
	if store == nil {
		return nil
	}
	return &journal{store: store, log: log, changed: make(chan struct{}, 1), peers: func() []Lease { return nil }}
}

// change changes the state, which is saved soon.
func (j *journal) change(f func()) {
	if j == nil {
		return
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	f()
	select {
	case j.changed <- struct{}{}:
	default: // a save is due already
	}
}

func (j *journal) configured(config []byte) {
	j.change(func() { j.state.Config = config })
}

func (j *journal) record(own Lease) {
	j.change(func() { j.state.Own, j.state.Renewed = own, own.Renewed })
}

// lose forgets the lease, so that no later run starts with it.
func (j *journal) lose() { j.change(func() { j.state.Own = Lease{} }) }

// follow sets where the state's peers come from.
func (j *journal) follow(peers func() []Lease) { j.change(func() { j.peers = peers }) }

// touch says that the peers have changed.
func (j *journal) touch() { j.change(func() {}) }

// until notes when the peers were last known to be right, zero while they are.
func (j *journal) until(t time.Time) { j.change(func() { j.state.AsOf = t }) }

// run saves after changes until ctx ends, and then the last of them.
func (j *journal) run(ctx context.Context) {
	if j == nil {
		return
	}
	for ctx.Err() == nil {
		select {
		case <-j.changed:
			start := time.Now()
			j.save()
			_ = sleep(ctx, max(saveInterval, saveShare*time.Since(start)))
			if j.failed {
				_ = sleep(ctx, saveRetry)
				j.touch()
			}
		case <-ctx.Done():
		}
	}
	select {
	case <-j.changed:
		j.save()
	default:
	}
}

// save does nothing before there is something that a run could start from.
func (j *journal) save() {
	j.mu.Lock()
	s, peers := j.state, j.peers
	j.mu.Unlock()
	if s.Peers = peers(); s.Peers == nil || s.Config == nil {
		return
	}
	if s.AsOf.IsZero() {
		s.AsOf = time.Now()
	}
	err := j.store.Save(s)
	switch {
	case err != nil && !j.failed:
		j.log.Warn("leases can't be stored: a start without the registry would lack them", "error", err)
	case err == nil && j.failed:
		j.log.Info("leases are stored again")
	}
	j.failed = err != nil
}

package lease_test

import (
	"context"
	"maps"
	"slices"
	"sync"
	"time"

	"uvxlan/lease"
)

// memory is a registry whose clock is the test's. So leases can end within a
// test that takes no time.
type memory struct {
	mu       sync.Mutex
	config   string // empty for none
	revision int64
	entries  map[string]lease.Lease
	changed  chan struct{} // closed at the next change
	history  []lease.Update
}

func newMemory(config string) *memory {
	return &memory{config: config, entries: map[string]lease.Lease{}, changed: make(chan struct{})}
}

// record takes note of a change; mu is held.
func (m *memory) record(u lease.Update) {
	u.Revision = m.revision
	m.history = append(m.history, u)
	close(m.changed)
	m.changed = make(chan struct{})
}

func (m *memory) Config(context.Context) ([]byte, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.config == "" {
		return nil, lease.ErrNoConfig
	}
	return []byte(m.config), nil
}

func (m *memory) setConfig(config string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.config = config
	m.revision++
	m.record(lease.Update{Config: []byte(config)})
}

func (m *memory) List(context.Context) ([]lease.Lease, int64, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Collect(maps.Values(m.entries)), m.revision, nil
}

// put writes an entry whatever is there; with a time to live if ttl isn't zero.
func (m *memory) put(l lease.Lease, ttl time.Duration) lease.Lease {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.putLocked(l, ttl)
}

func (m *memory) putLocked(l lease.Lease, ttl time.Duration) lease.Lease {
	m.revision++
	l.Revision, l.Permanent = m.revision, ttl == 0
	l = m.extend(l, ttl)
	l.Created = l.Revision
	if before, ok := m.entries[l.Key()]; ok {
		l.Created = before.Created
	}
	told := l // others don't see its end
	told.Expires = time.Time{}
	m.entries[l.Key()] = told
	m.record(lease.Update{Leases: []lease.Lease{told}})
	return l
}

// extend lets the entry end after ttl, unless it is extended again.
func (m *memory) extend(l lease.Lease, ttl time.Duration) lease.Lease {
	if ttl == 0 {
		return l
	}
	l.ID++
	l.Expires = time.Now().Add(ttl)
	if now, ok := m.entries[l.Key()]; ok {
		now.ID = l.ID
		m.entries[l.Key()] = now
	}
	time.AfterFunc(ttl, func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		if now, ok := m.entries[l.Key()]; ok && now.Revision == l.Revision && now.ID == l.ID {
			m.removeLocked(now)
		}
	})
	return l
}

func (m *memory) remove(l lease.Lease) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.removeLocked(l)
}

func (m *memory) removeLocked(l lease.Lease) {
	m.revision++
	delete(m.entries, l.Key())
	m.record(lease.Update{Deleted: []lease.Lease{{Subnet: l.Subnet, IPv6Subnet: l.IPv6Subnet, Revision: m.revision}}})
}

// replace tells of an entry's end and of another entry at once.
func (m *memory) replace(old, l lease.Lease) {
	m.mu.Lock()
	defer m.mu.Unlock()
	before := len(m.history)
	m.removeLocked(old)
	m.putLocked(l, 0)
	both := lease.Update{Leases: m.history[before+1].Leases, Deleted: m.history[before].Deleted, Revision: m.revision}
	m.history = append(m.history[:before], both)
}

func (m *memory) Create(_ context.Context, l lease.Lease, ttl time.Duration) (lease.Lease, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if _, ok := m.entries[l.Key()]; ok {
		return l, lease.ErrExists
	}
	l.ID = 0
	return m.putLocked(l, ttl), nil
}

func (m *memory) Renew(_ context.Context, l lease.Lease, ttl time.Duration) (lease.Lease, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	now, ok := m.entries[l.Key()]
	if !ok || now.Revision != l.Revision {
		return l, lease.ErrConflict
	}
	if l.Permanent {
		return l, nil
	}
	l.ID = now.ID
	return m.extend(l, ttl), nil
}

func (m *memory) Update(_ context.Context, l lease.Lease, ttl time.Duration) (lease.Lease, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if now, ok := m.entries[l.Key()]; !ok || now.Revision != l.Revision {
		return l, lease.ErrConflict
	}
	return m.putLocked(l, ttl), nil
}

func (m *memory) Delete(_ context.Context, l lease.Lease) error {
	m.remove(l)
	return nil
}

func (m *memory) Watch(ctx context.Context, from int64, report func(lease.Update)) error {
	for {
		m.mu.Lock()
		var due []lease.Update
		for _, u := range m.history {
			if u.Revision >= from {
				u.Leases, u.Deleted = slices.Clone(u.Leases), slices.Clone(u.Deleted) // they are the watcher's
				due = append(due, u)
			}
		}
		changed := m.changed
		m.mu.Unlock()
		for _, u := range due {
			report(u)
			from = u.Revision + 1
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// link is one host's way to the registry, which can be cut.
type link struct {
	*memory

	mu    sync.Mutex
	up    context.Context // until the link is cut
	cutUp context.CancelFunc
	tries []time.Time // while it was cut
}

func newLink(m *memory) *link {
	l := &link{memory: m}
	l.restore()
	return l
}

func (l *link) restore() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.up, l.cutUp = context.WithCancel(context.Background())
}

func (l *link) cut() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.cutUp()
	l.tries = nil
}

// check returns the link's context, or the error of a link that is cut.
func (l *link) check() (context.Context, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.up.Err() != nil {
		l.tries = append(l.tries, time.Now())
		return l.up, lease.ErrUnavailable
	}
	return l.up, nil
}

func (l *link) Config(ctx context.Context) ([]byte, error) {
	if _, err := l.check(); err != nil {
		return nil, err
	}
	return l.memory.Config(ctx)
}

func (l *link) List(ctx context.Context) ([]lease.Lease, int64, error) {
	if _, err := l.check(); err != nil {
		return nil, 0, err
	}
	return l.memory.List(ctx)
}

func (l *link) Create(ctx context.Context, own lease.Lease, ttl time.Duration) (lease.Lease, error) {
	if _, err := l.check(); err != nil {
		return own, err
	}
	return l.memory.Create(ctx, own, ttl)
}

func (l *link) Renew(ctx context.Context, own lease.Lease, ttl time.Duration) (lease.Lease, error) {
	if _, err := l.check(); err != nil {
		return own, err
	}
	return l.memory.Renew(ctx, own, ttl)
}

func (l *link) Update(ctx context.Context, own lease.Lease, ttl time.Duration) (lease.Lease, error) {
	if _, err := l.check(); err != nil {
		return own, err
	}
	return l.memory.Update(ctx, own, ttl)
}

func (l *link) Watch(ctx context.Context, from int64, report func(lease.Update)) error {
	up, err := l.check()
	if err != nil {
		return err
	}
	watching, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(up, cancel)()
	err = l.memory.Watch(watching, from, report)
	if ctx.Err() == nil {
		return lease.ErrUnavailable
	}
	return err
}

func (m *memory) revisionNow() int64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.revision
}

// shelf is a lease.Store.
type shelf struct {
	mu    sync.Mutex
	state *lease.State
	saves []time.Time
	err   error         // of both calls
	takes time.Duration // to save
}

func (s *shelf) String() string { return "/state/leases.json" }

func (s *shelf) Load() (*lease.State, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.state, s.err
}

func (s *shelf) Save(state lease.State) error {
	time.Sleep(s.takes)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.saves = append(s.saves, time.Now())
	if s.err == nil {
		s.state = &state
	}
	return s.err
}

func (s *shelf) last() lease.State {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.state == nil {
		return lease.State{}
	}
	return *s.state
}

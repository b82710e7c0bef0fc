package lease

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"
)

// Defaults of [Options], which are flannel's.
const (
	DefaultTTL         = 24 * time.Hour
	DefaultRenewMargin = time.Hour
)

// Options configure a [Manager]. Registry is required.
type Options struct {
	// Registry stores the leases.
	Registry Registry
	// Logger defaults to one that discards.
	Logger *slog.Logger
	// TTL is how long a lease lasts without renewal; zero means DefaultTTL.
	TTL time.Duration
	// RenewMargin is how long before its end a lease is renewed. It must be less
	// than TTL. Zero means DefaultRenewMargin, or half of TTL if TTL is no longer
	// than that.
	RenewMargin time.Duration
	// Previous and PreviousV6 are the subnets of an earlier run. They are taken
	// again if they are free. Zero means that there are none.
	Previous, PreviousV6 netip.Prefix
	// Store keeps what the manager knows for the next run, which may start while
	// the registry doesn't answer; nil means that nothing is kept.
	Store Store
	// Patience is how long to wait for the registry before the manager starts
	// from what Store has; zero means DefaultPatience.
	Patience time.Duration
	// UseExpired starts from what Store has even if the lease in it has run out.
	// Its subnet may be another host's by now. Without UseExpired only the
	// registry can tell, and is waited for.
	UseExpired bool
	// Pick chooses one of n free subnets; the default is uniformly random. It is
	// for tests.
	Pick func(n int) int
	// Now is the clock by which the lease is renewed; the default is time.Now. It
	// is for tests.
	Now func() time.Time
}

// Manager takes this host's lease, keeps it and follows the others'.
type Manager struct {
	reg     Registry // immutable, as all below
	log     *slog.Logger
	opts    Options
	outage  *outage
	watch   *watching
	contest contest
	// earlier is what Store had at the start, nil if that can't be used.
	earlier func() *earlier
	journal *journal // nil without a Store

	wanted  atomic.Pointer[Attrs] // what the own lease is to say; nil outside Run, unless published
	changed chan struct{}         // holds one: wanted has changed
	signs   chan struct{}         // holds one: the own entry isn't what it should be

	unassigned   atomic.Pointer[string] // why an Assigner has no subnets for us, in words
	inForce      atomic.Pointer[Config] // nil before it is known
	configChange atomic.Pointer[string] // how the registry's differs, in words

	current  atomic.Pointer[Lease]   // the own lease as it stands in the registry
	refused  atomic.Pointer[earlier] // what this run may not start from, while it waits for the registry
	fallback atomic.Pointer[earlier] // what this run started from, until the registry answers
}

// NewManager returns a manager; it doesn't contact the registry.
func NewManager(o Options) (*Manager, error) {
	if o.Registry == nil {
		return nil, errors.New("lease manager: no registry")
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.TTL == 0 {
		o.TTL = DefaultTTL
	}
	if o.RenewMargin == 0 {
		o.RenewMargin = min(DefaultRenewMargin, o.TTL/2)
	}
	if o.TTL < time.Second || o.RenewMargin < 0 || o.RenewMargin >= o.TTL {
		return nil, fmt.Errorf("lease manager: renew margin %s must be less than the lease's time of %s, which is at least a second", o.RenewMargin, o.TTL)
	}
	if o.Pick == nil {
		o.Pick = rand.IntN
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Patience == 0 {
		o.Patience = DefaultPatience
	}
	m := &Manager{
		reg: o.Registry, log: o.Logger, opts: o, outage: &outage{log: o.Logger}, watch: &watching{}, journal: newJournal(o.Store, o.Logger),
		changed: make(chan struct{}, 1), signs: make(chan struct{}, 1),
	}
	m.earlier = sync.OnceValue(m.loadEarlier)
	return m, nil
}

// Config reads the cluster's configuration. It waits while the registry doesn't
// answer or nobody has written a configuration yet. A configuration that is
// wrong is an error at once.
//
// If the Store has an earlier run's state, with a lease that hasn't run out,
// Config waits for the registry only as long as Patience says. Then the
// configuration is the earlier run's. So are the lease that [Manager.Acquire]
// returns and the leases that [Manager.Run] first reports.
func (m *Manager) Config(ctx context.Context) (*Config, error) {
	var (
		data    []byte
		missing bool // the registry answered that
	)
	e := m.earlier()
	away, err := m.patiently(ctx, e, func() bool { return missing }, func(ctx context.Context) (err error) {
		data, err = m.reg.Config(ctx)
		missing = missing || errors.Is(err, ErrNoConfig)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("read network configuration: %w", err)
	}
	if away {
		m.fallBack(e)
		data = e.Config
	}
	c, err := m.parse(data)
	if err != nil {
		return nil, fmt.Errorf("network configuration: %w", err)
	}
	for _, f := range UnknownFields(data) {
		m.log.Warn("the network configuration has a field without effect", "error", f)
	}
	m.use(data, c)
	return c, nil
}

// Resume takes the place of Config and Acquire in a process that goes on with
// another process's lease. The configuration in the Store stays as it is.
func (m *Manager) Resume() {
	if e := m.earlier(); e != nil {
		m.use(e.Config, e.config)
	}
}

// use takes note of the configuration in force.
func (m *Manager) use(data []byte, c *Config) {
	m.inForce.Store(c)
	m.journal.configured(data)
}

// Publish changes what our lease says, for example when the host's address has
// changed. The subnet stays. [Manager.Run] writes the change, by
// compare-and-swap on our entry, at once if the registry answers and else as
// soon as it does. [Status] has it once it stands there.
//
// Publish doesn't wait. It may be called from any goroutine, also between
// Acquire and Run. Of several calls the last counts. The attributes' data must
// not change afterwards.
func (m *Manager) Publish(a Attrs) {
	m.wanted.Store(&a)
	signal(m.changed)
}

// signal wakes up whoever waits for the channel, which holds one. It doesn't
// wait.
func signal(c chan<- struct{}) {
	select {
	case c <- struct{}{}:
	default: // that is due already
	}
}

// persist repeats op while the registry doesn't answer.
func (m *Manager) persist(ctx context.Context, op func() error) error {
	b := backoff{min: backoffMin, max: backoffMax}
	for {
		err := op()
		if ctx.Err() != nil {
			return ctx.Err()
		}
		switch {
		case errors.Is(err, ErrReadOnly):
			m.outage.answered()
			m.outage.refused(err)
		case errors.Is(err, ErrUnavailable) || errors.Is(err, ErrNoConfig) || errors.Is(err, ErrUnassigned):
			m.outage.failed(err)
		default:
			m.outage.answered()
			return err
		}
		if err := b.wait(ctx); err != nil {
			return err
		}
	}
}

package lease

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/netip"
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
	// RenewMargin is how long before its end a lease is renewed, less than TTL;
	// zero means DefaultRenewMargin, or half of a TTL that is no longer.
	RenewMargin time.Duration
	// Previous and PreviousV6 are the subnets of an earlier run, taken again if
	// they are free. Zero if there are none.
	Previous, PreviousV6 netip.Prefix
	// Pick chooses one of n free subnets; the default is uniformly random. It is
	// for tests.
	Pick func(n int) int
}

// Manager takes this host's lease, keeps it and follows the others'.
type Manager struct {
	reg    Registry // immutable, as all below
	log    *slog.Logger
	opts   Options
	outage *outage
	watch  *watching

	held atomic.Pointer[held]
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
	return &Manager{reg: o.Registry, log: o.Logger, opts: o, outage: &outage{log: o.Logger}, watch: &watching{}}, nil
}

// Config reads the cluster's configuration. It waits while the registry doesn't
// answer or nobody has written a configuration yet; a configuration that is
// wrong is an error at once.
func (m *Manager) Config(ctx context.Context) (*Config, error) {
	var data []byte
	err := m.persist(ctx, func() (err error) {
		data, err = m.reg.Config(ctx)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("read network configuration: %w", err)
	}
	c, err := ParseConfig(data)
	if err != nil {
		return nil, fmt.Errorf("network configuration: %w", err)
	}
	return c, nil
}

// persist repeats op while the registry doesn't answer.
func (m *Manager) persist(ctx context.Context, op func() error) error {
	b := backoff{min: backoffMin, max: backoffMax}
	for {
		err := op()
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if !errors.Is(err, ErrUnavailable) && !errors.Is(err, ErrNoConfig) {
			m.outage.answered()
			return err
		}
		m.outage.failed(err)
		if err := b.wait(ctx); err != nil {
			return err
		}
	}
}

package lease

import (
	"context"
	"errors"
	"fmt"
	"math"
	"net/netip"
	"time"
)

// ErrLeaseLost means that another host holds our subnet: stop using it.
var ErrLeaseLost = errors.New("lease lost")

// restorePause keeps two parties that both insist on an entry from writing it
// as fast as they can.
const restorePause = time.Second

// keeper is the writing half of Run: it renews the own lease in time, and puts
// it right when the follower says that it was touched.
type keeper struct {
	*Manager
	own   Lease
	doubt bool // the entry may not be what it should be
	signs chan struct{}
}

// newKeeper doubts a lease whose expiry nobody knows, and one that the registry
// hasn't told of.
func newKeeper(m *Manager, own Lease) *keeper {
	k := &keeper{Manager: m, doubt: !own.Permanent && own.Expires.IsZero(), signs: make(chan struct{}, 1)}
	renewed := time.Now()
	if e := m.fallback.Load(); e != nil {
		k.doubt, renewed = true, e.Renewed
	}
	k.holdSince(own, renewed)
	return k
}

// hold takes note of the lease as it now stands in the registry.
func (k *keeper) hold(l Lease) { k.holdSince(l, time.Now()) }

func (k *keeper) holdSince(l Lease, renewed time.Time) {
	k.own = l
	k.held.Store(&held{l, renewed})
	k.journal.hold(l, renewed)
}

// touch asks for a look at the entry; it doesn't wait.
func (k *keeper) touch() {
	select {
	case k.signs <- struct{}{}:
	default: // a look is due already
	}
}

func (k *keeper) run(ctx context.Context) error {
	b := backoff{min: backoffMin, max: backoffMax}
	for wait := k.untilDue(); k.await(ctx, wait); {
		err := k.step(ctx)
		switch {
		case errors.Is(err, ErrLeaseLost):
			return err
		case err == nil || ctx.Err() != nil:
			b.reset()
			wait = k.untilDue()
		default:
			if !errors.Is(err, ErrConflict) && !errors.Is(err, ErrExists) {
				k.outage.failed(err)
			}
			wait = b.next()
		}
	}
	return nil
}

// await returns when there is something to do; false if ctx ended.
func (k *keeper) await(ctx context.Context, d time.Duration) bool {
	if ctx.Err() != nil {
		return false
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-k.signs:
		k.doubt = true
	case <-t.C:
	}
	return true
}

func (k *keeper) untilDue() time.Duration {
	switch {
	case k.doubt:
		return 0
	case k.own.Permanent:
		return math.MaxInt64
	}
	return time.Until(k.own.Expires.Add(-k.opts.RenewMargin))
}

func (k *keeper) step(ctx context.Context) error {
	if !k.doubt {
		err := k.renew(ctx)
		if !errors.Is(err, ErrConflict) {
			return err
		}
		k.doubt = true
	}
	if err := k.settle(ctx); err != nil {
		return err
	}
	k.doubt = false
	return nil
}

func (k *keeper) renew(ctx context.Context) error {
	l, err := k.reg.Renew(ctx, k.own, k.opts.TTL)
	if err != nil {
		return err
	}
	k.outage.answered()
	k.hold(l)
	k.log.Debug("lease renewed", "subnet", l.Subnet, "expires", l.Expires)
	return nil
}

// settle finds out who has our subnet: nobody, we, or another host.
func (k *keeper) settle(ctx context.Context) error {
	all, _, err := k.reg.List(ctx)
	if err != nil {
		return err
	}
	k.outage.answered()
	now := Lease{}
	for _, l := range all {
		if !l.Overlaps(k.own) {
			continue
		}
		if l.Key() != k.own.Key() || !l.Attrs.SameHost(k.own.Attrs) {
			return k.lost(l)
		}
		now = l
	}
	switch {
	case now.Revision == 0:
		k.own.Permanent = false // a reservation that was taken back
		return k.restore(ctx, "removed", k.reg.Create)
	case now.Attrs.Equal(k.own.Attrs):
		k.adopt(now)
		return k.renew(ctx)
	}
	k.adopt(now)
	return k.restore(ctx, "overwritten", k.reg.Update)
}

// adopt takes over where the entry stands, not what it says.
func (k *keeper) adopt(now Lease) {
	k.own.Revision, k.own.ID, k.own.Permanent = now.Revision, now.ID, now.Permanent
}

// restore writes the own lease again; with a time to live unless the entry that
// stands is a reservation.
func (k *keeper) restore(ctx context.Context, cause string, write func(context.Context, Lease, time.Duration) (Lease, error)) error {
	l, err := write(ctx, k.own, k.opts.TTL)
	if err != nil {
		return err
	}
	k.hold(l)
	k.log.Warn("own lease put back", "subnet", l.Subnet, "cause", cause)
	_ = sleep(ctx, restorePause)
	return nil
}

func (k *keeper) lost(to Lease) error {
	holder := "a reservation without an address"
	for _, a := range []netip.Addr{to.Attrs.PublicIPv6, to.Attrs.PublicIP} {
		if a.IsValid() {
			holder = a.String()
		}
	}
	return fmt.Errorf("%w: %s is held by %s", ErrLeaseLost, to.Subnet, holder)
}

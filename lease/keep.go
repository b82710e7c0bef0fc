package lease

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"
)

// ErrLeaseLost means that another host holds our subnet: stop using it.
var ErrLeaseLost = errors.New("lease lost")

const (
	// restorePause keeps two parties that both insist on an entry from writing it
	// as fast as they can.
	restorePause = time.Second
	// lookInterval bounds each wait: a timer stands still while the machine is
	// suspended, and a lease does not.
	lookInterval = 30 * time.Second
	// manyConflicts is how many conflicts on end are no accident, whoever has them:
	// their cause doesn't pass.
	manyConflicts = 8
)

// keeper is the writing half of Run. It renews this host's lease in time and
// writes what is published. It puts the entry right when the follower says that
// it was touched.
type keeper struct {
	*Manager
	own Lease // as we left it in the registry
	// written is what the entry may say unless somebody else has written it.
	written   []Attrs
	unsure    bool      // a write got no answer: it may have been made
	doubt     bool      // the entry may not be what it should be
	conflicts int       // on end
	calm      time.Time // until when an entry that was put right is left alone
	pause     time.Time // until when an attempt that failed isn't repeated
}

// newKeeper returns a keeper. It doubts a lease whose expiry nobody knows, and
// a lease that the registry hasn't told of.
func newKeeper(m *Manager, own Lease) *keeper {
	k := &keeper{Manager: m, doubt: !own.Permanent && own.Expires.IsZero()}
	if own.Renewed.IsZero() {
		own.Renewed = m.opts.Now()
	}
	k.record(own)
	if e := m.fallback.Load(); e != nil {
		k.doubt = true
		k.written = append(k.written, e.Own.Attrs)
	}
	return k
}

// record takes note of the lease as it stands in the registry.
func (k *keeper) record(l Lease) {
	k.own, k.written, k.unsure = l, []Attrs{l.Attrs}, false
	k.current.Store(&l)
	k.journal.record(l)
}

func (k *keeper) run(ctx context.Context) error {
	b := backoff{min: backoffMin, max: backoffMax}
	for k.await(ctx) {
		err := k.step(ctx)
		switch {
		case errors.Is(err, ErrLeaseLost) || errors.Is(err, ErrReassigned):
			return err
		case err == nil || ctx.Err() != nil:
			b.reset()
			k.pause, k.conflicts = time.Time{}, 0
		default:
			k.failed(err)
			k.pause = k.opts.Now().Add(b.next())
		}
	}
	return nil
}

// failed takes note of an attempt that came to nothing. A single conflict is
// usual, since others write as well. Many of them on end are not.
func (k *keeper) failed(err error) {
	if !errors.Is(err, ErrConflict) && !errors.Is(err, ErrExists) {
		k.conflicts = 0
		return
	}
	if k.conflicts++; k.conflicts%manyConflicts == 0 {
		k.log.Warn("own lease can't be put right: something else is under its key", "subnet", k.own.Subnet, "error", err)
	}
}

// await returns true when there is something to do, and false if ctx has ended.
func (k *keeper) await(ctx context.Context) bool {
	for ctx.Err() == nil {
		at := k.due()
		if k.isPast(at) {
			return true
		}
		t := time.NewTimer(min(at.Sub(k.opts.Now()), lookInterval))
		select {
		case <-ctx.Done():
		case <-k.changed:
			k.pause, k.calm = time.Time{}, time.Time{} // it is worth an attempt
		case <-k.signs:
			k.doubt = true
		case <-t.C:
		}
		t.Stop()
	}
	return false
}

// isPast asks both clocks. One stands still while the machine is suspended, and
// somebody may set the other back.
func (k *keeper) isPast(t time.Time) bool {
	now := k.opts.Now()
	return !now.Before(t) || !now.Round(0).Before(t.Round(0))
}

// due returns when there is something to do.
func (k *keeper) due() time.Time {
	var at time.Time
	switch {
	case k.doubt:
		at = k.calm
	case !k.own.Attrs.Equal(*k.wanted.Load()):
	case k.own.Permanent:
		at = k.opts.Now().Add(lookInterval)
	default:
		at = k.own.Expires.Add(-k.opts.RenewMargin)
	}
	if at.Before(k.pause) {
		return k.pause
	}
	return at
}

func (k *keeper) step(ctx context.Context) error {
	if !k.doubt {
		err := k.renew(ctx)
		if !errors.Is(err, ErrConflict) {
			return err
		}
		k.doubt = true
	}
	if err := k.resolve(ctx); err != nil {
		return err
	}
	k.doubt = false
	return nil
}

// renew extends the entry's time to live. It also writes what the entry is to
// say, if that is new.
func (k *keeper) renew(ctx context.Context) error {
	wanted := *k.wanted.Load()
	if !k.own.Attrs.Equal(wanted) {
		l, err := k.write(ctx, wanted, k.reg.Update)
		if err == nil {
			k.log.Info("own lease has new attributes", "subnet", l.Subnet, "public_ip", l.Attrs.PublicIP)
		}
		return err
	}
	l, err := k.change(ctx, k.own, k.reg.Renew)
	if err != nil {
		return err
	}
	k.log.Debug("lease renewed", "subnet", l.Subnet, "expires", l.Expires)
	return nil
}

// operation is a method of the registry that changes the entry.
type operation func(context.Context, Lease, time.Duration) (Lease, error)

// write writes this host's lease with the given attributes. The lease gets a
// time to live unless the entry is a reservation.
func (k *keeper) write(ctx context.Context, a Attrs, op operation) (Lease, error) {
	l := k.own
	l.Attrs = a
	if !slices.ContainsFunc(k.written, a.Equal) {
		k.written = append(k.written, a)
	}
	return k.change(ctx, l, op)
}

// change carries out an operation. It takes note of the lease as it then stands
// in the registry.
func (k *keeper) change(ctx context.Context, l Lease, op operation) (Lease, error) {
	unsure := k.unsure
	k.unsure = true
	l, err := op(ctx, l, k.opts.TTL)
	switch {
	case err == nil:
		k.outage.written()
		l.Renewed = k.opts.Now()
		k.record(l)
	case errors.Is(err, ErrConflict) || errors.Is(err, ErrExists):
		k.unsure = unsure
	case ctx.Err() != nil:
	case errors.Is(err, ErrUnavailable):
		k.outage.failed(err)
	default:
		k.outage.refused(err)
	}
	return l, err
}

// resolve finds out who has our subnet: nobody, we, or another host.
func (k *keeper) resolve(ctx context.Context) error {
	find := k.find
	assigner := k.assigner()
	if assigner != nil {
		find = func(ctx context.Context) (Lease, error) { return k.look(ctx, assigner) }
	}
	now, err := find(ctx)
	if err != nil {
		if ctx.Err() == nil && !errors.Is(err, ErrLeaseLost) && !errors.Is(err, ErrReassigned) && !errors.Is(err, ErrUnassigned) {
			k.outage.failed(err)
		}
		return err
	}
	k.outage.answered()
	if now.Revision == 0 {
		k.own.Permanent = assigner != nil // else a reservation that was taken back
		return k.restore(ctx, "removed", k.reg.Create, restorePause)
	}
	rewritten := assigner == nil && k.own.Revision != 0 && k.own.Revision != now.Revision && !k.unsure
	known := slices.ContainsFunc(k.written, now.Attrs.Equal)
	k.own.Revision, k.own.Created, k.own.ID = now.Revision, now.Created, now.ID
	if now.Damaged {
		return k.restore(ctx, "damaged", k.reg.Update, restorePause)
	}
	k.own.Permanent = now.Permanent
	if known && !rewritten {
		k.own.Attrs = now.Attrs
		return k.renew(ctx)
	}
	return k.restore(ctx, "overwritten", k.reg.Update, k.contest.written(k.opts.Now(), now))
}

// find finds the entry of our subnet, the zero Lease if there is none. The error is
// ErrLeaseLost if another host has it.
func (k *keeper) find(ctx context.Context) (now Lease, err error) {
	all, _, err := k.reg.List(ctx)
	if err != nil {
		return now, err
	}
	for _, l := range all {
		switch own := l.Key() == k.own.Key(); {
		case !l.Overlaps(k.own):
		case own && (l.Damaged || k.isOurs(l.Attrs)):
			now = l
		case !l.Damaged:
			k.outage.answered()
			return now, k.lost(l)
		}
	}
	return now, nil
}

// isOurs tells whether the entry of our subnet is this host's, by its address
// or by what was written there.
func (k *keeper) isOurs(a Attrs) bool {
	return a.SameHost(*k.wanted.Load()) ||
		slices.ContainsFunc(k.written, func(w Attrs) bool { return a.SameHost(w) || a.sameOwner(w) })
}

// restore writes this host's lease again, and then leaves it alone for some
// time.
func (k *keeper) restore(ctx context.Context, cause string, op operation, calm time.Duration) error {
	l, err := k.write(ctx, *k.wanted.Load(), op)
	if err != nil {
		return err
	}
	k.log.Warn("own lease put back", "subnet", l.Subnet, "cause", cause)
	if words := k.conflict(); words != "" {
		k.log.Warn("two hosts have one lease", "error", words)
	}
	k.calm = k.opts.Now().Add(calm)
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

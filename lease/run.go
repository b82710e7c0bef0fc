package lease

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"
)

// steadyAfter is how long a watch must have lasted for the next wait to start
// small again. A registry that lets in and throws out isn't steady.
const steadyAfter = 2 * backoffMax

// Run keeps own, the result of [Manager.Acquire], and reports the other hosts'
// leases until ctx ends; then it returns nil. The lease stays in the registry.
// If the lease is lost for good, the error wraps [ErrLeaseLost] and says who
// holds the subnet. If the registry has assigned other subnets meanwhile, it wraps
// [ErrReassigned].
//
// report is called for one update at a time: first with a snapshot, then with
// changes as they happen, and with deletions a moment later. While the registry
// doesn't answer it isn't called. Afterwards it gets a snapshot again. Leases
// that are gone remain in that one for some seconds, as their hosts may put
// them back. report never sees own. A slow report delays the next. After an
// Acquire that fell back on a Store, the first snapshot is the stored one.
//
// [Manager.Publish] changes what the lease says meanwhile.
//
// Another process may hand a lease over, with all its fields. Run goes on with
// it as if this process had taken it.
//
// With a Store, what is reported is saved soon after, at most once a second,
// and when Run ends.
func (m *Manager) Run(ctx context.Context, own Lease, report func(Update)) error {
	saving, saved := context.WithCancel(context.WithoutCancel(ctx))
	var journal sync.WaitGroup
	journal.Go(func() { m.journal.run(saving) })
	err := m.run(ctx, own, report)
	if errors.Is(err, ErrLeaseLost) || errors.Is(err, ErrReassigned) {
		m.journal.lose()
	}
	saved()
	journal.Wait()
	return err
}

func (m *Manager) run(ctx context.Context, own Lease, report func(Update)) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	m.wanted.CompareAndSwap(nil, &own.Attrs)
	defer m.wanted.Store(nil)
	if r := m.assigner(); r != nil {
		r.Hold(own)
	}
	k := newKeeper(m, own)
	defer m.current.Store(nil)
	f := follower{Manager: m, own: own, touched: func() { signal(m.signs) }}
	grace := watchGrace
	if m.assigner() != nil {
		grace = assignedGrace
	}
	f.out = newDamper(grace, func(u Update) {
		m.journal.touch()
		report(u)
	})
	defer f.out.close()
	m.journal.follow(f.out.all)
	if e := m.fallback.Load(); e != nil {
		m.watch.stored(e.AsOf)
		m.journal.until(e.AsOf)
		f.out.reset(Update{Reset: true, Leases: slices.DeleteFunc(slices.Clone(e.Peers), f.isOwn)})
	}
	var wg sync.WaitGroup
	wg.Go(func() { f.run(ctx) })
	err := k.run(ctx)
	cancel()
	wg.Wait()
	return err
}

// follower is the watching half of Run.
type follower struct {
	*Manager
	own     Lease
	out     *damper
	touched func() // the own entry isn't what it should be
}

func (f *follower) run(ctx context.Context) {
	b := backoff{min: backoffMin, max: backoffMax}
	for ctx.Err() == nil {
		start := time.Now()
		err := f.session(ctx)
		if time.Since(start) > steadyAfter {
			b.reset()
		}
		switch {
		case ctx.Err() != nil:
			return
		case errors.Is(err, ErrCompacted):
			f.log.Info("lease history is compacted; reading all leases again")
		default:
			f.outage.failed(err)
		}
		_ = b.wait(ctx)
	}
}

// session reads a snapshot and watches from there until that fails.
func (f *follower) session(ctx context.Context) error {
	all, rev, err := f.reg.List(ctx)
	if err != nil {
		return err
	}
	f.outage.answered()
	config, err := f.reg.Config(ctx)
	if err != nil && !errors.Is(err, ErrNoConfig) {
		return err
	}
	f.compareConfig(config)
	i := slices.IndexFunc(all, f.isOwn)
	if i < 0 || !f.isAsWanted(all[i]) {
		f.touched()
	}
	f.endFallBack()
	if n := f.out.reset(Update{Reset: true, Leases: slices.DeleteFunc(all, f.isOwn), Revision: rev}); n > 0 {
		f.log.Info("some peers' leases are gone; they are given up if they don't come back", "count", n, "within", resetGrace)
	}
	f.watch.begin()
	f.journal.until(time.Time{})
	defer func() { f.journal.until(f.watch.end()) }()
	return f.reg.Watch(ctx, rev+1, f.change)
}

// change passes on a watch's update without this host's lease.
func (f *follower) change(u Update) {
	f.outage.answered()
	if u.Config != nil {
		f.compareConfig(u.Config)
	}
	if len(u.Leases)+len(u.Deleted) == 0 {
		return
	}
	f.watch.event()
	other := func(l Lease) bool { return f.isOwn(l) && !f.isAsWanted(l) }
	if slices.ContainsFunc(u.Leases, other) || slices.ContainsFunc(u.Deleted, f.isOwn) {
		f.touched()
	}
	// A peer's damaged entry says nothing, so it changes nothing.
	u.Leases = slices.DeleteFunc(u.Leases, func(l Lease) bool { return f.isOwn(l) || l.Damaged })
	u.Deleted = slices.DeleteFunc(u.Deleted, f.isOwn)
	if len(u.Leases)+len(u.Deleted) > 0 {
		f.out.pass(u)
	}
}

func (f *follower) isOwn(l Lease) bool {
	if f.assigner() != nil {
		return l.Own
	}
	return l.Subnet == f.own.Subnet && l.IPv6Subnet == f.own.IPv6Subnet
}

// isAsWanted tells whether the entry says what we want it to and is as we wrote
// it. Where subnets are assigned nobody else can claim it, and what it says is all
// that counts.
func (f *follower) isAsWanted(own Lease) bool {
	if !own.Attrs.Equal(*f.wanted.Load()) {
		return false
	}
	return f.assigner() != nil || own.Revision == f.current.Load().Revision
}

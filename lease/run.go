package lease

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"
)

// steadyAfter is how long a watch must have lasted for the next wait to start
// small again; a registry that lets in and throws out isn't steady.
const steadyAfter = 2 * backoffMax

// Run reports the other hosts' leases and keeps own, the result of
// [Manager.Acquire], until ctx ends; then it returns nil. The lease stays in the
// registry. If the lease is lost for good, the error wraps [ErrLeaseLost] and
// says who holds the subnet.
//
// report is called from one goroutine, first with a snapshot, then with changes
// as they happen. While the registry doesn't answer it isn't called; afterwards
// it gets a snapshot again. It never sees own. A slow report delays the next.
func (m *Manager) Run(ctx context.Context, own Lease, report func(Update)) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	k := newKeeper(m, own)
	defer m.held.Store(nil)
	f := follower{Manager: m, own: own, report: report, touched: k.touch}
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
	report  func(Update)
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
	i := slices.IndexFunc(all, f.isOwn)
	if i < 0 || !all[i].Equal(f.own) {
		f.touched()
	}
	f.report(Update{Reset: true, Leases: slices.DeleteFunc(all, f.isOwn), Revision: rev})
	f.watch.begin()
	defer f.watch.end()
	return f.reg.Watch(ctx, rev+1, f.change)
}

// change passes on a watch's update without the own lease.
func (f *follower) change(u Update) {
	f.outage.answered()
	f.watch.event()
	other := func(l Lease) bool { return f.isOwn(l) && !l.Equal(f.own) }
	if slices.ContainsFunc(u.Leases, other) || slices.ContainsFunc(u.Deleted, f.isOwn) {
		f.touched()
	}
	u.Leases = slices.DeleteFunc(u.Leases, f.isOwn)
	u.Deleted = slices.DeleteFunc(u.Deleted, f.isOwn)
	if len(u.Leases)+len(u.Deleted) > 0 {
		f.report(u)
	}
}

func (f *follower) isOwn(l Lease) bool {
	return l.Subnet == f.own.Subnet && l.IPv6Subnet == f.own.IPv6Subnet
}

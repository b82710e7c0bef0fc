package host

import (
	"context"
	"log/slog"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// quiet is the least time between two looks at a part, and share the largest part
// of the time that looks may take, so that somebody who undoes a repair in a loop
// doesn't keep the processor busy.
const (
	quiet = 100 * time.Millisecond
	share = 10
)

// Keeper keeps parts as wanted. Its methods may be called from any goroutine.
type Keeper struct {
	log           *slog.Logger
	subscriptions []*subscription // immutable

	mu    sync.Mutex // guards the rest
	parts []*kept
	start func(*kept) // starts a part's goroutine; nil outside Run
}

// kept is a part with what is known of it.
type kept struct {
	Part
	wake chan struct{} // holds one
	now  chan struct{} // holds one; ends the rest after a look as well

	// guarded by the keeper's mutex
	next     chan struct{} // closed after the next look that begins
	findings []Finding
	failed   string // the last failure to repair that was logged
}

// Open subscribes to the kernel's events in the calling thread's network
// namespace. Without nftables in the kernel there are no Firewall events.
func Open(log *slog.Logger) (*Keeper, error) {
	routes, err := subscribe(unix.NETLINK_ROUTE, routeGroups, decodeRoute)
	if err != nil {
		return nil, err
	}
	k := &Keeper{log: log, subscriptions: []*subscription{routes}}
	if rules, err := subscribe(unix.NETLINK_NETFILTER, []uint{unix.NFNLGRP_NFTABLES}, decodeNFTables); err == nil {
		k.subscriptions = append(k.subscriptions, rules)
	}
	return k, nil
}

// Close ends the subscriptions. Run must have returned.
func (k *Keeper) Close() {
	for _, s := range k.subscriptions {
		s.file.Close()
	}
}

// Add adds parts, which are looked at as soon as Run runs.
func (k *Keeper) Add(parts ...Part) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, p := range parts {
		added := &kept{Part: p, wake: make(chan struct{}, 1), now: make(chan struct{}, 1), next: make(chan struct{})}
		k.parts = append(k.parts, added)
		if k.start != nil {
			k.start(added)
		}
	}
}

// Run looks after the parts until ctx ends, and returns when the last look has
// ended. It is called once.
func (k *Keeper) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	for _, s := range k.subscriptions {
		wg.Go(func() {
			if err := s.run(ctx, k.report); err != nil {
				k.log.Warn("changes of the host are noticed late", "error", err)
			}
		})
	}
	k.mu.Lock()
	k.start = func(p *kept) { wg.Go(func() { k.keep(ctx, p) }) }
	for _, p := range k.parts {
		k.start(p)
	}
	k.mu.Unlock()
	<-ctx.Done()
	k.mu.Lock()
	defer k.mu.Unlock()
	k.start = nil
	return nil
}

// report wakes the parts that an event concerns. It asks them without the mutex:
// they may wait for somebody who calls Wake.
func (k *Keeper) report(e Event) {
	k.mu.Lock()
	parts := k.parts // only ever appended to
	k.mu.Unlock()
	for _, p := range parts {
		if p.Wakes != nil && (e.Kind == Lost || p.Wakes(e)) {
			p.touch()
		}
	}
}

// Wake asks for a look at the part of that name.
func (k *Keeper) Wake(name string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, p := range k.parts {
		if p.Name == name {
			p.touch()
		}
	}
}

// touch asks for a look; it doesn't wait.
func (p *kept) touch() {
	select {
	case p.wake <- struct{}{}:
	default: // a look is due already
	}
}

// AwaitLook has every part that was added looked at once more, and returns when that
// is done or ctx has ended.
func (k *Keeper) AwaitLook(ctx context.Context) error {
	k.mu.Lock()
	var looks []<-chan struct{}
	for _, p := range k.parts {
		looks = append(looks, p.next)
		select {
		case p.now <- struct{}{}:
		default: // a look is due already
		}
	}
	k.mu.Unlock()
	for _, done := range looks {
		select {
		case <-done:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

// begin returns what is to be closed after the look that begins.
func (k *Keeper) begin(p *kept) (done chan<- struct{}) {
	k.mu.Lock()
	defer k.mu.Unlock()
	this := p.next
	p.next = make(chan struct{})
	return this
}

func (k *Keeper) keep(ctx context.Context, p *kept) {
	interval := p.Interval
	if interval <= 0 {
		interval = DefaultInterval
	}
	for ctx.Err() == nil {
		begin, done := time.Now(), k.begin(p)
		failure := k.look(ctx, p)
		close(done)
		pause := max(quiet, share*time.Since(begin))
		if failure != nil {
			pause = quiet // it may have waited, for a lock say, rather than worked
		}
		p.rest(ctx, pause, interval)
	}
}

// rest waits for the pause, and then until something wakes the part or the interval
// has passed. Whoever awaits a look ends both.
func (p *kept) rest(ctx context.Context, pause, interval time.Duration) {
	t := time.NewTimer(pause)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return
	case <-p.now:
		return
	case <-t.C:
	}
	t.Reset(interval)
	select {
	case <-ctx.Done():
	case <-p.now:
	case <-p.wake:
	case <-t.C:
	}
}

// look checks a part, and repairs it if need be. Its error is why that failed.
func (k *Keeper) look(ctx context.Context, p *kept) (failure error) {
	faults := p.Check(ctx)
	if len(faults) > 0 && p.Repair != nil {
		before := faults
		failure = p.Repair(ctx)
		faults = p.Check(ctx)
		k.tellRepaired(p, before, faults)
	}
	if ctx.Err() != nil {
		return failure // what it found out may be due to the end
	}
	k.record(p, faults, failure)
	return failure
}

// tellRepaired logs the faults that a repair has mended at once.
func (k *Keeper) tellRepaired(p *kept, before, after []Fault) {
	for _, f := range before {
		if !f.Starting && !slices.ContainsFunc(after, func(o Fault) bool { return o.What == f.What }) {
			k.log.Info("repaired", "part", p.Name, "fault", f.What)
		}
	}
}

// record takes note of a part's faults, and logs those that are new and those
// that are gone.
func (k *Keeper) record(p *kept, faults []Fault, failure error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	now := time.Now()
	before := p.findings
	p.findings = nil
	for _, f := range faults {
		finding := Finding{Fault: f, Part: p.Name, Since: now}
		if i := slices.IndexFunc(before, func(o Finding) bool { return o.What == f.What }); i >= 0 {
			finding.Since = before[i].Since
		} else if !f.Starting {
			k.log.Warn("the host is not as it should be", "part", p.Name, "fault", f.What, "remedy", f.Remedy, "packets_pass", !f.Stops)
		}
		p.findings = append(p.findings, finding)
	}
	for _, o := range before {
		if !o.Starting && !slices.ContainsFunc(faults, func(f Fault) bool { return f.What == o.What }) {
			k.log.Info("the host is as it should be again", "part", p.Name, "fault", o.What, "after", now.Sub(o.Since).Round(time.Millisecond))
		}
	}
	words := ""
	if failure != nil {
		words = failure.Error()
	}
	if words != p.failed && words != "" {
		k.log.Warn("repair is tried again", "part", p.Name, "error", failure)
	}
	p.failed = words
}

// Findings are all faults at the moment, those that stop packets first, each
// kind in the parts' order.
func (k *Keeper) Findings() []Finding {
	k.mu.Lock()
	defer k.mu.Unlock()
	var all []Finding
	for _, p := range k.parts {
		all = append(all, p.findings...)
	}
	slices.SortStableFunc(all, func(a, b Finding) int {
		switch {
		case a.Stops == b.Stops:
			return 0
		case a.Stops:
			return -1
		}
		return 1
	})
	return all
}

// Parts are the names of all parts.
func (k *Keeper) Parts() []string {
	k.mu.Lock()
	defer k.mu.Unlock()
	var names []string
	for _, p := range k.parts {
		if !slices.Contains(names, p.Name) {
			names = append(names, p.Name)
		}
	}
	return names
}

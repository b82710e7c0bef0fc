package lease

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"
)

// choices is how many free subnets the random choice is made from. It is
// flannel's number, and large enough that hosts that start together seldom
// collide.
const choices = 100

// ErrNoSubnet means that every subnet of the configuration is taken.
var ErrNoSubnet = errors.New("out of subnets")

// Acquire takes a lease. It takes the first of these that there is:
//   - a reservation for this host's public address
//   - the lease that this host's record in the Store names, whatever address it
//     says
//   - in flannel's order, the lease with this host's public address, the subnet
//     of the earlier run if that is free, or a random one of the first free
//     subnets
//
// Where the registry assigns subnets, it takes those.
//
// A lease of this host that doesn't fit the configuration is removed. Those of
// its subnets that fit are taken again, so that a host keeps its IPv4 subnet
// when IPv6 comes to the network or goes.
//
// attrs returns what to write. Acquire calls it with nil first, and again with
// the host's previous lease if there is one, so that the VTEP's MAC can be
// kept.
//
// Acquire waits while the registry doesn't answer, and chooses again when
// another host was faster. Nothing renews the lease until [Manager.Run].
//
// With a Store, an earlier run's lease counts as previous, for its attributes
// and its subnets. While the registry doesn't answer and that lease hasn't run
// out, Acquire returns it. Run finds out first whether it is still ours.
func (m *Manager) Acquire(ctx context.Context, cfg *Config, attrs func(previous *Lease) (Attrs, error)) (Lease, error) {
	a := acquisition{Manager: m, cfg: cfg, attrs: attrs}
	if err := a.prepare(); err != nil {
		return Lease{}, err
	}
	if a.stored != nil && m.fallback.Load() != nil {
		return a.storedLease(), nil
	}
	var same conflicts
	race := backoff{min: 5 * time.Millisecond, max: time.Second}
	for {
		var l Lease
		away, err := m.patiently(ctx, a.stored, func() bool { return a.listed }, func(ctx context.Context) (err error) {
			l, err = a.attempt(ctx)
			return err
		})
		if away {
			return a.storedLease(), nil
		}
		if err == nil {
			m.endFallBack()
			m.outage.written()
			l.Renewed = m.opts.Now()
			return l, nil
		}
		if !errors.Is(err, ErrExists) && !errors.Is(err, ErrConflict) {
			return l, fmt.Errorf("acquire lease: %w", err)
		}
		m.log.Debug("another host was faster; choosing again", "error", err)
		if same.add(a.tried.Subnet) {
			a.giveUp(err)
		}
		if err := race.wait(ctx); err != nil {
			return Lease{}, err
		}
	}
}

// acquisition is one call of Acquire.
type acquisition struct {
	*Manager
	cfg   *Config
	attrs func(*Lease) (Attrs, error)
	own   Attrs // what to write
	// former are the subnets of this host's leases that were removed.
	former []netip.Prefix

	record   *Lease         // the lease of the earlier run, nil if there is none
	tried    Lease          // what was to be created last
	unusable []netip.Prefix // subnets that can't be had although no lease has them

	stored *earlier // what can be used without the registry
	listed bool     // the registry has answered
}

// prepare finds out what to write and what to prefer. It uses the lease of an
// earlier run of this host.
func (a *acquisition) prepare() error {
	if err := a.recall(nil); err != nil {
		return err
	}
	e := a.earlier()
	if e == nil {
		return nil
	}
	if *e.config == *a.cfg {
		a.stored = e
	}
	own := e.Own
	a.record = &own
	if err := a.recall(&own); err != nil {
		return err
	}
	if !own.Attrs.SameHost(a.own) {
		a.log.Info("the public address has changed since the earlier run", "subnet", own.Subnet,
			"public_ip", a.own.PublicIP, "before", own.Attrs.PublicIP)
	}
	return nil
}

// recorded tells whether a lease is this host's by its own record. The address
// doesn't count: it may have changed since.
func (a *acquisition) recorded(l Lease) bool {
	return a.record != nil && l.Subnet == a.record.Subnet && (l.Damaged || l.Attrs.sameOwner(a.record.Attrs))
}

// isOwn tells whether a lease is this host's, by its record or by its address.
func (a *acquisition) isOwn(l Lease) bool { return a.recorded(l) || l.Attrs.SameHost(a.own) }

// storedLease falls back on the lease of the earlier run and returns it.
func (a *acquisition) storedLease() Lease {
	a.fallBack(a.stored)
	l := a.stored.Own
	l.Attrs, l.Renewed = a.own, a.stored.Renewed
	return l
}

// recall sets what to write, given the host's previous lease.
func (a *acquisition) recall(previous *Lease) (err error) {
	if a.own, err = a.attrs(previous); err != nil {
		return fmt.Errorf("lease attributes: %w", err)
	}
	return nil
}

// conflicts counts consecutive conflicts over one subnet. The zero Prefix
// stands for this host's own entry.
type conflicts struct {
	over  netip.Prefix
	count int
}

// add counts a conflict. It reports whether there are many by then.
func (c *conflicts) add(over netip.Prefix) bool {
	if c.over != over {
		*c = conflicts{over: over}
	}
	c.count++
	return c.count%manyConflicts == 0
}

// giveUp stops trying for the subnet that was tried last, after many conflicts.
// What is in its way may be no host, but something that isn't a lease.
func (a *acquisition) giveUp(err error) {
	if !a.tried.Subnet.IsValid() {
		a.log.Warn("own lease can't be taken: something else writes its entry", "error", err)
		return
	}
	a.log.Warn("choosing another subnet: this one can't be taken although no lease has it", "subnet", a.tried.Subnet, "error", err)
	a.unusable = append(a.unusable, a.tried.Subnet)
}

func (a *acquisition) attempt(ctx context.Context) (Lease, error) {
	if r := a.assigner(); r != nil {
		return a.take(ctx, r)
	}
	all, _, err := a.reg.List(ctx)
	if err != nil {
		return Lease{}, err
	}
	a.listed, a.tried = true, Lease{}
	if l, ok := a.reusable(all); ok {
		return a.reuse(ctx, l)
	}
	all, err = a.clear(ctx, all)
	if err != nil {
		return Lease{}, err
	}
	l := Lease{Attrs: a.own}
	if l.Subnet, err = a.choose(a.cfg.ipv4(), all); err != nil {
		return Lease{}, err
	}
	if a.cfg.EnableIPv6 {
		if l.IPv6Subnet, err = a.choose(a.cfg.ipv6(), all); err != nil {
			return Lease{}, err
		}
	}
	return a.claim(ctx, l)
}

// reusable finds a lease of this host that fits. It prefers a reservation for
// the host's address, then the lease that the host's record names, then any
// other.
func (a *acquisition) reusable(all []Lease) (found Lease, ok bool) {
	best := 0
	for _, l := range all {
		rank := 0
		switch same := l.Attrs.SameHost(a.own); {
		case !a.cfg.Compatible(l):
		case same && l.Permanent:
			rank = 3
		case a.recorded(l):
			rank = 2
		case same:
			rank = 1
		}
		if rank > best {
			found, best = l, rank
		}
	}
	return found, best > 0
}

func (a *acquisition) reuse(ctx context.Context, l Lease) (Lease, error) {
	if l.Damaged {
		a.log.Warn("own lease is damaged in the registry: putting it right", "subnet", l.Subnet)
		l.Attrs, l.Damaged, l.Permanent = a.own, false, a.record.Permanent
		return a.reg.Update(ctx, l, a.opts.TTL)
	}
	if err := a.recall(&l); err != nil {
		return Lease{}, err
	}
	if a.isUnknown(l) {
		a.log.Warn("the registry has a lease for this host's public address that this host knows nothing of: taking it over; "+
			"if another machine runs with that address, both will fight for it: give one of them an address of its own",
			"subnet", l.Subnet, "public_ip", l.Attrs.PublicIP)
	} else if l.Attrs.Equal(a.own) {
		return a.reg.Renew(ctx, l, a.opts.TTL)
	}
	l.Attrs = a.own
	return a.reg.Update(ctx, l, a.opts.TTL)
}

// isUnknown tells whether this host keeps records and they don't have a lease
// that some host has used. Then only the address says that the lease is this
// host's. The entry is written even if it stays the same, so that another owner
// that is alive learns of it.
func (a *acquisition) isUnknown(l Lease) bool {
	return a.opts.Store != nil && l.Attrs.BackendType != "" && !a.recorded(l) && l.Subnet != a.opts.Previous
}

// clear removes this host's leases, none of which fits, and returns the others.
// A reservation stays, since somebody has decided on it.
func (a *acquisition) clear(ctx context.Context, all []Lease) ([]Lease, error) {
	var others []Lease
	for _, l := range all {
		if !a.isOwn(l) || l.Permanent {
			others = append(others, l)
			continue
		}
		a.log.Info("removing own lease that does not fit the configuration", "subnet", l.Subnet)
		if !l.Damaged {
			if err := a.recall(&l); err != nil {
				return nil, err
			}
		}
		if err := a.reg.Delete(ctx, l); err != nil {
			return nil, err
		}
		a.former = append(a.former, l.Subnet, l.IPv6Subnet)
	}
	return others, nil
}

// choose finds a subnet of the pool: one that this host had, or any free one.
func (a *acquisition) choose(p pool, all []Lease) (netip.Prefix, error) {
	taken := slices.Clone(a.unusable)
	for _, l := range all {
		for _, n := range []netip.Prefix{l.Subnet, l.IPv6Subnet} {
			if n.Overlaps(p.network) {
				taken = append(taken, n)
			}
		}
	}
	preferred := append(slices.Clip(a.former), a.opts.Previous, a.opts.PreviousV6)
	if a.record != nil {
		preferred = append(preferred, a.record.Subnet, a.record.IPv6Subnet)
	}
	for _, had := range preferred {
		if p.contains(had) && !slices.ContainsFunc(taken, had.Overlaps) {
			return had, nil
		}
	}
	free := p.free(taken, choices)
	if len(free) == 0 {
		return netip.Prefix{}, fmt.Errorf("%w: all /%d from %s to %s are taken", ErrNoSubnet, p.bits, p.first, p.last)
	}
	return free[a.opts.Pick(len(free))], nil
}

// claim creates the lease. The registry itself refuses an IPv4 subnet that is
// taken. A clash in IPv6 alone is under another key. So claim looks for one
// afterwards, and the later of the two leases gives way.
func (a *acquisition) claim(ctx context.Context, l Lease) (Lease, error) {
	a.tried = l
	l, err := a.reg.Create(ctx, l, a.opts.TTL)
	if err != nil || !l.IPv6Subnet.IsValid() {
		return l, err
	}
	var all []Lease
	err = a.persist(ctx, func() (err error) {
		all, _, err = a.reg.List(ctx)
		return err
	})
	if err != nil {
		return Lease{}, err
	}
	for _, o := range all {
		if o.Key() != l.Key() && o.Overlaps(l) && o.Created < l.Created {
			if err := a.persist(ctx, func() error { return a.reg.Delete(ctx, l) }); err != nil {
				return Lease{}, err
			}
			return Lease{}, fmt.Errorf("%s: %w", o.IPv6Subnet, ErrExists)
		}
	}
	return l, nil
}

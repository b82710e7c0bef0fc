package lease

import (
	"maps"
	"net/netip"
	"slices"
	"sync"
	"time"
)

// How long a deletion is withheld. So no peer drops a host whose lease comes
// back, and no packet to it is lost.
const (
	// watchGrace is for a lease that somebody deletes: its host puts it back
	// within milliseconds. It is short compared with the time in which a host can
	// go.
	watchGrace = 50 * time.Millisecond
	// assignedGrace is the same where the registry is an Assigner: a Node's
	// annotations take an API server that is busy some time to put back.
	assignedGrace = 2 * time.Second
	// resetGrace is for leases that a later snapshot lacks. Their hosts may only
	// not be back yet, which takes them up to backoffMax and the time that the
	// registry needs to connect. A registry that lost its data is no reason for
	// the whole network to fall apart.
	resetGrace = 2 * backoffMax
)

// damper keeps leases from flapping. It passes updates on, one at a time. It
// passes a deletion on late, if the lease isn't back by then.
type damper struct {
	grace  time.Duration // for what a watch reports as deleted
	report func(Update)  // called with mu locked

	mu       sync.Mutex
	table    map[subnets]Lease      // what was reported and is not deleted; nil before a snapshot
	withheld map[netip.Prefix]Lease // those of the table whose deletion waits, under each subnet
	closed   bool
}

// subnets identify a lease.
type subnets struct{ v4, v6 netip.Prefix }

func subnetsOf(l Lease) subnets { return subnets{l.Subnet, l.IPv6Subnet} }

func newDamper(grace time.Duration, report func(Update)) *damper {
	return &damper{grace: grace, report: report, withheld: map[netip.Prefix]Lease{}}
}

// close ends the reports. Deletions that are still withheld aren't reported.
func (d *damper) close() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.closed = true
}

// all returns what was reported and not deleted since, nil before a snapshot.
func (d *damper) all() []Lease {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.table == nil {
		return nil
	}
	return slices.AppendSeq(make([]Lease, 0, len(d.table)), maps.Values(d.table))
}

// reset passes a snapshot on. It returns how many of the earlier leases the
// snapshot lacks; their deletions are withheld.
func (d *damper) reset(u Update) int {
	d.mu.Lock()
	defer d.mu.Unlock()
	u.Leases = d.readable(u.Leases)
	missing := d.missing(u.Leases)
	u.Leases = slices.Concat(u.Leases, missing)
	d.table = make(map[subnets]Lease, len(u.Leases))
	for _, l := range u.Leases {
		d.table[subnetsOf(l)] = l
	}
	clear(d.withheld)
	d.withhold(missing, resetGrace)
	d.report(u)
	return len(missing)
}

// readable replaces damaged leases by what was known of them.
func (d *damper) readable(all []Lease) []Lease {
	out := make([]Lease, 0, len(all))
	for _, l := range all {
		known := true
		if l.Damaged {
			l, known = d.table[subnetsOf(l)]
		}
		if known {
			out = append(out, l)
		}
	}
	return out
}

// missing returns the leases of the table that share no subnet with any lease
// in now.
func (d *damper) missing(now []Lease) (out []Lease) {
	if len(d.table) == 0 {
		return nil
	}
	there := make(map[netip.Prefix]bool, len(now))
	for _, l := range now {
		for _, n := range subnetsIn(l) {
			there[n] = true
		}
	}
	for _, l := range d.table {
		if !there[l.Subnet] && !there[l.IPv6Subnet] {
			out = append(out, l)
		}
	}
	return out
}

// pass passes a change on. A lease that is written again as it was, as
// flannel's hosts do to renew it, is no change.
func (d *damper) pass(u Update) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.withhold(u.Deleted, d.grace)
	d.cancel(u)
	u.Deleted = nil
	u.Leases = slices.DeleteFunc(u.Leases, func(l Lease) bool {
		before, known := d.table[subnetsOf(l)]
		d.table[subnetsOf(l)] = l
		return known && before.Equal(l)
	})
	if len(u.Leases) > 0 {
		d.report(u)
	}
}

// withhold withholds deletions for some time; mu is locked.
func (d *damper) withhold(gone []Lease, wait time.Duration) {
	if len(gone) == 0 {
		return
	}
	for _, l := range gone {
		for _, n := range subnetsIn(l) {
			d.withheld[n] = l
		}
	}
	time.AfterFunc(wait, func() { d.release(gone) })
}

// cancel drops the deletions of leases that are back. If another lease has a
// subnet of a deleted one, that deletion is reported first.
func (d *damper) cancel(u Update) {
	var due []Lease
	for _, l := range u.Leases {
		for _, n := range subnetsIn(l) {
			gone, waits := d.withheld[n]
			if !waits {
				continue
			}
			d.forget(gone)
			if subnetsOf(gone) != subnetsOf(l) {
				due = append(due, gone)
			}
		}
	}
	d.remove(due)
}

// release reports those deletions that are still withheld.
func (d *damper) release(gone []Lease) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		return
	}
	var due []Lease
	for _, l := range gone {
		if now, waits := d.withheld[l.Subnet]; waits && now.Revision == l.Revision {
			d.forget(l)
			due = append(due, l)
		}
	}
	d.remove(due)
}

func (d *damper) forget(l Lease) {
	for _, n := range subnetsIn(l) {
		delete(d.withheld, n)
	}
}

// remove reports deletions.
func (d *damper) remove(due []Lease) {
	if len(due) == 0 {
		return
	}
	u := Update{Deleted: make([]Lease, len(due))}
	for i, l := range due {
		delete(d.table, subnetsOf(l))
		u.Deleted[i] = Lease{Subnet: l.Subnet, IPv6Subnet: l.IPv6Subnet, Revision: l.Revision}
		u.Revision = max(u.Revision, l.Revision)
	}
	d.report(u)
}

// subnetsIn returns the subnets that the lease has.
func subnetsIn(l Lease) []netip.Prefix {
	if !l.IPv6Subnet.IsValid() {
		return []netip.Prefix{l.Subnet}
	}
	return []netip.Prefix{l.Subnet, l.IPv6Subnet}
}

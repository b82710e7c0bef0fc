package kube

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"uvxlan/lease"
)

// table is what is known of the Nodes at a revision.
type table struct {
	own      string // this host's Node
	revision int64
	nodes    map[string]*entry
	holders  map[netip.Prefix][]*entry // of each subnet, those that have a lease
	reported map[string]lease.Lease    // by Node
}

// entry is a Node.
type entry struct {
	name, uid string
	created   time.Time
	subnets   subnets
	lease     lease.Lease // the zero Lease if it has none
}

func newTable(own string) *table {
	return &table{own: own, nodes: map[string]*entry{}, holders: map[netip.Prefix][]*entry{}, reported: map[string]lease.Lease{}}
}

// set takes note of a Node. It returns what that changes.
func (t *table) set(e *entry) change {
	affected := t.drop(e.name)
	t.nodes[e.name] = e
	if e.lease.Subnet.IsValid() {
		for _, n := range e.subnets.all() {
			t.holders[n] = append(t.holders[n], e)
			affected = append(affected, t.holders[n]...)
		}
	}
	return t.judge(append(affected, e))
}

// remove forgets a Node. It returns what that changes.
func (t *table) remove(name string) change {
	e := t.nodes[name]
	if e == nil {
		return change{}
	}
	affected := t.drop(name)
	delete(t.nodes, name)
	e.lease = lease.Lease{}
	return t.judge(append(affected, e))
}

// drop takes a Node off its subnets. It returns those that share them.
func (t *table) drop(name string) (sharers []*entry) {
	e := t.nodes[name]
	if e == nil {
		return nil
	}
	for _, n := range e.subnets.all() {
		rest := slices.DeleteFunc(t.holders[n], func(o *entry) bool { return o == e })
		if len(rest) == 0 {
			delete(t.holders, n)
			continue
		}
		t.holders[n] = rest
		sharers = append(sharers, rest...)
	}
	return sharers
}

// change is what became of leases.
type change struct {
	leases, deleted []lease.Lease
	// losers are in words those that have another Node's subnet by now.
	losers []string
}

// judge finds out which of the Nodes have their leases.
func (t *table) judge(all []*entry) (c change) {
	seen := map[string]bool{}
	for _, e := range all {
		if seen[e.name] {
			continue
		}
		seen[e.name] = true
		now, before := e.lease, t.reported[e.name]
		if winner := t.winner(e); winner != e {
			now = lease.Lease{}
			if winner.name != t.own {
				c.losers = append(c.losers, clash(e, winner))
			}
		}
		if now.Subnet.IsValid() {
			now.Own = e.name == t.own
			t.reported[e.name] = now
		} else {
			delete(t.reported, e.name)
		}
		if before.Subnet.IsValid() && (before.Subnet != now.Subnet || before.IPv6Subnet != now.IPv6Subnet) {
			c.deleted = append(c.deleted, lease.Lease{Subnet: before.Subnet, IPv6Subnet: before.IPv6Subnet, Own: before.Own})
		}
		if now.Subnet.IsValid() && !now.Equal(before) {
			c.leases = append(c.leases, now)
		}
	}
	// What another Node has by now isn't gone.
	c.deleted = slices.DeleteFunc(c.deleted, func(gone lease.Lease) bool {
		return !gone.Own && slices.ContainsFunc(c.leases, func(l lease.Lease) bool { return l.Subnet == gone.Subnet && l.IPv6Subnet == gone.IPv6Subnet })
	})
	return c
}

// winner is the Node that has the lease's subnets: on this host itself always this
// host's, else the oldest, so that all hosts agree.
func (t *table) winner(e *entry) *entry {
	best := e
	if !e.lease.Subnet.IsValid() {
		return best
	}
	for _, n := range e.subnets.all() {
		for _, o := range t.holders[n] {
			if t.before(o, best) {
				best = o
			}
		}
	}
	return best
}

func (t *table) before(a, b *entry) bool {
	if own := a.name == t.own; own != (b.name == t.own) {
		return own
	}
	return older(a, b)
}

func older(a, b *entry) bool {
	return cmp.Or(a.created.Compare(b.created), cmp.Compare(a.name, b.name)) < 0
}

func clash(loser, winner *entry) string {
	return fmt.Sprintf("node %s has the podCIDR of node %s, which is older: %s", loser.name, winner.name, winner.subnets.v4)
}

// conflict says in words that another Node has a subnet of this host's.
func (t *table) conflict() string {
	own := t.nodes[t.own]
	if own == nil {
		return ""
	}
	for _, n := range own.subnets.all() {
		for _, o := range t.holders[n] {
			switch {
			case o == own:
			case older(o, own):
				return fmt.Sprintf("node %s has this node's podCIDR %s as well, and is older: the other hosts send there; delete this node, so that it gets another podCIDR", o.name, n)
			default:
				return fmt.Sprintf("node %s has this node's podCIDR %s as well: no host sends there; delete that node, so that it gets another podCIDR", o.name, n)
			}
		}
	}
	return ""
}

// leases are those that hold.
func (t *table) leases() []lease.Lease {
	all := make([]lease.Lease, 0, len(t.reported))
	for _, l := range t.reported {
		all = append(all, l)
	}
	return all
}

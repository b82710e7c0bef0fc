// Package peerlog names in the log the peers that come, change and go, a few of
// them each, and many in one line.
package peerlog

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"time"

	"uvxlan/cmd/internal/control"
	"uvxlan/lease"
)

const (
	// manyChanges is how many peers may come, change or go within changesTime,
	// each with a line in the log. Of more there is one line for all of that
	// time, and theirs are for debugging.
	manyChanges = 20
	changesTime = time.Second
)

// Log names the peers that come, change and go, and remembers the leases that are no
// peers.
type Log struct {
	log *slog.Logger

	mu      sync.Mutex // guards the rest
	named   int        // changes within the time that runs
	changed int        // those without a line, as is gone
	gone    int
	running bool // the time
	leftOut map[netip.Prefix]*lease.PeerError
}

// New returns a Log that writes to log.
func New(log *slog.Logger) *Log { return &Log{log: log} }

// examples is how many of the leases that are no peers have their reason told.
const examples = 5

// LeftOut tells of an update's leases that are no peers, given what a router
// says of them, and remembers them.
func (c *Log) LeftOut(u lease.Update, err error) {
	all := reasons(err)
	c.remember(u, all)
	all = slices.DeleteFunc(all, func(err error) bool { return errors.Is(err, lease.ErrUnclaimed) })
	if len(all) == 0 {
		return
	}
	c.log.Warn("leases that are no peers were left out", "count", len(all), "error", errors.Join(all[:min(len(all), examples)]...))
}

// remember keeps why leases are no peers, as long as there are no others in their
// place.
func (c *Log) remember(u lease.Update, all []error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if u.Reset || c.leftOut == nil {
		c.leftOut = map[netip.Prefix]*lease.PeerError{}
	}
	for _, l := range slices.Concat(u.Leases, u.Deleted) {
		delete(c.leftOut, l.Subnet)
		delete(c.leftOut, l.IPv6Subnet)
	}
	for _, err := range all {
		if p, ok := errors.AsType[*lease.PeerError](err); ok {
			c.leftOut[p.Subnet] = p
		}
	}
}

// WithLeftOut adds to the peers, which are in order, the leases that are none, each
// with the reason.
func (c *Log) WithLeftOut(peers []control.Peer) []control.Peer {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, p := range c.leftOut {
		peers = append(peers, control.Peer{
			Subnet: p.Subnet, PublicIP: p.Underlay, Path: control.PathNone, Reason: p.Err.Error(),
			Unclaimed: errors.Is(p, lease.ErrUnclaimed),
		})
	}
	slices.SortStableFunc(peers, func(a, b control.Peer) int { return a.Subnet.Compare(b.Subnet) })
	return peers
}

// Note tells of the leases that are no peers and should be, "" if there are none.
func (c *Log) Note() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	var first *lease.PeerError
	count := 0
	for _, p := range c.leftOut {
		if errors.Is(p, lease.ErrUnclaimed) {
			continue
		}
		count++
		if first == nil || p.Subnet.Compare(first.Subnet) < 0 {
			first = p
		}
	}
	const remedy = "uvxlan peers lists all, and daemons with an old network configuration need a restart"
	switch count {
	case 0:
		return ""
	case 1:
		return fmt.Sprintf("the lease of %s at %s is no peer: %v; %s", first.Subnet, first.Underlay, first.Err, remedy)
	}
	return fmt.Sprintf("%d leases are no peers, such as that of %s at %s: %v; %s", count, first.Subnet, first.Underlay, first.Err, remedy)
}

// reasons are the errors that were joined to err.
func reasons(err error) (all []error) {
	if joined, ok := err.(interface{ Unwrap() []error }); ok {
		for _, e := range joined.Unwrap() {
			all = append(all, reasons(e)...)
		}
		return all
	}
	if err == nil {
		return nil
	}
	return []error{err}
}

// Tell names an update's peers. A last line may follow later.
func (c *Log) Tell(u lease.Update) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.running {
		c.running = true
		time.AfterFunc(changesTime, c.sum)
	}
	ctx := context.Background()
	for _, l := range u.Leases {
		level := c.levelLocked(&c.changed)
		if c.log.Enabled(ctx, level) {
			c.log.Log(ctx, level, "peer", append(Subnets(l), addresses(l.Attrs)...)...)
		}
	}
	for _, l := range u.Deleted {
		level := c.levelLocked(&c.gone)
		if c.log.Enabled(ctx, level) {
			c.log.Log(ctx, level, "peer gone", Subnets(l)...)
		}
	}
}

// levelLocked counts a change, in rest if it has no line of its own.
func (c *Log) levelLocked(rest *int) slog.Level {
	if c.named < manyChanges {
		c.named++
		return slog.LevelInfo
	}
	*rest++
	return slog.LevelDebug
}

// sum ends the time and logs the number of changes that had no line.
func (c *Log) sum() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.changed+c.gone > 0 {
		c.log.Info("more peers changed", "new_or_changed", c.changed, "gone", c.gone)
	}
	c.named, c.changed, c.gone, c.running = 0, 0, 0, false
}

// Subnets are a lease's subnets as attributes of a line in the log.
func Subnets(l lease.Lease) []any {
	attrs := []any{"subnet", l.Subnet}
	if l.IPv6Subnet.IsValid() {
		attrs = append(attrs, "ipv6_subnet", l.IPv6Subnet)
	}
	return attrs
}

// addresses are the owner's addresses in the same way.
func addresses(a lease.Attrs) []any {
	attrs := []any{"public_ip", a.PublicIP}
	if a.PublicIPv6.IsValid() {
		attrs = append(attrs, "public_ipv6", a.PublicIPv6)
	}
	return attrs
}

package daemon

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	"uvxlan/lease"
)

const (
	// manyChanges is how many peers may come, change or go within changesTime,
	// each with a line in the log. Of more there is one line for all of that
	// time, and theirs are for debugging.
	manyChanges = 20
	changesTime = time.Second
)

// changeLog names the peers that come, change and go.
type changeLog struct {
	log *slog.Logger

	mu      sync.Mutex // guards the rest
	named   int        // changes within the time that runs
	changed int        // those without a line, as is gone
	gone    int
	running bool // the time
}

// examples is how many of the leases that are no peers have their reason told.
const examples = 5

// leftOut tells of an update's leases that are no peers, given what a router
// says of them.
func (c *changeLog) leftOut(err error) {
	all := reasons(err)
	if len(all) == 0 {
		return
	}
	c.log.Warn("leases that are no peers were left out", "count", len(all), "error", errors.Join(all[:min(len(all), examples)]...))
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

// tell names an update's peers. A last line may follow later.
func (c *changeLog) tell(u lease.Update) {
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
			c.log.Log(ctx, level, "peer", append(subnetsOf(l), addressesOf(l.Attrs)...)...)
		}
	}
	for _, l := range u.Deleted {
		level := c.levelLocked(&c.gone)
		if c.log.Enabled(ctx, level) {
			c.log.Log(ctx, level, "peer gone", subnetsOf(l)...)
		}
	}
}

// levelLocked counts a change, in rest if it has no line of its own.
func (c *changeLog) levelLocked(rest *int) slog.Level {
	if c.named < manyChanges {
		c.named++
		return slog.LevelInfo
	}
	*rest++
	return slog.LevelDebug
}

// sum ends the time and tells of what had no line.
func (c *changeLog) sum() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.changed+c.gone > 0 {
		c.log.Info("more peers changed", "new_or_changed", c.changed, "gone", c.gone)
	}
	c.named, c.changed, c.gone, c.running = 0, 0, 0, false
}

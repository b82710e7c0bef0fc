package daemon

import (
	"context"
	"time"
)

// Bounds of the wait between attempts to make the device again.
const (
	backoffMin = 100 * time.Millisecond
	backoffMax = 30 * time.Second
	// steadyAfter is how long a device must have lasted for the next attempt to
	// come at once again.
	steadyAfter = 2 * backoffMax
)

// backoff is a wait that is nothing at first and then doubles from backoffMin
// to backoffMax.
type backoff struct{ due time.Duration }

func (b *backoff) reset() { b.due = 0 }

// wait sleeps for the next wait; it returns the context's error if that ends
// first.
func (b *backoff) wait(ctx context.Context) error {
	due := b.due
	b.due = min(max(2*due, backoffMin), backoffMax)
	t := time.NewTimer(due)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return ctx.Err()
	}
}

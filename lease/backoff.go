package lease

import (
	"context"
	"math/rand/v2"
	"time"
)

// Bounds of the wait between attempts to reach the registry.
const (
	backoffMin = 100 * time.Millisecond
	backoffMax = 5 * time.Second
)

// backoff is a wait that doubles from min to max. The upper half of each wait is
// random, so that hosts that lost the registry together don't return together.
type backoff struct {
	min, max time.Duration
	cur      time.Duration
}

func (b *backoff) next() time.Duration {
	b.cur = min(max(2*b.cur, b.min), b.max)
	return b.cur/2 + rand.N(b.cur/2+1)
}

func (b *backoff) reset() { b.cur = 0 }

// wait sleeps for the next wait; it returns the context's error if that ends
// first.
func (b *backoff) wait(ctx context.Context) error { return sleep(ctx, b.next()) }

func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}

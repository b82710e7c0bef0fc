package daemon

import (
	"context"
	"errors"
	"slices"
	"testing"
	"testing/synctest"
	"time"
)

func TestBackoff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var b backoff
		var waits []time.Duration
		for range 12 {
			start := time.Now()
			if err := b.wait(t.Context()); err != nil {
				t.Fatal(err)
			}
			waits = append(waits, time.Since(start))
		}
		want := []time.Duration{0, backoffMin, 2 * backoffMin, 4 * backoffMin}
		if !slices.Equal(waits[:len(want)], want) || waits[10] != backoffMax || waits[11] != backoffMax {
			t.Errorf("it waited %v", waits)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		start := time.Now()
		if err := b.wait(ctx); !errors.Is(err, context.DeadlineExceeded) || time.Since(start) != time.Second {
			t.Errorf("with a context that ends after a second: %v after %s", err, time.Since(start))
		}
		b.reset()
		start = time.Now()
		if err := b.wait(t.Context()); err != nil || time.Since(start) != 0 {
			t.Errorf("after a reset: %v, %s", err, time.Since(start))
		}
	})
}

package lease

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

func TestBackoffGrowsToItsBound(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := backoff{min: backoffMin, max: backoffMax}
		for want := backoffMin; ; want = min(2*want, backoffMax) {
			start := time.Now()
			if err := b.wait(t.Context()); err != nil {
				t.Fatal(err)
			}
			if took := time.Since(start); took < want/2 || took > want {
				t.Fatalf("waited %s, want from %s to %s", took, want/2, want)
			}
			if want == backoffMax {
				break
			}
		}
		b.reset()
		if d := b.next(); d > backoffMin {
			t.Errorf("after reset %s", d)
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if err := b.wait(ctx); !errors.Is(err, context.Canceled) {
			t.Errorf("wait returned %v", err)
		}
	})
}

func TestOutageIsLoggedOnceThenSlowly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log bytes.Buffer
		o := outage{log: slog.New(slog.NewTextHandler(&log, nil))}
		o.answered()
		for range 65 {
			o.failed(ErrUnavailable)
			time.Sleep(time.Second)
		}
		if n := strings.Count(log.String(), "waiting for"); n != 3 {
			t.Errorf("%d warnings in 65 s, want 3:\n%s", n, &log)
		}
		o.answered()
		o.answered()
		if n := strings.Count(log.String(), "answers"); n != 1 {
			t.Errorf("the return is logged %d times:\n%s", n, &log)
		}
		var s Status
		o.fill(&s)
		if !s.Connected || s.Since.IsZero() || s.Err != nil || s.Failures != 65 || !errors.Is(s.LastErr, ErrUnavailable) || s.LastErrAt.IsZero() {
			t.Errorf("status %+v", s)
		}
	})
}

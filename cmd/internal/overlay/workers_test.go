package overlay

import (
	"math"
	"testing"
)

func TestWorkersFor(t *testing.T) {
	for _, c := range []struct {
		processors int
		quota      float64
		want       int
	}{
		{1, math.Inf(1), 1},
		{4, math.Inf(1), 4},
		{64, math.Inf(1), 8},
		{64, 0.25, 1},
		{64, 1, 1},
		{64, 1.9, 1},
		{64, 3, 3},
		{2, 3, 2},
		{64, 40, 8},
	} {
		if got := workersFor(c.processors, c.quota); got != c.want {
			t.Errorf("%d CPUs, a quota of %v: %d workers, want %d", c.processors, c.quota, got, c.want)
		}
	}
}

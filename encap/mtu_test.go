package encap_test

import (
	"testing"

	"uvxlan/encap"
)

func TestMTU(t *testing.T) {
	if encap.OverheadIPv4 != 50 || encap.OverheadIPv6 != 70 {
		t.Fatalf("overheads %d, %d", encap.OverheadIPv4, encap.OverheadIPv6)
	}
	for _, tt := range []struct {
		outer encap.OuterMTU
		v6    bool
		inner encap.InnerMTU
	}{
		{1500, false, 1450},
		{1500, true, 1430},
		{9000, false, 8950},
		{1280, true, 1210},
		{50, false, 0},
		{20, false, 0},
	} {
		if got := tt.outer.Inner(tt.v6); got != tt.inner {
			t.Errorf("%d.Inner(%v) = %d, want %d", tt.outer, tt.v6, got, tt.inner)
		}
		if got := tt.inner.Outer(tt.v6); tt.inner > 0 && got != tt.outer {
			t.Errorf("%d.Outer(%v) = %d, want %d", tt.inner, tt.v6, got, tt.outer)
		}
	}
}

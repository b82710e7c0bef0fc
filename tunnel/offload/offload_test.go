package offload_test

import (
	"testing"

	"uvxlan/tunnel/offload"
)

func TestOffloadNames(t *testing.T) {
	for _, o := range []offload.Set{0, offload.GSO, offload.TSO | offload.UDP, offload.All} {
		if got, err := offload.Parse(o.String()); err != nil || got != o {
			t.Errorf("%s: parsed as %s, %v", o, got, err)
		}
	}
	if _, err := offload.Parse("gso,warp"); err == nil {
		t.Error("an unknown name was accepted")
	}
}

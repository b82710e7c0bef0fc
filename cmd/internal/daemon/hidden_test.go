package daemon

import (
	"net/netip"
	"strings"
	"testing"

	"uvxlan/cmd/internal/extiface"
	"uvxlan/cmd/internal/handover"
	"uvxlan/lease"
)

// A start is refused under an overlay that would hide the underlay; one that carries
// packets already goes on.
func TestCheckHidden(t *testing.T) {
	config, err := lease.ParseConfig([]byte(`{"Network":"172.7.0.0/16","Backend":{"Type":"vxlan"}}`))
	if err != nil {
		t.Fatal(err)
	}
	inside := extiface.Interface{Name: "none", PublicIP: netip.MustParseAddr("172.7.1.1")}
	s := &service{config: config, underlay: &uplink{now: inside}}
	if err := s.checkHidden(); err == nil || !strings.Contains(err.Error(), "172.7.1.1 lies inside the overlay network 172.7.0.0/16") {
		t.Errorf("a start: %v", err)
	}
	s.before = handover.NewState()
	if err := s.checkHidden(); err != nil {
		t.Errorf("a handover: %v", err)
	}
}

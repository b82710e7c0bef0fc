package overlay

import (
	"net/netip"
	"slices"
	"testing"

	"uvxlan/cmd/internal/extiface"
	"uvxlan/tunnel"
)

// Rules of both families are looked at, each for the peers of its own.
func TestTunnels(t *testing.T) {
	a := netip.MustParseAddr
	peers := []tunnel.Peer{{Underlay: a("10.66.0.2")}, {Underlay: a("fd66::2")}, {Underlay: a("10.66.0.2")}, {Underlay: a("fd66::3")}}
	for name, c := range map[string]struct {
		ext  extiface.Interface
		want map[netip.Addr][]netip.Addr // remotes by the local address
	}{
		"IPv4": {extiface.Interface{Address: a("10.66.0.1")}, map[netip.Addr][]netip.Addr{a("10.66.0.1"): {a("10.66.0.2")}}},
		"IPv6": {extiface.Interface{AddressV6: a("fd66::1")}, map[netip.Addr][]netip.Addr{a("fd66::1"): {a("fd66::2"), a("fd66::3")}}},
		"both": {extiface.Interface{Address: a("10.66.0.1"), AddressV6: a("fd66::1")}, map[netip.Addr][]netip.Addr{
			a("10.66.0.1"): {a("10.66.0.2")}, a("fd66::1"): {a("fd66::2"), a("fd66::3")},
		}},
	} {
		got := tunnels(c.ext, 4789, peers)
		if len(got) != len(c.want) {
			t.Errorf("%s: %+v", name, got)
		}
		for _, g := range got {
			if !slices.Equal(g.Remotes, c.want[g.Local]) || g.Port != 4789 {
				t.Errorf("%s: %+v, want remotes %v", name, g, c.want[g.Local])
			}
		}
	}
}

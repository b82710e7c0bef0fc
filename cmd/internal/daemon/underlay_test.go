package daemon

import (
	"net/netip"
	"testing"

	"uvxlan/cmd/internal/extiface"
	"uvxlan/cmd/internal/host"
)

// What happens to containers' interfaces is no reason to look at the underlay, unless
// the choice depends on them.
func TestUnderlayConcerns(t *testing.T) {
	const own, other = 2, 7
	public := extiface.Wanted{PublicIP: netip.MustParseAddr("192.0.2.1")}
	for _, c := range []struct {
		when   string
		wanted extiface.Wanted
		lost   bool
		event  host.Event
		want   bool
	}{
		{"own address", extiface.Wanted{}, false, host.Event{Kind: host.Address, Index: own}, true},
		{"own link", extiface.Wanted{}, false, host.Event{Kind: host.Link, Index: own}, true},
		{"another's address", extiface.Wanted{}, false, host.Event{Kind: host.Address, Index: other}, false},
		{"another's link", extiface.Wanted{}, false, host.Event{Kind: host.Link, Index: other}, false},
		{"a route", extiface.Wanted{}, false, host.Event{Kind: host.Route}, false},
		{"another's address may be the public one", public, false, host.Event{Kind: host.Address, Index: other}, true},
		{"another's address is a choice", extiface.Wanted{}, true, host.Event{Kind: host.Address, Index: other}, true},
		{"another's link is a choice", extiface.Wanted{}, true, host.Event{Kind: host.Link, Index: other}, true},
		{"a route makes a choice", extiface.Wanted{}, true, host.Event{Kind: host.Route}, true},
	} {
		u := &uplink{wanted: c.wanted, lost: c.lost, now: extiface.Interface{Name: "eth0", Index: own}}
		if got := u.concerns(c.event); got != c.want {
			t.Errorf("%s: %t", c.when, got)
		}
	}
}

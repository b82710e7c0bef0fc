package extiface

import (
	"errors"
	"net/netip"
	"strings"
	"testing"

	"uvxlan/tunnel/netnstest"
)

// A choice is kept as long as it can be, and made again when it can't.
func TestIntegrationFollow(t *testing.T) {
	newHost(t)
	sh := func(line string) { t.Helper(); netnstest.Run(t, "sh", "-c", line) }
	wanted := Wanted{Names: []string{"eth0"}}
	now, err := Choose(wanted)
	if err != nil {
		t.Fatal(err)
	}
	follow := func(when, name, address string, words ...string) {
		t.Helper()
		next, err := Follow(wanted, now, false)
		if err != nil || next.Name != name || next.Address.String() != address || next.PublicIP != next.Address {
			t.Fatalf("%s: %+v, %v; want %s on %s", when, next, err, address, name)
		}
		for _, w := range words {
			if got := now.Changes(next); !strings.Contains(got, w) {
				t.Errorf("%s: the change is %q, want %q", when, got, w)
			}
		}
		now = next
	}
	follow("nothing changed", "eth0", "192.168.7.7")
	sh("ip addr add 192.168.7.6/24 dev eth0")
	follow("a better address", "eth0", "192.168.7.7")
	sh("ip link set eth0 mtu 1400")
	if follow("another MTU", "eth0", "192.168.7.7", "its MTU is 1400, no longer 1500"); now.MTU != 1400 {
		t.Errorf("the MTU is %d", now.MTU)
	}
	sh("ip link set eth0 down; ip link set eth0 name wan0; ip link set wan0 up")
	follow("renamed", "wan0", "192.168.7.7", "the interface is wan0, no longer eth0")
	sh("ip addr flush dev wan0; ip addr add 192.168.7.9/24 dev wan0")
	follow("renumbered under the other name", "wan0", "192.168.7.9", "its address is 192.168.7.9, no longer 192.168.7.7")
	sh("ip addr flush dev wan0")
	if next, err := Follow(wanted, now, false); err == nil {
		t.Errorf("without an address: %+v", next)
	}
	sh("ip addr add 192.168.7.9/24 dev wan0")
	follow("the address is back", "wan0", "192.168.7.9")
}

// A public address that was given stays; IPv6 is followed where the network has it.
func TestIntegrationFollowGiven(t *testing.T) {
	newHost(t)
	sh := func(line string) { t.Helper(); netnstest.Run(t, "sh", "-c", line) }
	sh("ip addr add 2001:db8::7/64 dev eth0 nodad")
	wanted := Wanted{Names: []string{"eth0"}, PublicIP: netip.MustParseAddr("203.0.113.7")}
	now, err := Choose(wanted)
	if err == nil {
		now, err = now.AddIPv6(t.Context(), wanted)
	}
	if err != nil {
		t.Fatal(err)
	}
	if next, err := Follow(wanted, now, true); err != nil || next != now {
		t.Errorf("nothing changed: %+v, %v", next, err)
	}
	sh("ip addr del 2001:db8::7/64 dev eth0")
	if next, err := Follow(wanted, now, true); !errors.Is(err, ErrNoIPv6) {
		t.Errorf("without IPv6: %+v, %v", next, err)
	}
	sh("ip addr add 2001:db8::9/64 dev eth0 nodad")
	next, err := Follow(wanted, now, true)
	if err != nil || next.AddressV6.String() != "2001:db8::9" || next.PublicIPv6 != next.AddressV6 || next.PublicIP != wanted.PublicIP {
		t.Errorf("renumbered: %+v, %v", next, err)
	}
}

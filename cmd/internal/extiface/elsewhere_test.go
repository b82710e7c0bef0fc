package extiface

import (
	"net/netip"
	"strings"
	"testing"
)

// A public address that the host has on another interface, as with routing to the
// host, is where packets are sent from and received at.
func TestIntegrationPublicElsewhere(t *testing.T) {
	newHost(t)
	at := netip.MustParseAddr
	ip(t, "address add 10.9.0.1/32 dev lo")
	ip(t, "address add 2001:db8:9::1/128 dev lo")
	ip(t, "address add 2001:db8:7::7/64 dev eth0 nodad")
	ip(t, "route add default via 192.168.7.1")
	for _, c := range []struct {
		name                string
		w                   Wanted
		link, own, v4, v6   string
		local, localV6, pub string
	}{
		{
			name: "on lo", w: Wanted{Names: []string{"eth0"}, PublicIP: at("10.9.0.1")},
			link: "eth0", own: "192.168.7.7", v4: "10.9.0.1", v6: "2001:db8:7::7", local: "10.9.0.1",
		},
		{
			name: "on lo, alone", w: Wanted{PublicIP: at("10.9.0.1"), PublicIPv6: at("2001:db8:9::1")},
			link: "eth0", own: "192.168.7.7", v4: "10.9.0.1", v6: "2001:db8:9::1", local: "10.9.0.1", localV6: "2001:db8:9::1",
		},
		{
			name: "on another interface", w: Wanted{Names: []string{"eth0"}, PublicIP: at("10.1.0.7")},
			link: "eth0", own: "192.168.7.7", v4: "10.1.0.7", v6: "2001:db8:7::7", local: "10.1.0.7",
		},
		{
			name: "the interface has none", w: Wanted{Names: []string{"peer0"}, PublicIP: at("10.9.0.1"), PublicIPv6: at("2001:db8:9::1")},
			link: "peer0", own: "10.9.0.1", v4: "10.9.0.1", v6: "2001:db8:9::1",
		},
		{
			name: "a NAT's", w: Wanted{Names: []string{"eth0"}, PublicIP: at("203.0.113.7"), PublicIPv6: at("2001:db8:99::1")},
			link: "eth0", own: "192.168.7.7", v4: "192.168.7.7", v6: "2001:db8:7::7", pub: "203.0.113.7",
		},
		{
			name: "of this host only", w: Wanted{Names: []string{"eth0"}, PublicIP: at("127.0.0.1")},
			link: "eth0", own: "192.168.7.7", v4: "192.168.7.7", v6: "2001:db8:7::7", pub: "127.0.0.1",
		},
	} {
		i, err := Choose(c.w)
		if err == nil {
			i, err = i.AddIPv6(t.Context(), c.w)
		}
		v4, v6 := i.Sockets()
		if err != nil || i.Name != c.link || i.Address != at(c.own) || v4 != at(c.v4) || v6 != at(c.v6) || i.MTU != 1500 {
			t.Errorf("%s: %+v, %v", c.name, i, err)
			continue
		}
		if want, _ := netip.ParseAddr(c.local); i.Local != want {
			t.Errorf("%s: Local is %s", c.name, i.Local)
		}
		if want, _ := netip.ParseAddr(c.localV6); i.LocalV6 != want {
			t.Errorf("%s: LocalV6 is %s", c.name, i.LocalV6)
		}
		if c.pub != "" && i.PublicIP != at(c.pub) {
			t.Errorf("%s: PublicIP is %s", c.name, i.PublicIP)
		}
		if next, err := Follow(c.w, i, true); err != nil || next != i {
			t.Errorf("%s: it doesn't stay: %+v, %v", c.name, next, err)
		}
	}
}

// The address may come and go while the daemon runs.
func TestIntegrationFollowElsewhere(t *testing.T) {
	newHost(t)
	w := Wanted{Names: []string{"eth0"}, PublicIP: netip.MustParseAddr("10.9.0.1")}
	now, err := Choose(w)
	if err != nil {
		t.Fatal(err)
	}
	for _, change := range []struct{ command, want, words string }{
		{"address add 10.9.0.1/32 dev lo", "10.9.0.1", "the address on another interface is 10.9.0.1"},
		{"address delete 10.9.0.1/32 dev lo", "192.168.7.7", "no longer 10.9.0.1"},
	} {
		ip(t, change.command)
		next, err := Follow(w, now, false)
		if got, _ := next.Sockets(); err != nil || got.String() != change.want || next.Address != now.Address {
			t.Errorf("after %s: %+v, %v", change.command, next, err)
		}
		if got := now.Changes(next); !strings.Contains(got, change.words) {
			t.Errorf("after %s the change is %q", change.command, got)
		}
		now = next
	}
}

// An interface that leads to no other host is refused with what to say instead.
func TestIntegrationLeadsNowhere(t *testing.T) {
	newHost(t)
	ip(t, "address add 10.9.0.1/32 dev lo")
	ip(t, "route add default via 192.168.7.1")
	for _, c := range []struct {
		name string
		w    Wanted
		want string
	}{
		{"by name", Wanted{Names: []string{"lo"}}, "lo leads to no other host: name the interface that does and, if the others know this host by 10.9.0.1, that: -iface eth0 -public-ip 10.9.0.1"},
		{"by address", Wanted{Names: []string{"10.9.0.1"}}, "-iface eth0 -public-ip 10.9.0.1"},
		{"by name and address", Wanted{Names: []string{"lo"}, PublicIP: netip.MustParseAddr("10.9.0.1")}, "-iface eth0 -public-ip 10.9.0.1"},
		{"by pattern", Wanted{Patterns: patterns(`^10\.9\.`, "^lo$")}, "10.9.0.1 of lo, which leads to no other host"},
	} {
		if got, err := Choose(c.w); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %+v, %v", c.name, got, err)
		}
	}
	ip(t, "address delete 10.9.0.1/32 dev lo")
	if _, err := Choose(Wanted{Names: []string{"lo"}}); err == nil || !strings.Contains(err.Error(), "name the interface that does, -iface eth0") {
		t.Errorf("without an address: %v", err)
	}
}

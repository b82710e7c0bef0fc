package host_test

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"uvxlan/bench/e2e"
	"uvxlan/lease"
)

// A foreign route to a peer's containers is named in status and peers, and
// forgotten when it goes; one that ours wins over isn't.
func TestIntegrationForeignRoutesAreTold(t *testing.T) {
	w := e2e.NewWorld(t, "kb21", "kb22")
	d := w.Start("kb21", "kb22")[0]
	w.Mesh("kb21", "kb22")
	kb21, kb22 := w.Host("kb21"), w.Host("kb22")
	path := func(want string) func() bool {
		return func() bool {
			peers := e2e.AskPeers(t, d)
			return len(peers) == 1 && peers[0].Path == want
		}
	}
	e2e.Shell(t, kb21.Node, "ip route add 172.0.0.0/8 via "+kb22.Address.String())
	for _, route := range []string{
		fmt.Sprintf("172.7.22.0/24 via %s dev eth0", kb22.Address),
		fmt.Sprintf("172.7.22.128/25 via %s dev eth0", kb22.Address),
		"blackhole 172.7.22.0/23",
	} {
		e2e.Shell(t, kb21.Node, "ip route add "+route)
		line := e2e.AwaitWords(t, d, "note", "route "+route, "past the overlay", "172.7.22.0/24 at "+kb22.Address.String())
		e2e.Await(t, "the peer's path", path("foreign"))
		_, remedy, _ := strings.Cut(line, "past the overlay: ")
		e2e.Shell(t, kb21.Node, remedy)
		e2e.AwaitNoFault(t, d)
		e2e.Await(t, "the peer's path", path("vxlan"))
	}
	w.Mesh("kb21", "kb22")
}

// A route of another table, which a rule leads to, counts as well.
func TestIntegrationForeignTableIsTold(t *testing.T) {
	w := e2e.NewWorld(t, "kb21", "kb22")
	d := w.Start("kb21", "kb22")[0]
	kb21 := w.Host("kb21")
	e2e.Shell(t, kb21.Node, "ip route add 172.7.0.0/16 via "+w.Host("kb22").Address.String()+" table 77")
	e2e.AwaitNoFault(t, d) // nothing leads to the table
	e2e.Shell(t, kb21.Node, "ip rule add to 172.7.0.0/16 table 77")
	line := e2e.AwaitWords(t, d, "note", "table 77", "past the overlay")
	_, remedy, _ := strings.Cut(line, "past the overlay: ")
	e2e.Shell(t, kb21.Node, remedy)
	e2e.AwaitNoFault(t, d)
}

// Where SubnetMin and SubnetMax leave most of the network out, the rest stays with
// whoever has it; a peer there is reached all the same.
func TestIntegrationRoutesOfAllocatableSubnets(t *testing.T) {
	w := e2e.NewWorld(t, "kb21", "kb22")
	w.Configure(`{"Network":"172.0.0.0/8","SubnetLen":24,"SubnetMin":"172.7.16.0","SubnetMax":"172.7.31.0","Backend":{"Type":"vxlan"}}`)
	kb21 := w.Host("kb21")
	e2e.Shell(t, kb21.Node, "ip addr add 172.200.0.5/32 dev lo") // beyond, as a gateway's network
	d := w.Start("kb21", "kb22")[0]
	w.Mesh("kb21", "kb22")
	routes := func() string {
		return strings.Join(strings.Fields(e2e.Command(t, kb21.Node, "ip route show dev flannel.1 proto 89")), " ")
	}
	if got := routes(); !strings.HasPrefix(got, "172.7.16.0/20 scope link") || strings.Count(got, "scope") != 1 {
		t.Errorf("the routes are %s", got)
	}
	guest := lease.Lease{Subnet: netip.MustParsePrefix("172.99.1.0/24"), Attrs: lease.Attrs{
		PublicIP: netip.MustParseAddr("192.168.14.77"), BackendType: lease.TypeVXLAN, BackendData: []byte(`{"VNI":1,"VtepMAC":"02:00:00:00:00:77"}`),
	}}
	guest, err := w.Registry().Create(w.Context(), guest, lease.DefaultTTL)
	if err != nil {
		t.Fatal(err)
	}
	e2e.Await(t, "the route to the peer beyond", func() bool { return strings.Contains(routes(), "172.99.1.0/24") })
	if err := w.Registry().Delete(w.Context(), guest); err != nil {
		t.Fatal(err)
	}
	e2e.Await(t, "the end of that route", func() bool { return !strings.Contains(routes(), "172.99.1.0/24") })
	e2e.AwaitNoFault(t, d)
}

// An overlay whose route would hide etcd or the gateway is refused; where the
// kernel has a narrower route to them, it isn't.
func TestIntegrationHiddenUnderlay(t *testing.T) {
	w := e2e.NewWorld(t, "kb21", "kb22")
	kb22 := w.Host("kb22")
	ended := func(config string, words ...string) {
		t.Helper()
		w.Configure(config)
		d, err := w.Cluster.Start(t.Context(), kb22)
		if err != nil {
			t.Fatal(err)
		}
		if err := d.Ready(w.Context()); err == nil || !containsAll(err.Error(), words) {
			t.Errorf("%s: %v, want %q", config, err, words)
		}
	}
	// The gateway is on-link by a route of its own, as clouds give it.
	e2e.Shell(t, kb22.Node, "ip route del default && ip route add default via 172.31.0.1 dev eth0 onlink")
	ended(`{"Network":"172.16.0.0/12","SubnetLen":24,"Backend":{"Type":"vxlan"}}`, "the gateway 172.31.0.1", "172.16.0.0/12", "SubnetMin and SubnetMax")
	ended(`{"Network":"192.168.0.0/16","SubnetLen":24,"Backend":{"Type":"vxlan"}}`, "public address 192.168.14.22", "192.168.0.0/16")
	w.Configure(`{"Network":"192.168.0.0/16","SubnetLen":24,"SubnetMin":"192.168.128.0","SubnetMax":"192.168.255.0","Backend":{"Type":"vxlan"}}`)
	e2e.Shell(t, kb22.Node, "ip route replace default via 192.168.14.1")
	d, err := w.Cluster.Start(t.Context(), kb22)
	if err != nil {
		t.Fatal(err)
	}
	if err := d.Ready(w.Context()); err != nil {
		t.Errorf("a network whose other half the underlay is: %v", err)
	}
}

func containsAll(text string, words []string) bool {
	for _, w := range words {
		if !strings.Contains(text, w) {
			return false
		}
	}
	return true
}

package firewall_test

import (
	"net/netip"
	"strings"
	"testing"

	"uvxlan/cmd/internal/firewall"
	"uvxlan/cmd/internal/firewall/trace"
	"uvxlan/tunnel/netnstest"
)

// Rules in the way of the overlay's datagrams are told with the way that they are in,
// and with a command after which they no longer are.
func TestIntegrationObstacles(t *testing.T) {
	netnstest.RequireRoot(t)
	tunnel := firewall.Tunnel{
		Local: netip.MustParseAddr("192.168.14.21"), Port: 4789, Link: trace.Interface{Name: "eth0", Index: 2},
		Remotes: []netip.Addr{netip.MustParseAddr("192.168.14.22"), netip.MustParseAddr("192.168.15.31")},
	}
	for _, c := range []struct {
		rules, what string
		out, sure   bool
	}{
		{rules: "true"},
		{rules: "iptables -A INPUT -p udp --dport 4789 -j LOG"},
		{rules: "iptables -A INPUT -p udp --dport 4789 -j DROP", what: "chain INPUT of iptables' table filter drops the VXLAN datagrams that come in", sure: true},
		{rules: "iptables -P OUTPUT DROP", what: "the policy of chain OUTPUT of iptables' table filter drops the VXLAN datagrams that go out", out: true, sure: true},
		{rules: "iptables -A INPUT -s 192.168.14.22 -p udp --dport 4789 -j REJECT", what: "may drop the VXLAN datagrams that come in"},
		{rules: "nft add table inet z; nft 'add chain inet z c { type filter hook output priority 0; policy drop; }'", what: "the policy of chain c of nftables' table inet z drops", out: true, sure: true},
		{rules: "nft add table ip z; nft 'add chain ip z c { type nat hook postrouting priority 100; }'; nft add rule ip z c udp dport 4789 snat to 192.0.2.1", what: "gives another address or port to the VXLAN datagrams that go out", out: true, sure: true},
	} {
		host := netnstest.New(t)
		in := func(do func() error) {
			t.Helper()
			if err := host.Do(do); err != nil {
				t.Fatal(err)
			}
		}
		in(func() error { netnstest.Run(t, "sh", "-c", c.rules); return nil })
		var all []firewall.Obstacle
		look := func() (err error) { all, err = firewall.Obstacles(tunnel); return err }
		in(look)
		if c.what == "" {
			if len(all) > 0 {
				t.Errorf("%s: %+v", c.rules, all)
			}
			continue
		}
		if len(all) != 1 || !strings.Contains(all[0].What, c.what) || all[0].Out != c.out || all[0].Sure != c.sure {
			t.Errorf("%s: %+v, want %q, out: %t, sure: %t", c.rules, all, c.what, c.out, c.sure)
			continue
		}
		remedy := all[0].Remedy
		in(func() error { netnstest.Run(t, "sh", "-c", remedy); return nil })
		if in(look); len(all) > 0 {
			t.Errorf("%s: after %q there is %+v", c.rules, remedy, all)
		}
	}
}

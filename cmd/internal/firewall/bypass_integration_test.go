package firewall

import (
	"net/netip"
	"slices"
	"testing"

	"uvxlan/cmd/internal/firewall/trace"
	"uvxlan/tunnel/netnstest"
)

// The words for what the rules do with the overlay's datagrams name the rule.
func TestIntegrationBypass(t *testing.T) {
	netnstest.Enter(t)
	tunnel := Tunnel{
		Local: netip.MustParseAddr("192.168.14.21"), Port: 8472, Link: trace.Interface{Name: "eth0", Index: 2},
		Remotes: []netip.Addr{netip.MustParseAddr("192.168.14.22"), netip.MustParseAddr("192.168.15.31")},
	}
	var b Bypass
	for _, c := range []struct {
		commands string
		want     []string
	}{
		{"true", nil},
		{"iptables-nft -A INPUT -p udp --dport 8472 -j ACCEPT; iptables-nft -A INPUT -p udp --dport 4789 -j DROP", nil},
		{"iptables-nft -t mangle -A OUTPUT -p udp --dport 8472 -j DSCP --set-dscp 46", []string{
			`the rule "meta l4proto udp th dport 8472 -j DSCP" of chain OUTPUT of iptables' table mangle is for VXLAN datagrams`,
		}},
		{"iptables-nft -t mangle -F; iptables-nft -F; iptables-nft -A INPUT -s 192.168.15.0/24 -j ACCEPT; iptables-nft -P INPUT DROP", []string{
			"the policy of chain INPUT of iptables' table filter may drop VXLAN datagrams",
		}},
		{"iptables-nft -P INPUT ACCEPT; nft 'table ip zones { chain out { type filter hook output priority 0; ip daddr 192.168.15.31 reject; }; }'", []string{
			`the rule "ip daddr 192.168.15.31 reject" of chain out of nftables' table ip zones may drop VXLAN datagrams`,
		}},
	} {
		netnstest.Run(t, "sh", "-ec", c.commands)
		got, err := b.Hazards(tunnel)
		if err != nil || !slices.Equal(got, c.want) {
			t.Errorf("after %s: %q, %v", c.commands, got, err)
		}
	}
}

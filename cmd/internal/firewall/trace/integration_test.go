package trace

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"uvxlan/tunnel/netnstest"
)

// Packets of an overlay by flannel.1 to the containers behind docker0, and back.
var (
	overlay4, subnet4 = netip.MustParsePrefix("10.42.0.0/16"), netip.MustParsePrefix("10.42.7.0/24")
	overlay6, subnet6 = netip.MustParsePrefix("2001:cafe:42::/56"), netip.MustParsePrefix("2001:cafe:42:1::/64")
	device, bridge    = Interface{Name: "flannel.1", Index: 7}, Interface{Name: "docker0", Index: 3}
)

func inbound(network, subnet netip.Prefix) Packet {
	return Packet{Src: Range{network, subnet}, Dst: Range{In: subnet}, In: device, Out: bridge, Each: true}
}

func outbound(network, subnet netip.Prefix) Packet {
	return Packet{Src: Range{In: subnet}, Dst: Range{network, subnet}, In: bridge, Out: device}
}

// sh runs commands in the test's namespace, with the names of the family.
func sh(t *testing.T, v6 bool, commands string) {
	t.Helper()
	netnstest.Run(t, "sh", "-ec", words(v6).Replace(commands))
}

// words replaces the placeholders in commands for a family.
func words(v6 bool) *strings.Replacer {
	if v6 {
		return strings.NewReplacer("IPT", "ip6tables-nft", "LEGACY", "ip6tables-legacy", "NET", overlay6.String(), "POD", subnet6.String(),
			"REFUSE", "icmp6-adm-prohibited", "FAMILY", "ip6", "TWO", "2001:cafe:42:1::2")
	}
	return strings.NewReplacer("IPT", "iptables-nft", "LEGACY", "iptables-legacy", "NET", overlay4.String(), "POD", subnet4.String(),
		"REFUSE", "icmp-host-prohibited", "FAMILY", "ip", "TWO", "10.42.7.2")
}

func places(drops []Drop) string {
	var all []string
	for _, d := range drops {
		w := fmt.Sprintf("%s/%s/%s: %s", d.Table, d.Base, d.Chain, d.Rule)
		if d.Legacy {
			w = "legacy " + w
		}
		if d.Only.IsValid() {
			w = d.Only.String() + " " + w
		}
		if d.Some {
			w = "some " + w
		}
		all = append(all, strings.TrimSpace(w))
	}
	return strings.Join(all, "; ")
}

func TestIntegrationForward(t *testing.T) {
	netnstest.RequireRoot(t)
	for _, c := range []struct {
		name, commands string
		in, out        string // where it is dropped
	}{
		{name: "nothing"},
		{
			name: "firewalld's way", commands: `nft 'table inet firewalld { chain filter_FORWARD {
				type filter hook forward priority filter + 10; policy accept;
				ct state { established, related } accept; ct status dnat accept; iifname "lo" accept; ct state invalid drop
				jump filter_FORWARD_ZONES; reject with icmpx admin-prohibited; }
				chain filter_FORWARD_ZONES { iifname "docker0" goto filter_FWD_docker; goto filter_FWD_public; }
				chain filter_FWD_docker { accept; }
				chain filter_FWD_public { meta l4proto { icmp, ipv6-icmp } accept; }; }'`,
			in: "some firewalld/filter_FORWARD/filter_FORWARD: reject",
		},
		{
			name: "the last rule rejects", commands: `nft 'table inet zones { chain filter_forward {
				type filter hook forward priority filter + 10; policy accept;
				ct state established,related accept; iifname "c0" accept; reject with icmpx type admin-prohibited; }; }'`,
			in: "zones/filter_forward/filter_forward: reject", out: "zones/filter_forward/filter_forward: reject",
		},
		{
			name: "accepted by address", commands: `nft 'table inet zones { chain through { type filter hook forward priority 10;
				ct state vmap { established : accept, related : accept, invalid : drop }; FAMILY saddr NET accept; FAMILY daddr NET accept; drop; }; }'`,
		},
		{
			name: "only one way", commands: `nft 'table inet zones { chain through { type filter hook forward priority 10; policy drop;
				ct state vmap { established : accept, related : accept, invalid : drop }; FAMILY daddr POD accept; }; }'`,
			out: "zones/through/through:",
		},
		{
			name: "accepted by a set", commands: `nft 'table inet zones { set pods { type ipv4_addr; flags interval; elements = { 10.0.0.0/8, 192.0.2.1 }; }
				set pods6 { type ipv6_addr; flags interval; elements = { 2001:cafe::/32 }; }
				chain through { type filter hook forward priority 10; policy drop; ip saddr @pods accept; ip6 saddr @pods6 accept; }; }'`,
		},
		{
			name: "a set of others", commands: `nft 'table inet zones { set bad { type ipv4_addr; flags interval; elements = { 10.43.0.0/16, 10.128.0.0/9 }; }
				chain through { type filter hook forward priority 10; ip saddr @bad drop; ip saddr 10.43.0.0/16 drop; ip saddr { 10.43.0.0/16, 192.0.2.0/24 } drop
				ip6 saddr { 2001:db8::/32 } drop; iifname { "eth0", "eth1" } drop; iifname "ve*" drop; oifname != { "docker0", "flannel.1" } drop; }; }'`,
		},
		{
			name: "by interfaces together", commands: `nft 'table inet zones { chain through { type filter hook forward priority 10; policy drop;
				iifname . oifname { "flannel.1" . "docker0", "eth0" . "eth1" } accept; iifname . FAMILY daddr { "docker0" . NET } accept; }; }'`,
		},
		{
			name: "by another interface", commands: `nft 'table inet zones { chain through { type filter hook forward priority 10; policy drop;
				iifname . oifname { "flannel.1" . "docker1", "eth0" . "eth1" } accept; iifname "docker0" oifname "flannel.1" accept; }; }'`,
			in: "zones/through/through:",
		},
		{
			name: "ports", commands: `nft 'table inet zones { chain through { type filter hook forward priority 10; policy drop;
				tcp dport { 22, 80, 443 } accept; iifname "docker0" accept; }; }'`,
			in: "some zones/through/through:",
		},
		{
			name: "a policy for some", commands: `nft 'table inet zones { chain through { type filter hook forward priority 10;
				FAMILY daddr TWO tcp dport != 80 drop; limit rate over 1000/second drop; meta mark 0x1 drop; udp dport 53 drop; }; }'`,
		},
		{
			name: "switched off", commands: `nft 'table inet zones { flags dormant; chain through { type filter hook forward priority 10; policy drop; }; }'`,
		},
		{
			name: "another hook", commands: `nft 'table inet zones { chain in { type filter hook input priority 10; policy drop; }; chain unused { drop; }; }'`,
		},
		{
			name: "numbers and other conditions", commands: `nft 'table inet zones { chain through { type filter hook forward priority 10;
				meta mark > 0x10 drop; meta length > 9000 drop; ct mark != 0 drop; fib daddr type local drop; fib saddr type != unicast drop
				meta nfproto != { ipv4, ipv6 } drop; th dport 1-1023 drop; rt ip nexthop 192.0.2.9 drop; meta cpu 77 drop; }; }'`,
		},
		{
			name: "several hosts", commands: `nft 'table FAMILY a { chain through { type filter hook forward priority 0; policy drop; FAMILY saddr NET accept; FAMILY daddr NET accept; }; }
				table FAMILY b { chain through { type filter hook forward priority 5; iifname "flannel.1" counter drop; }; }'`,
			in: `b/through/through: iifname "flannel.1" drop`,
		},
		{
			name: "ufw", commands: `IPT -P FORWARD DROP; for c in before after reject; do IPT -N ufw-$c-forward; IPT -A FORWARD -j ufw-$c-forward; done
				IPT -N ufw-user-forward; IPT -A ufw-before-forward -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
				IPT -A ufw-before-forward -j ufw-user-forward; IPT -A ufw-user-forward -i docker0 -o flannel.1 -j ACCEPT
				IPT -A ufw-reject-forward -j REJECT
				IPT -N FLANNEL-FWD; IPT -A FLANNEL-FWD -s NET -j ACCEPT; IPT -A FLANNEL-FWD -d NET -j ACCEPT; IPT -A FORWARD -j FLANNEL-FWD`,
			in: "filter/FORWARD/ufw-reject-forward: -j REJECT",
		},
		{
			name: "a REJECT before our jump", commands: `IPT -A FORWARD -j REJECT --reject-with REFUSE
				IPT -N FLANNEL-FWD; IPT -A FLANNEL-FWD -s NET -j ACCEPT; IPT -A FLANNEL-FWD -d NET -j ACCEPT; IPT -A FORWARD -j FLANNEL-FWD`,
			in: "filter/FORWARD/FORWARD: -j REJECT", out: "filter/FORWARD/FORWARD: -j REJECT",
		},
		{
			name: "Docker before 28", commands: `IPT -P FORWARD DROP; IPT -N DOCKER; IPT -N DOCKER-USER; IPT -N DOCKER-ISO-1; IPT -N DOCKER-ISO-2
				IPT -A FORWARD -j DOCKER-USER; IPT -A FORWARD -j DOCKER-ISO-1
				IPT -A FORWARD -o docker0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT; IPT -A FORWARD -o docker0 -j DOCKER
				IPT -A FORWARD -i docker0 ! -o docker0 -j ACCEPT; IPT -A FORWARD -i docker0 -o docker0 -j ACCEPT
				IPT -A DOCKER-ISO-1 -i docker0 ! -o docker0 -j DOCKER-ISO-2; IPT -A DOCKER-ISO-1 -j RETURN; IPT -A DOCKER-ISO-2 -o docker0 -j DROP
				IPT -A DOCKER-ISO-2 -j RETURN; IPT -A DOCKER-USER -j RETURN; IPT -A DOCKER -d TWO ! -i docker0 -o docker0 -p tcp -m tcp --dport 80 -j ACCEPT
				IPT -N FLANNEL-FWD; IPT -A FLANNEL-FWD -s NET -m comment --comment x -j ACCEPT; IPT -A FLANNEL-FWD -d NET -j ACCEPT; IPT -A FORWARD -m comment --comment x -j FLANNEL-FWD`,
		},
		{
			name: "Docker without our rules", commands: `IPT -P FORWARD DROP; IPT -A FORWARD -o docker0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
				IPT -A FORWARD -i docker0 ! -o docker0 -j ACCEPT`,
			in: "filter/FORWARD/FORWARD:",
		},
		{
			name: "Docker 28", commands: `IPT -P FORWARD DROP; IPT -N DOCKER; IPT -N DOCKER-USER; IPT -N DOCKER-BRIDGE; IPT -N DOCKER-FORWARD; IPT -N DOCKER-CT
				IPT -A FORWARD -j DOCKER-USER; IPT -A FORWARD -j DOCKER-FORWARD; IPT -A DOCKER-FORWARD -j DOCKER-CT; IPT -A DOCKER-FORWARD -j DOCKER-BRIDGE
				IPT -A DOCKER-CT -o docker0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT; IPT -A DOCKER-FORWARD -i docker0 -j ACCEPT
				IPT -A DOCKER-BRIDGE -o docker0 -j DOCKER; IPT -A DOCKER ! -i docker0 -o docker0 -j DROP
				IPT -N FLANNEL-FWD; IPT -A FLANNEL-FWD -s NET -j ACCEPT; IPT -A FLANNEL-FWD -d NET -j ACCEPT; IPT -A FORWARD -j FLANNEL-FWD`,
			in: `filter/FORWARD/DOCKER: iifname != "docker0" oifname "docker0" drop`,
		},
		{
			name: "Docker 28's raw table", commands: `IPT -t raw -A PREROUTING -d TWO ! -i docker0 -j DROP; IPT -t raw -A PREROUTING -s TWO -i eth0 -j DROP`,
			in: `TWO raw/PREROUTING/PREROUTING: iifname != "docker0" FAMILY daddr TWO drop`,
		},
		{
			name: "legacy's raw table", commands: `LEGACY -t raw -A PREROUTING -m comment --comment x -d TWO ! -i docker0 -j DROP; LEGACY -t raw -A PREROUTING -m rpfilter --invert -j DROP`,
			in: `TWO legacy raw/PREROUTING/PREROUTING: -d TWO ! -i docker0 -j DROP`,
		},
		{
			name: "before routing", commands: `nft 'table inet early { chain raw { type filter hook prerouting priority raw; fib saddr . iif oif missing drop
				ct state invalid drop; iifname "eth0" drop; oifname "x" drop; FAMILY daddr { TWO } tcp dport 80 drop; iifname "flannel.1" meta l4proto udp drop; iifname "docker0" drop; }; }'`,
			out: `early/raw/raw: iifname "docker0" drop`,
		},
		{
			name: "kube-proxy", commands: `IPT -N KUBE-FORWARD; IPT -N KUBE-SERVICES; IPT -A FORWARD -m conntrack --ctstate NEW -m comment --comment x -j KUBE-SERVICES
				IPT -I FORWARD -m comment --comment "kubernetes forwarding rules" -j KUBE-FORWARD
				IPT -A KUBE-FORWARD -m conntrack --ctstate INVALID -j DROP; IPT -A KUBE-FORWARD -m mark --mark 0x4000/0x4000 -j ACCEPT
				IPT -A KUBE-FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
				IPT -A KUBE-SERVICES -d TWO -p tcp -m tcp --dport 80 -j REJECT`,
		},
		{
			name: "many matches", commands: `IPT -A FORWARD -p udp -m multiport --dports 53,1000:2000 -j DROP; IPT -A FORWARD -p tcp -m multiport ! --dports 1:65535 -j DROP
				IPT -A FORWARD -p tcp --tcp-flags SYN,ACK ACK -j DROP; IPT -A FORWARD -m addrtype --dst-type LOCAL -j DROP; IPT -A FORWARD -m addrtype ! --dst-type UNICAST -j DROP
				IPT -A FORWARD -m physdev --physdev-is-bridged -j DROP; IPT -A FORWARD -m conntrack ! --ctstate NEW -j DROP; IPT -A FORWARD -m conntrack --ctstate DNAT -j DROP
				IPT -A FORWARD -j MARK --set-mark 7; IPT -A FORWARD -m mark --mark 8 -j DROP; IPT -A FORWARD -j LOG; IPT -A FORWARD -m limit --limit 1/s -j DROP; IPT -A FORWARD -i eth+ -j DROP
				IPT -A FORWARD -s TWO -j DROP`,
		},
		{
			name: "legacy beside nftables", commands: `IPT -P FORWARD ACCEPT; LEGACY -P FORWARD DROP; LEGACY -A FORWARD -i docker0 -j ACCEPT`,
			in: "legacy filter/FORWARD/FORWARD:",
		},
		{
			name: "an empty chain of legacy", commands: `LEGACY -P FORWARD DROP`,
			in: "legacy filter/FORWARD/FORWARD:", out: "legacy filter/FORWARD/FORWARD:",
		},
		{
			name: "legacy rejects", commands: `LEGACY -A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT; LEGACY -N ours; LEGACY -N deep
				LEGACY -A FORWARD -s TWO -p tcp --dport 25 -j ACCEPT; LEGACY -A FORWARD -i eth0 -j DROP; LEGACY -A FORWARD -g ours; LEGACY -A FORWARD -j ACCEPT
				LEGACY -A ours -m comment --comment x -j deep; LEGACY -A ours ! -i docker0 -o docker0 -j REJECT; LEGACY -A deep -i flannel.1 -j RETURN; LEGACY -A deep -j DROP`,
			in: "legacy filter/FORWARD/ours: ! -i docker0 -o docker0 -j REJECT", out: "some legacy filter/FORWARD/deep: -j DROP",
		},
		{
			name: "legacy is healthy", commands: `LEGACY -P FORWARD DROP; LEGACY -t mangle -A FORWARD -j TCPMSS -p tcp --tcp-flags SYN,RST SYN --clamp-mss-to-pmtu
				LEGACY -A FORWARD -p udp -m multiport --dports 53,1000:2000 -j DROP; LEGACY -A FORWARD -m mark --mark 8 -j DROP; LEGACY -A FORWARD ! -s NET ! -d NET -j DROP
				LEGACY -A FORWARD -m addrtype --dst-type LOCAL -j DROP; LEGACY -A FORWARD -i eth+ -j DROP
				LEGACY -N FLANNEL-FWD; LEGACY -A FLANNEL-FWD -s NET -j ACCEPT; LEGACY -A FLANNEL-FWD -d NET -j ACCEPT; LEGACY -A FORWARD -j FLANNEL-FWD`,
		},
		{
			name: "legacy mangle", commands: `LEGACY -t mangle -A FORWARD -d NET -j DROP`,
			in: "legacy mangle/FORWARD/FORWARD: -d NET -j DROP", out: "legacy mangle/FORWARD/FORWARD: -d NET -j DROP",
		},
	} {
		for _, v6 := range []bool{false, true} {
			network, subnet := overlay4, subnet4
			if v6 {
				network, subnet = overlay6, subnet6
			}
			t.Run(fmt.Sprint(c.name, " ", network), func(t *testing.T) {
				netnstest.Enter(t)
				if c.commands != "" {
					sh(t, v6, c.commands)
				}
				var rules Rules
				for range 2 { // the second time by what is remembered
					drops, err := rules.Forward(inbound(network, subnet), outbound(network, subnet))
					if err != nil {
						t.Error(err)
					}
					for i, want := range []string{c.in, c.out} {
						if got := places(drops[i]); got != words(v6).Replace(want) {
							t.Errorf("what comes %s is dropped at %q, want %q", []string{"in", "out"}[i], got, want)
						}
					}
				}
			})
		}
	}
}

// Remembered results hold until the rules change.
func TestIntegrationForwardAfterAChange(t *testing.T) {
	netnstest.Enter(t)
	var rules Rules
	for _, change := range []struct{ commands, want string }{
		{"true", ""},
		{"nft 'table inet zones { set peers { type ipv4_addr; flags interval; }; chain through { type filter hook forward priority 10; policy drop; ip saddr @peers accept; }; }'", "zones/through/through:"},
		{"nft add element inet zones peers '{ 10.0.0.0/8 }'", ""},
		{"nft delete element inet zones peers '{ 10.0.0.0/8 }'", "zones/through/through:"},
		{"nft delete table inet zones", ""},
		{"LEGACY -P FORWARD DROP", "legacy filter/FORWARD/FORWARD:"},
		{"LEGACY -P FORWARD ACCEPT", ""},
	} {
		sh(t, false, change.commands)
		drops, err := rules.Forward(inbound(overlay4, subnet4))
		if err != nil {
			t.Fatal(err)
		}
		if got := places(drops[0]); got != change.want {
			t.Errorf("after %s it is dropped at %q, want %q", change.commands, got, change.want)
		}
	}
}

// All that is known of an interface may be that it isn't the device.
func TestIntegrationForwardFromUnknownInterface(t *testing.T) {
	netnstest.Enter(t)
	sh(t, false, `nft 'table inet zones { chain through { type filter hook forward priority 10; iifname "flannel.1" accept; iif 7 accept
		oifname "docker0" accept; oifname != "flannel.1" accept; drop; }; }'`)
	var rules Rules
	p := outbound(overlay4, subnet4)
	p.In = Interface{Name: device.Name, Index: device.Index, Not: true}
	drops, err := rules.Forward(p)
	if got := places(drops[0]); err != nil || got != "zones/through/through: drop" {
		t.Errorf("what comes from elsewhere is dropped at %q, %v", got, err)
	}
}

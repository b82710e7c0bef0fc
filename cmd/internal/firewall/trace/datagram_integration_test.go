package trace

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"uvxlan/tunnel/netnstest"
)

var (
	tunnel4 = Tunnel{
		Local: netip.MustParseAddr("192.168.14.21"), Port: 4789, Link: Interface{Name: "eth0", Index: 2},
		Remotes: []netip.Addr{netip.MustParseAddr("192.168.14.22"), netip.MustParseAddr("192.168.15.31"), netip.MustParseAddr("10.9.0.1")},
	}
	tunnel6 = Tunnel{
		Local: netip.MustParseAddr("fd00:14::21"), Port: 4789, Link: Interface{Name: "eth0", Index: 2},
		Remotes: []netip.Addr{netip.MustParseAddr("fd00:14::22"), netip.MustParseAddr("fd00:15::31"), netip.MustParseAddr("2001:db8::1")},
	}
)

func concerns(all []Concern) string {
	var words []string
	for _, c := range all {
		w := []string{"drops", "diverts", "translates", "names"}[c.Effect]
		if c.May {
			w = "may " + w
		}
		if c.Legacy {
			w = "legacy " + w
		}
		words = append(words, strings.TrimSpace(fmt.Sprintf("%s %s/%s/%s: %s", w, c.Table, c.Base, c.Chain, c.Rule)))
	}
	slices.Sort(words)
	return strings.Join(words, "; ")
}

// What rules do with the tunnel's datagrams, in each tool's way.
func TestIntegrationDatagrams(t *testing.T) {
	netnstest.RequireRoot(t)
	for _, c := range []struct {
		name, commands, want string
		only4                bool
	}{
		{name: "nothing"},
		{name: "kube-proxy's", commands: `IPT -N KUBE-FIREWALL; IPT -A INPUT -j KUBE-FIREWALL; IPT -A OUTPUT -j KUBE-FIREWALL
			IPT -A KUBE-FIREWALL ! -s LOOP -d LOOP -m conntrack ! --ctstate RELATED,ESTABLISHED,DNAT -j DROP
			IPT -A KUBE-FIREWALL -m mark --mark 0x8000/0x8000 -j DROP
			X="IPT -t nat"; $X -N KUBE-SERVICES; $X -N KUBE-SVC; $X -N KUBE-POSTROUTING; $X -N KUBE-NODEPORTS; $X -A OUTPUT -j KUBE-SERVICES; $X -A PREROUTING -j KUBE-SERVICES
			$X -A KUBE-SERVICES -d OTHER -p udp --dport 53 -j KUBE-SVC; $X -A KUBE-SERVICES -d OTHER -p tcp --dport 4789 -j KUBE-SVC
			$X -A KUBE-SERVICES -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS; $X -A KUBE-NODEPORTS -p udp --dport 31053 -j KUBE-SVC
			$X -A KUBE-SVC -p udp -j DNAT --to-destination TO; $X -A POSTROUTING -j KUBE-POSTROUTING
			$X -A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN; $X -A KUBE-POSTROUTING -j MARK --xor-mark 0x4000; $X -A KUBE-POSTROUTING -j MASQUERADE`},
		{name: "Docker's", commands: `X="IPT -t nat"; $X -N DOCKER; $X -A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER; $X -A DOCKER ! -i docker0 -p udp --dport 53 -j DNAT --to-destination TO
			$X -A POSTROUTING -s OTHER ! -o docker0 -j MASQUERADE; IPT -P FORWARD DROP; IPT -t raw -A PREROUTING -d OTHER ! -i docker0 -j DROP`},
		{name: "everything masqueraded", commands: "IPT -t nat -A POSTROUTING -o eth0 -j MASQUERADE"},
		{name: "accepted where all is", commands: "IPT -A INPUT -p udp --dport 4789 -j ACCEPT; nft add table inet z; nft 'add chain inet z in { type filter hook input priority 0; }'; nft add rule inet z in udp dport 4789 accept"},
		{name: "accepted where nothing else is", commands: `IPT -A INPUT -m conntrack --ctstate INVALID -j DROP; IPT -A INPUT -i lo -j ACCEPT; IPT -A INPUT -m conntrack --ctstate ESTABLISHED -j ACCEPT
			IPT -A INPUT -p udp --dport 4789 -j ACCEPT; IPT -P INPUT DROP`},
		{name: "not tracked", commands: "IPT -t raw -A PREROUTING -p udp --dport 4789 -j NOTRACK; IPT -t raw -A OUTPUT -p udp --dport 4789 -j CT --notrack; nft 'table inet z { chain pre { type filter hook prerouting priority raw; udp dport 4789 notrack; }; }'"},
		{name: "other ports", commands: `IPT -A INPUT -p udp --dport 4788 -j DROP; IPT -A INPUT -p tcp --dport 4789 -j DROP; IPT -A INPUT -p udp -m multiport --dports 53,4790:5000 -j DROP; IPT -A INPUT -p udp --sport 53 -j DROP
			nft 'table inet z { set s { type inet_service; flags interval; elements = { 1-4788, 4790-9999 }; }; chain in { type filter hook input priority 0; udp dport @s drop; udp dport { 53, 8472 } drop; udp dport 4790-5000 drop; }; }'`},
		{name: "counted and marked by all", commands: `IPT -t mangle -A PREROUTING -j MARK --set-mark 7; IPT -A INPUT -j LOG; nft 'table inet z { chain in { type filter hook input priority 0; counter; meta mark set 3; }; }'`},
		{name: "the way back is checked", commands: `IPT -t raw -A PREROUTING -m rpfilter --invert -j DROP; nft 'table inet z { chain pre { type filter hook prerouting priority raw; fib saddr . iif oif missing drop; fib daddr type != { local, broadcast, multicast } drop; }; }'`},
		{name: "a set of others", commands: `nft 'table inet z { set bad { type SETTYPE; flags interval; elements = { OTHER, LOOP }; }; chain in { type filter hook input priority 0; FAMILY saddr @bad drop; FAMILY saddr LOOP drop; }; chain out { type filter hook output priority 0; FAMILY daddr @bad drop; }; }'`},
		{name: "another interface's ingress", commands: `ip link add eth9 type veth peer eth8; nft 'table netdev z { chain in { type filter hook ingress device eth9 priority 0; udp dport 4789 drop; }; }'`},

		{name: "INPUT's policy", commands: "IPT -P INPUT DROP", want: "drops filter/INPUT/INPUT:"},
		{name: "OUTPUT's policy", commands: "IPT -A OUTPUT -p tcp -j ACCEPT; IPT -P OUTPUT DROP", want: "drops filter/OUTPUT/OUTPUT:"},
		{name: "a rule", commands: "IPT -A INPUT -p udp --dport 4789 -s OTHER -j DROP; IPT -A INPUT -p udp --dport 4789 -s ONE -j DROP", want: "may drops filter/INPUT/INPUT: WORDS"},
		{name: "some are accepted", commands: "IPT -A INPUT -p udp --dport 4789 -s ONE -j ACCEPT; IPT -P INPUT DROP", want: "may drops filter/INPUT/INPUT:"},
		{name: "a list of ports", commands: "IPT -t mangle -A POSTROUTING -p udp -m multiport --dports 53,4000:5000 -j DROP", want: "drops mangle/POSTROUTING/POSTROUTING: WORDS"},
		{name: "all but a port", commands: "nft 'table inet z { chain out { type filter hook output priority 0; udp dport != 53 drop; }; }'", want: "drops z/out/out: meta l4proto udp th dport != 53 drop"},
		{name: "a set", commands: "nft 'table inet z { set s { type inet_service; flags interval; elements = { 4000-5000 }; }; chain in { type filter hook input priority 0; udp dport @s drop; }; }'", want: "drops z/in/in: meta l4proto udp th dport @s drop"},
		{name: "a map", commands: "nft 'table inet z { chain bad { reject; }; chain in { type filter hook input priority 0; udp dport vmap { 53 : accept, 4789 : jump bad }; }; }'", want: "drops z/in/bad: reject"},
		{name: "both ports", commands: "nft 'table inet z { chain in { type filter hook input priority 0; udp sport 5000 udp dport 4789 drop; }; }'", want: "may drops z/in/in: WORDS"},
		{name: "the source port", commands: "IPT -A INPUT -p udp --sport 4789 -j DROP", want: "may drops filter/INPUT/INPUT: WORDS"},
		{name: "counted", commands: "IPT -A OUTPUT -p udp --dport 4789", want: "names filter/OUTPUT/OUTPUT: WORDS"},
		{name: "counted in a chain", commands: "IPT -N VX; IPT -A INPUT -p udp --dport 4789 -j VX; IPT -A VX -i eth0; IPT -A VX -j LOG; IPT -A VX -j ACCEPT", want: "names filter/INPUT/VX: WORDS; names filter/INPUT/VX: WORDS"},
		{name: "marked", commands: "nft 'table inet z { chain out { type route hook output priority mangle; udp dport 4789 meta mark set 1 accept; }; }'", want: "names z/out/out: WORDS"},
		{name: "DSCP", commands: "IPT -t mangle -A OUTPUT -p udp --dport 4789 -j DSCP --set-dscp 46", want: "names mangle/OUTPUT/OUTPUT: WORDS"},
		{name: "limited", commands: "IPT -A INPUT -p udp --dport 4789 -m limit --limit 100/s -j ACCEPT; IPT -A INPUT -p udp -j DROP", want: "may drops filter/INPUT/INPUT: WORDS"},
		{name: "to a program", commands: "IPT -A INPUT -i eth0 -j NFQUEUE --queue-num 1", want: "diverts filter/INPUT/INPUT: WORDS"},
		{name: "another source address", commands: "IPT -t nat -A POSTROUTING -o eth0 -j SNAT --to-source TO", want: "translates nat/POSTROUTING/POSTROUTING: WORDS"},
		{name: "another source address in nftables", commands: "nft 'table FAMILY z { chain post { type nat hook postrouting priority 100; oifname \"eth0\" snat to TO; }; }'", want: "translates z/post/post: WORDS"},
		{name: "another port", commands: "IPT -t nat -A PREROUTING -p udp --dport 4789 -j REDIRECT --to-ports 9999", want: "translates nat/PREROUTING/PREROUTING: WORDS"},
		{name: "raw", commands: "IPT -t raw -A PREROUTING -p udp --dport 4789 -j DROP", want: "drops raw/PREROUTING/PREROUTING: WORDS"},
		{name: "ingress", commands: `ip link add eth0 type veth peer eth8; nft 'table netdev z { chain in { type filter hook ingress device eth0 priority 0; udp dport 4789 drop; }; }'`, want: "drops z/in/in: WORDS"},
		{name: "egress", commands: `ip link add eth0 type veth peer eth8; nft 'table netdev z { chain out { type filter hook egress device eth0 priority 0; udp dport 4789 drop; udp dport 4788 drop; }; }'`, want: "drops z/out/out: WORDS"},
		{name: "another interface's egress", commands: `ip link add eth9 type veth peer eth8; nft 'table netdev z { chain out { type filter hook egress device eth9 priority 0; udp dport 4789 drop; }; }'`},
		{name: "legacy", commands: "LEGACY -A INPUT -p udp --dport 4789 -j DROP; LEGACY -A INPUT -p udp --dport 4788 -j DROP", want: "legacy drops filter/INPUT/INPUT: -p udp -m udp --dport 4789 -j DROP"},
		{name: "legacy with a list", commands: "LEGACY -A OUTPUT -p udp -m multiport --dports 53,4700:4800 -j DROP", want: "legacy drops filter/OUTPUT/OUTPUT: -p udp -m multiport --dports 53,4700:4800 -j DROP"},
		{name: "legacy policy", commands: "LEGACY -A INPUT -p udp --dport 4790 -j ACCEPT; LEGACY -P INPUT DROP", want: "legacy drops filter/INPUT/INPUT:"},
		{name: "switched off", commands: "nft 'table inet z { flags dormant; chain in { type filter hook input priority 0; udp dport 4789 drop; }; }'"},
	} {
		for _, v6 := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s/v6=%t", c.name, v6), func(t *testing.T) {
				netnstest.Enter(t)
				tunnel, words := tunnel4, strings.NewReplacer("IPT", "iptables-nft", "LEGACY", "iptables-legacy", "LOOP", "127.0.0.0/8", "OTHER", "10.96.0.0/12",
					"ONE", "192.168.14.22", "TO", "10.1.1.1", "FAMILY", "ip", "SETTYPE", "ipv4_addr")
				if v6 {
					tunnel, words = tunnel6, strings.NewReplacer("IPT", "ip6tables-nft", "LEGACY", "ip6tables-legacy", "LOOP", "::1/128", "OTHER", "fd00:96::/108",
						"ONE", "fd00:14::22", "TO", "fd00:1::1", "FAMILY", "ip6", "SETTYPE", "ipv6_addr")
				}
				netnstest.Run(t, "sh", "-ec", words.Replace(c.commands)+"\ntrue")
				var d Datagrams
				found, err := d.Concerns(tunnel)
				if err != nil {
					t.Fatal(err)
				}
				got := concerns(found)
				t.Log(got)
				if !alike(got, words.Replace(c.want)) {
					t.Errorf("it says %q, want %q", got, c.want)
				}
				again, err := d.Concerns(tunnel)
				if concerns(again) != got || err != nil {
					t.Errorf("asked again it says %q, %v", concerns(again), err)
				}
			})
		}
	}
}

// alike compares concerns; WORDS stands for any words of a rule.
func alike(got, want string) bool {
	g, w := strings.Split(got, "; "), strings.Split(want, "; ")
	return slices.EqualFunc(g, w, func(g, w string) bool {
		before, found := strings.CutSuffix(w, "WORDS")
		return g == w || found && strings.HasPrefix(g, before) && len(g) > len(before)
	})
}

// What is remembered holds until the rules or the other hosts change.
func TestIntegrationDatagramsAfterAChange(t *testing.T) {
	netnstest.Enter(t)
	var d Datagrams
	tunnel := tunnel4
	for _, change := range []struct {
		commands string
		remote   string
		want     string
	}{
		{"true", "", ""},
		{"iptables-nft -A INPUT -s 10.9.0.0/16 -j DROP", "", "may drops filter/INPUT/INPUT: ip saddr 10.9.0.0/16 drop"},
		{"true", "192.168.14.22", ""},
		{"true", "10.9.0.1", "drops filter/INPUT/INPUT: ip saddr 10.9.0.0/16 drop"},
		{"iptables-nft -D INPUT -s 10.9.0.0/16 -j DROP", "10.9.0.1", ""},
		{"iptables-legacy -P INPUT DROP", "10.9.0.1", "legacy drops filter/INPUT/INPUT:"},
		{"iptables-legacy -P INPUT ACCEPT", "10.9.0.1", ""},
	} {
		sh(t, false, change.commands)
		if change.remote != "" {
			tunnel.Remotes = []netip.Addr{netip.MustParseAddr(change.remote)}
		}
		found, err := d.Concerns(tunnel)
		if got := concerns(found); err != nil || got != change.want {
			t.Errorf("after %s with %s it says %q, want %q, %v", change.commands, change.remote, got, change.want, err)
		}
	}
}

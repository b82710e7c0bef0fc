package firewall

import (
	"fmt"
	"strings"
	"testing"

	"uvxlan/tunnel/netnstest"
)

// Rules of others that drop what the overlay forwards are told of with what helps,
// and what helps does.
func TestIntegrationObstacles(t *testing.T) {
	netnstest.RequireRoot(t)
	for _, c := range []struct {
		name     string
		policy   func(*Policy)
		nft      bool
		commands string
		what     []string // in the only fault; none if nothing is wrong
		remedy   string
		typed    bool // the remedy is for a program that isn't here
		note     bool // packets pass
	}{
		{name: "nothing"},
		{name: "a policy of DROP", commands: "IPT-nft -P FORWARD DROP"},
		{
			name: "a policy of DROP in nftables", nft: true, commands: "IPT-nft -P FORWARD DROP",
			what:   []string{"what the overlay forwards is dropped by the policy of chain FORWARD of iptables' table filter"},
			remedy: "IPT -I FORWARD -s NET -j ACCEPT, or leave EnableNFTables out of the network config",
		},
		{
			name: "no rules are wanted", policy: func(p *Policy) { p.Forward = false }, commands: "IPT-nft -P FORWARD DROP",
			what:   []string{"dropped by the policy of chain FORWARD"},
			remedy: "IPT -I FORWARD -s NET -j ACCEPT, or leave -iptables-forward-rules=false away",
		},
		{
			name: "a REJECT before our jump", commands: "IPT-nft -A FORWARD -j REJECT",
			what:   []string{`what the overlay forwards is rejected by the rule "-j REJECT" in chain FORWARD of iptables' table filter`},
			remedy: "IPT -I FORWARD -s NET -j ACCEPT",
		},
		{
			name: "legacy beside nftables", commands: "IPT-legacy -A FORWARD -i docker0 -j ACCEPT; IPT-legacy -A FORWARD -j DROP",
			what:   []string{`what comes to the containers by the overlay is dropped by the rule "-j DROP" in chain FORWARD of iptables-legacy's table filter`},
			remedy: "IPT-legacy -I FORWARD -s NET -j ACCEPT",
		},
		{
			name: "another table's chain", nft: true, commands: `nft 'table inet zones { chain filter_forward { type filter hook forward priority 10;
				ct state established,related accept; iifname "flannel.1" accept; jump last; }; chain last { reject; }; }'`,
			what:   []string{`what the containers send into the overlay is rejected by the rule "reject" in chain last, to which filter_forward leads, of nftables' table inet zones`},
			remedy: "nft insert rule inet zones filter_forward FAMILY saddr NET accept",
		},
		{
			name: "only some", commands: `nft 'table inet zones { chain through { type filter hook forward priority 10; policy drop; tcp dport 80 accept; }; }'`,
			what:   []string{"what the overlay forwards is dropped, unless an earlier rule accepts it by its port or protocol, by the policy of chain through"},
			remedy: "nft insert rule inet zones through FAMILY saddr NET accept", note: true,
		},
		{
			name: "Docker 28", commands: `X="IPT-nft -w"; $X -P FORWARD DROP; $X -N DOCKER; $X -N DOCKER-USER; $X -A FORWARD -j DOCKER-USER
				$X -A FORWARD -o docker0 -j DOCKER; $X -A FORWARD -i docker0 -j ACCEPT; $X -A DOCKER ! -i docker0 -o docker0 -j DROP`,
			what:   []string{"what comes to the containers by the overlay is dropped by the rule", "chain DOCKER, to which FORWARD leads, of iptables' table filter"},
			remedy: "IPT -I DOCKER-USER -s NET -j ACCEPT",
		},
		{
			name: "Docker 28's raw table", commands: `IPT-nft -t raw -A PREROUTING -d ONE ! -i docker0 -j DROP; IPT-nft -t raw -A PREROUTING -d TWO ! -i docker0 -j DROP`,
			what:   []string{"what comes to ONE and 1 more of the containers' addresses by the overlay is dropped by the rule", "chain PREROUTING of iptables' table raw"},
			remedy: "IPT -t raw -I PREROUTING -s NET -j ACCEPT; if it is Docker's, start dockerd with --allow-direct-routing (28.2 or later) instead", note: true,
		},
		{
			name: "mangle", commands: "IPT-nft -t mangle -A FORWARD -d NET -j DROP",
			what: []string{"chain FORWARD of iptables' table mangle"}, remedy: "IPT -t mangle -I FORWARD -s NET -j ACCEPT",
		},
		{
			name: "ufw", commands: "IPT-nft -N ufw-reject-forward; IPT-nft -A FORWARD -j ufw-reject-forward; IPT-nft -A ufw-reject-forward -j REJECT",
			what: []string{"chain ufw-reject-forward, to which FORWARD leads"}, remedy: "ufw route allow from NET", typed: true,
		},
		{
			name: "firewalld", commands: `nft 'table inet firewalld { chain filter_FORWARD { type filter hook forward priority 10; ct state { established, related } accept
				ct status dnat accept; iifname "lo" accept; reject with icmpx admin-prohibited; }; }'`,
			what: []string{"chain filter_FORWARD of nftables' table inet firewalld"}, typed: true,
			remedy: "firewall-cmd --permanent --zone=trusted --add-source=NET && firewall-cmd --reload",
		},
	} {
		for _, p := range []Policy{v4, v6} {
			p.Masquerade = false
			if c.policy != nil {
				c.policy(&p)
			}
			command, family := "iptables", "ip"
			if FamilyOf(p.Network) == IPv6 {
				command, family = "ip6tables", "ip6"
			}
			names := strings.NewReplacer("IPT", command, "FAMILY", family, "NET", p.Network.String(),
				"ONE", p.Subnet.Addr().Next().Next().String(), "TWO", p.Subnet.Addr().Next().Next().Next().String())
			t.Run(fmt.Sprint(c.name, " ", family), func(t *testing.T) {
				h := newMachine(t)
				h.sh("ip link add flannel.1 type veth peer name docker0; ip addr add " +
					p.Subnet.Addr().Next().String() + "/" + fmt.Sprint(p.Subnet.Bits()) + " dev docker0")
				if c.commands != "" {
					h.sh(names.Replace(c.commands))
				}
				part := h.keep(Config{NFTables: c.nft, Policy: p})
				h.look(part)
				found := part.Check(t.Context())
				if len(c.what) == 0 {
					if len(found) > 0 {
						t.Errorf("found %+v", found)
					}
					return
				}
				if len(found) != 1 || found[0].Remedy != names.Replace(c.remedy) || found[0].Stops == c.note {
					t.Fatalf("found %+v", found)
				}
				for _, word := range c.what {
					if !strings.Contains(found[0].What, names.Replace(word)) {
						t.Errorf("it doesn't say %q: %s", word, found[0].What)
					}
				}
				if c.typed {
					return
				}
				remedy, _, _ := strings.Cut(found[0].Remedy, ", or ")
				remedy, _, _ = strings.Cut(remedy, "; if ")
				h.sh(remedy)
				if found := part.Check(t.Context()); len(found) > 0 {
					t.Errorf("after %q it finds %+v", remedy, found)
				}
			})
		}
	}
}

// While the lock of iptables is held, a policy of DROP stops packets.
func TestIntegrationObstacleUntilTheLockIsFree(t *testing.T) {
	h := newMachine(t)
	variant(t, "legacy")
	lock := holdLock(t)
	h.sh("unset XTABLES_LOCKFILE; iptables -P FORWARD DROP")
	part := h.keep(Config{Policy: v4})
	if found := part.Check(t.Context()); len(found) != 2 || found[0].Stops || found[1].Stops {
		t.Errorf("before the first repair it finds %+v", found)
	}
	if err := part.Repair(t.Context()); err == nil {
		t.Error("the rules could be put")
	}
	found := part.Check(t.Context())
	if len(found) != 3 || !found[2].Stops || !strings.Contains(found[2].What, "the policy of chain FORWARD of iptables-legacy's table filter") ||
		!strings.Contains(found[2].Remedy, "; as soon as that passes, the forward rules accept it") || !strings.Contains(found[2].Remedy, "lock of iptables") {
		t.Errorf("with the lock held it finds %+v", found)
	}
	lock.Close()
	if found, left := h.look(part); len(found) != 3 || len(left) > 0 {
		t.Errorf("with the lock free it finds %+v, and then %+v", found, left)
	}
}

package firewall

import (
	"errors"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"uvxlan/cmd/internal/host"
)

func policy(network, subnet string) Policy {
	return Policy{Network: netip.MustParsePrefix(network), Subnet: netip.MustParsePrefix(subnet), Masquerade: true, RandomFully: true, Forward: true}
}

// flannelMasq and flannelForward are flannel's rules as iptables lists them.
func flannelMasq(p Policy, random string) []string {
	multicast := "224.0.0.0/4"
	if FamilyOf(p.Network) == IPv6 {
		multicast = "ff00::/8"
	}
	text := strings.NewReplacer("NET", p.Network.String(), "POD", p.Subnet.String(), "MULTICAST", multicast, "RANDOM", random).Replace(
		`-A FLANNEL-POSTRTG -m mark --mark 0x4000/0x4000 -m comment --comment "flanneld masq" -j RETURN
-A FLANNEL-POSTRTG -s POD -d NET -m comment --comment "flanneld masq" -j RETURN
-A FLANNEL-POSTRTG -s NET -d POD -m comment --comment "flanneld masq" -j RETURN
-A FLANNEL-POSTRTG ! -s NET -d POD -m comment --comment "flanneld masq" -j RETURN
-A FLANNEL-POSTRTG -s NET ! -d MULTICAST -m comment --comment "flanneld masq" -j MASQUERADERANDOM
-A FLANNEL-POSTRTG ! -s NET -d NET -m comment --comment "flanneld masq" -j MASQUERADERANDOM`)
	return strings.Split(text, "\n")
}

func flannelForward(p Policy) []string {
	return []string{
		"-A FLANNEL-FWD -s " + p.Network.String() + ` -m comment --comment "flanneld forward" -j ACCEPT`,
		"-A FLANNEL-FWD -d " + p.Network.String() + ` -m comment --comment "flanneld forward" -j ACCEPT`,
	}
}

var (
	v4 = policy("10.42.0.0/16", "10.42.7.0/24")
	v6 = policy("2001:cafe:42::/56", "2001:cafe:42:1::/64")
)

func TestIPTablesText(t *testing.T) {
	for _, c := range []struct {
		random, supported bool
		want              string
	}{
		{true, true, " --random-fully"},
		{true, false, ""},
		{false, true, ""},
	} {
		for _, p := range []Policy{v4, v6} {
			p.RandomFully = c.random
			x := &xtables{family: FamilyOf(p.Network), random: c.supported}
			for i, want := range [][]string{flannelMasq(p, c.want), flannelForward(p)} {
				var got []string
				for _, r := range chains(p, Policy{})[i].want {
					got = append(got, x.line(r))
				}
				if !slices.Equal(got, want) {
					t.Errorf("random %t, supported %t:\n%s\nwant\n%s", c.random, c.supported, strings.Join(got, "\n"), strings.Join(want, "\n"))
				}
			}
		}
	}
	for purpose, want := range map[purpose]string{
		masquerading: `-A POSTROUTING -m comment --comment "flanneld masq" -j FLANNEL-POSTRTG`,
		forwarding:   `-A FORWARD -m comment --comment "flanneld forward" -j FLANNEL-FWD`,
	} {
		if got := purpose.iptables().jump(); got != want {
			t.Errorf("the jump is %s, want %s", got, want)
		}
	}
}

func TestCanonical(t *testing.T) {
	const a = `-A X ! -s 10.5.0.0/16 -d 10.5.1.0/24 -m mark ! --mark 0x4000/0x4000 -m comment --comment "a b" -j RETURN`
	for line, same := range map[string]bool{
		`-A Y -d 10.5.1.0/24 ! -s 10.5.0.0/16 -m comment --comment "a b" -m mark ! --mark 0x4000/0x4000 -j RETURN`: true,
		`-A X -s 10.5.0.0/16 ! -d 10.5.1.0/24 -m mark ! --mark 0x4000/0x4000 -m comment --comment "a b" -j RETURN`: false,
		`-A X ! -s 10.5.0.0/16 -d 10.5.1.0/24 -m mark --mark 0x4000/0x4000 -m comment --comment "a b" -j RETURN`:   false,
		`-A X ! -s 10.5.0.0/16 -d 10.5.1.0/24 -m mark ! --mark 0x4000/0x4000 -m comment --comment "b a" -j RETURN`: false,
		`-A X`: false, ``: false,
	} {
		if (canonical(line) == canonical(a)) != same {
			t.Errorf("%s\nbecomes %q and\n%s\n%q", line, canonical(line), a, canonical(a))
		}
	}
}

// letters makes rules short: those of one network are a prefix and a number.
func letters(c chain, name string) func(rule) string {
	x := &xtables{random: true}
	names := map[string]string{}
	for i, r := range c.want {
		names[x.key(r)] = name + strconv.Itoa(i+1)
		if r.shared() {
			names[x.key(r)] = "mark"
		}
	}
	return func(r rule) string {
		if n, ok := names[x.key(r)]; ok {
			return n
		}
		return x.key(r)
	}
}

// carryOut does what a plan says.
func carryOut(c chain, have []string, key func(rule) string) (after []string, changed bool) {
	remove, add := c.plan(have, key)
	for i, h := range have {
		if !slices.Contains(remove, i) {
			after = append(after, h)
		}
	}
	for _, r := range add {
		after = append(after, key(r))
	}
	return after, len(remove)+len(add) > 0
}

func TestPlan(t *testing.T) {
	c := chains(v4, Policy{})[0]
	key := letters(c, "a")
	const all = "mark a2 a3 a4 a5 a6"
	for have, want := range map[string]string{
		"":                                  all,
		all:                                 all,
		"x mark y a2 a3 z a4 a5 a6 x":       "x mark y a2 a3 z a4 a5 a6 x",
		"mark b2 b3 a2 a3 a4 a5 a6":         "mark b2 b3 a2 a3 a4 a5 a6",
		"mark a2 a3 a4 a5":                  all,
		"a2 a3 a4 a5 a6":                    all,
		"a2 a3 mark a4 a5 a6":               "mark mark a2 a3 a4 a5 a6",
		"mark a2 a4 a3 a5 a6":               all,
		"mark a2 a3 a4 a5 a6 a6":            all,
		"mark b2 b3 b4 b5 b6":               "mark b2 b3 b4 b5 b6 a2 a3 a4 a5 a6",
		"mark b2 b3 b4 b5 b6 a2":            "mark b2 b3 b4 b5 b6 a2 a3 a4 a5 a6",
		"mark a2 a3 a4 a5 a6 mark b2 b3":    "mark a2 a3 a4 a5 a6 mark b2 b3",
		"mark x a2 a3 a4 y a5 z":            "mark x y z a2 a3 a4 a5 a6",
		"b2 b3 b4 b5 b6 a2 a3 mark a4 a5 x": "b2 b3 b4 b5 b6 mark x mark a2 a3 a4 a5 a6",
	} {
		got, changed := carryOut(c, strings.Fields(have), key)
		if strings.Join(got, " ") != want || changed != (have != want) {
			t.Errorf("%q becomes %q (changed: %t), want %q", have, strings.Join(got, " "), changed, want)
		}
		if again, changed := carryOut(c, got, key); changed {
			t.Errorf("%q changes a second time, into %q", have, again)
		}
	}
}

// Networks that share a chain leave each other alone.
func TestPlanOfTwoNetworks(t *testing.T) {
	x := &xtables{random: true}
	a, b := chains(v4, Policy{}), chains(policy("10.43.0.0/16", "10.43.7.0/24"), Policy{})
	for i := range a {
		var have []string
		for round := range 6 {
			for _, c := range []chain{a[i], b[i]} {
				var changed bool
				if have, changed = carryOut(c, have, x.key); changed != (round == 0) {
					t.Errorf("round %d: changed: %t", round, changed)
				}
			}
		}
	}
}

// What a run with another subnet, network or flags has left goes.
func TestPlanAfterAnotherRun(t *testing.T) {
	x := &xtables{random: true}
	now, other := chains(v4, policy("10.44.0.0/16", "10.44.3.0/24")), chains(policy("10.43.0.0/16", "10.43.7.0/24"), Policy{})
	moved := v4
	moved.Subnet, moved.RandomFully = netip.MustParsePrefix("10.42.8.0/24"), false
	for i := range now {
		want, _ := carryOut(now[i], nil, x.key)
		for _, earlier := range []Policy{policy("10.44.0.0/16", "10.44.3.0/24"), moved} {
			c := chains(v4, earlier)[i]
			have, _ := carryOut(chains(earlier, Policy{})[i], nil, x.key)
			if got, changed := carryOut(c, have, x.key); !slices.Equal(got, want) || (changed != (earlier.Network != v4.Network || i == 0)) {
				t.Errorf("after %v: %s", earlier, strings.Join(got, "\n"))
			}
		}
		none := chains(Policy{Network: v4.Network, Subnet: v4.Subnet}, Policy{})[i]
		if left, _ := carryOut(none, want, x.key); !none.idle(want, x.key) || i == 1 && len(left) > 0 {
			t.Errorf("with nothing wanted the chain keeps %v", left)
		}
		both, _ := carryOut(other[i], want, x.key)
		left, _ := carryOut(none, both, x.key)
		if theirs, _ := carryOut(other[i], nil, x.key); none.idle(both, x.key) || !slices.Equal(left, theirs) {
			t.Errorf("another network's rules became %s", strings.Join(left, "\n"))
		}
	}
}

func TestNoIPTables(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	f := New(Config{Policy: v4})
	if err := f.Probe(); !errors.Is(err, ErrNoIPTables) || strings.Contains(err.Error(), "\n") {
		t.Errorf("without iptables: %v", err)
	}
	p := f.Part(v4.Subnet, func() []string { return nil })
	if found := p.Check(t.Context()); len(found) != 1 || !strings.Contains(found[0].String(), "EnableNFTables") || found[0].Stops {
		t.Errorf("without iptables it finds %+v", found)
	}
	if err := p.Repair(t.Context()); err != nil {
		t.Errorf("without iptables: %v", err)
	}
}

func TestTableless(t *testing.T) {
	for text, want := range map[string]bool{
		"iptables v1.8.9 (legacy): can't initialize iptables table `nat': Table does not exist (do you need to insmod?)":                 true,
		"ip6tables v1.8.9 (nf_tables): Could not fetch rule set generation id: Invalid argument":                                         true,
		"iptables v1.8.9 (legacy): can't initialize iptables table `nat': Permission denied (you must be root)":                          false,
		"iptables-save v1.8.9 (legacy): Cannot initialize: Table does not exist (do you need to insmod?)":                                true,
		"iptables-save v1.8.9 (legacy): Cannot initialize: Permission denied (you must be root)":                                         false,
		"iptables: No chain/target/match by that name.":                                                                                  false,
		"iptables v1.8.9 (nf_tables): Could not fetch rule set generation id: Permission denied (you must be root)\n iptables: whatever": false,
	} {
		if tableless.MatchString(text) != want {
			t.Errorf("%t: %s", !want, text)
		}
	}
}

// Of the kernel's events those count that may be about our rules, or about rules
// that drop what ours accept.
func TestConcerns(t *testing.T) {
	for _, c := range []struct {
		f    Family
		e    host.Event
		want bool
	}{
		{IPv4, host.Event{Kind: host.Firewall, Family: unix.NFPROTO_IPV4, Table: "flannel-ipv4"}, true},
		{IPv4, host.Event{Kind: host.Firewall, Family: unix.NFPROTO_INET, Table: "firewalld"}, true},
		{IPv4, host.Event{Kind: host.Firewall, Family: unix.NFPROTO_IPV6, Table: "flannel-ipv6"}, false},
		{IPv6, host.Event{Kind: host.Firewall, Family: unix.NFPROTO_IPV6, Table: "filter"}, true},
		{IPv6, host.Event{Kind: host.Firewall, Family: unix.NFPROTO_BRIDGE, Table: "filter"}, false},
		{IPv4, host.Event{Kind: host.Route}, false},
	} {
		if c.f.concerns(c.e) != c.want {
			t.Errorf("%v concerns %s: %t", c.e, c.f.part(), !c.want)
		}
	}
}

// counting is a backend that counts how often its rules are compared.
type counting struct {
	backend
	compared int
}

func (c *counting) differing([]chain) ([]purpose, error) {
	c.compared++
	return nil, nil
}

// Rules are compared when their table has changed and from time to time, not with
// every change of other tables.
func TestComparesWhenNeeded(t *testing.T) {
	for _, nft := range []bool{false, true} {
		rules := &counting{}
		k := &keeping{nft: nft, now: v4, backend: rules, other: true, resync: time.Hour, devices: func() []string { return nil }}
		ours, others := "nat", "flannel-ipv4"
		if nft {
			ours, others = others, ours
		}
		for i, step := range []struct {
			table string // that changes
			want  int
		}{{"", 1}, {"", 1}, {others, 1}, {ours, 2}, {"kube-proxy", 2}, {ours, 3}, {"", 3}} {
			if step.table != "" && !k.concerns(host.Event{Kind: host.Firewall, Family: unix.NFPROTO_IPV4, Table: step.table}) {
				t.Errorf("a change of %s wakes nobody", step.table)
			}
			if k.check(t.Context()); rules.compared != step.want {
				t.Errorf("nft %t, step %d: compared %d times, want %d", nft, i, rules.compared, step.want)
			}
		}
		k.compared = time.Now().Add(-2 * time.Hour)
		if k.check(t.Context()); rules.compared != 4 {
			t.Errorf("nft %t: compared %d times after the interval", nft, rules.compared)
		}
	}
}

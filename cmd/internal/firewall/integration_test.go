package firewall

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"uvxlan/tunnel/netnstest"
)

const patience = 20 * time.Second

// host is a network namespace.
type host struct {
	*testing.T
	ns *netnstest.Namespace
}

// newHost moves the test, and the commands it runs, into a network namespace of
// its own.
func newHost(t *testing.T) host {
	t.Helper()
	return host{t, netnstest.Enter(t)}
}

// sh is the administrator's hand.
func (h host) sh(command string) string {
	h.Helper()
	return netnstest.Run(h, "sh", "-ec", command)
}

func (h host) open(c Config) *Firewall {
	h.Helper()
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.Resync == 0 {
		c.Resync = time.Hour
	}
	f, err := Open(c)
	if err != nil {
		h.Fatal(err)
	}
	return f
}

func (h host) apply(f *Firewall, now, before Policy, want bool) {
	h.Helper()
	if changed, err := f.Apply(now, before); err != nil || changed != want {
		h.Fatalf("Apply changed: %t, want %t, %v", changed, want, err)
	}
}

// run keeps the rules from another thread of this namespace until the returned
// function is called.
func (h host) run(f *Firewall) (stop func()) {
	h.Helper()
	ctx, cancel := context.WithCancel(h.Context())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := h.ns.Do(func() error { return f.Run(ctx) }); err != nil {
			h.Error(err)
		}
	})
	return sync.OnceFunc(func() { cancel(); wg.Wait() })
}

// await waits until list returns what is wanted.
func (h host) await(what, want string, list func() string) {
	h.Helper()
	for end := time.Now().Add(patience); ; time.Sleep(5 * time.Millisecond) {
		got := list()
		if got == want {
			return
		}
		if time.Now().After(end) {
			h.Fatalf("%s:\n%s\nwant\n%s", what, got, want)
		}
	}
}

// variant makes the iptables commands those of one kind.
func variant(t *testing.T, kind string) {
	t.Helper()
	multi, err := exec.LookPath("xtables-" + kind + "-multi")
	if err != nil {
		t.Skipf("iptables has no %s variant here: %v", kind, err)
	}
	dir := t.TempDir()
	for _, name := range []string{"iptables", "ip6tables", "iptables-restore", "ip6tables-restore"} {
		if err := os.Symlink(multi, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
}

// iptables lists both tables.
func (h host) iptables(f Family) string {
	h.Helper()
	x := xtables{family: f}
	return h.sh(strings.ReplaceAll("X -t nat -S; X -t filter -S", "X", x.name()))
}

func rulesOf(listing, chain string) (rules []string) {
	for line := range strings.Lines(listing) {
		if strings.HasPrefix(line, "-A "+chain+" ") {
			rules = append(rules, strings.TrimSpace(line))
		}
	}
	return rules
}

func TestIntegrationIPTables(t *testing.T) {
	for _, kind := range []string{"legacy", "nft"} {
		for _, p := range []Policy{v4, v6} {
			name, family := kind+" IPv4", FamilyOf(p.Network)
			if family == IPv6 {
				name = kind + " IPv6"
			}
			t.Run(name, func(t *testing.T) {
				h := newHost(t)
				variant(t, kind)
				x := xtables{family: family}
				// What Docker and an administrator have.
				h.sh(strings.ReplaceAll(`X -P FORWARD DROP; X -N DOCKER-USER; X -A FORWARD -j DOCKER-USER
					X -A DOCKER-USER -p tcp --dport 25 -j DROP
					X -t nat -A POSTROUTING -p udp --dport 53 -j MASQUERADE`, "X", x.name()))
				before := h.iptables(family)
				f := h.open(Config{Policy: p})
				if after := h.iptables(family); after != before {
					t.Fatalf("Open changed\n%s\ninto\n%s", before, after)
				}
				h.apply(f, p, Policy{}, true)
				rules := h.iptables(family)
				for chain, want := range map[string][]string{
					"FLANNEL-POSTRTG": flannelMasq(p, " --random-fully"),
					"FLANNEL-FWD":     flannelForward(p),
					"POSTROUTING":     {"-A POSTROUTING -p udp -m udp --dport 53 -j MASQUERADE", masquerading.iptables().jump()},
					"FORWARD":         {"-A FORWARD -j DOCKER-USER", forwarding.iptables().jump()},
				} {
					if got := rulesOf(rules, chain); !slices.Equal(got, want) {
						t.Errorf("%s has\n%s\nwant\n%s", chain, strings.Join(got, "\n"), strings.Join(want, "\n"))
					}
				}
				h.apply(f, p, Policy{}, false)
				h.apply(f, p, p, false)
				if after := h.iptables(family); after != rules {
					t.Errorf("the second time changed it into\n%s", after)
				}
				h.iptablesComeBack(Config{Policy: p, Resync: 100 * time.Millisecond}, x.name())

				moved := p
				moved.Subnet, moved.RandomFully = p.Network, false // any other will do
				h.apply(f, moved, p, true)
				if got := rulesOf(h.iptables(family), "FLANNEL-POSTRTG"); !slices.Equal(got, flannelMasq(moved, "")) {
					t.Errorf("with another subnet:\n%s", strings.Join(got, "\n"))
				}
				moved.Masquerade = false
				h.apply(f, moved, Policy{}, true)
				if got := h.iptables(family); strings.Contains(got, "FLANNEL-POSTRTG") || !slices.Equal(rulesOf(got, "FLANNEL-FWD"), flannelForward(p)) {
					t.Errorf("without masquerading:\n%s", got)
				}
				h.apply(f, p, Policy{}, true)
				h.removes(x.name()+" chain FLANNEL-POSTRTG of table nat", x.name()+" chain FLANNEL-FWD of table filter")
				if after := h.iptables(family); after != before {
					t.Errorf("Remove leaves\n%s\nof\n%s", after, before)
				}
				h.removes()
			})
		}
	}
}

// removes expects Leftover and Remove to tell of want.
func (h host) removes(want ...string) {
	h.Helper()
	for _, list := range []func(...Policy) ([]string, error){Leftover, Leftover, Remove} {
		if got, err := list(); err != nil || !slices.Equal(got, want) {
			h.Errorf("it tells of %q, want %q, %v", got, want, err)
		}
	}
}

// iptablesComeBack removes rules while Run keeps them.
func (h host) iptablesComeBack(c Config, command string) {
	h.Helper()
	var log bytes.Buffer
	c.Logger = slog.New(slog.NewTextHandler(&log, nil))
	f := h.open(c)
	h.apply(f, c.Policy, Policy{}, false)
	list := func() string { return h.iptables(FamilyOf(c.Policy.Network)) }
	rules := list()
	stop := h.run(f)
	defer stop()
	for _, cut := range []string{
		"IPT -t nat -D FLANNEL-POSTRTG 3",
		"IPT -F FLANNEL-FWD",
		"IPT -t nat -D POSTROUTING 2",
		"IPT -D FORWARD 2; IPT -F FLANNEL-FWD; IPT -X FLANNEL-FWD",
		"IPT -t nat -D FLANNEL-POSTRTG 1; IPT -t nat -D FLANNEL-POSTRTG 4",
	} {
		h.sh(strings.ReplaceAll(cut, "IPT", command))
		// Chains that are made again are listed in another place.
		h.await("after "+cut, sorted(rules), func() string { return sorted(list()) })
	}
	h.sh(command + " -A FLANNEL-FWD -p icmp -j ACCEPT")
	stop()
	if n := strings.Count(log.String(), "put back"); n != 5 {
		h.Errorf("it tells of %d changes: %s", n, log.String())
	}
	h.apply(f, c.Policy, Policy{}, false)
	h.sh(command + " -D FLANNEL-FWD -p icmp -j ACCEPT")
}

func sorted(listing string) string {
	lines := strings.Split(listing, "\n")
	slices.SortStableFunc(lines, func(a, b string) int {
		return strings.Compare(strings.Join(strings.Fields(a)[:min(2, len(strings.Fields(a)))], " "), strings.Join(strings.Fields(b)[:min(2, len(strings.Fields(b)))], " "))
	})
	return strings.Join(lines, "\n")
}

// nftTable is our table as nft lists it.
func nftTable(p Policy) string {
	text := `table FAMILY flannel-NAME {
	chain postrtg {
		type nat hook postrouting priority srcnat; policy accept;
		meta mark & 0x00004000 == 0x00004000 return comment "uvxlan"
		FAMILY saddr POD FAMILY daddr NET return comment "uvxlan"
		FAMILY saddr NET FAMILY daddr POD return comment "uvxlan"
		FAMILY saddr != NET FAMILY daddr POD return comment "uvxlan"
		FAMILY saddr NET FAMILY daddr != MULTICAST masquerade fully-random comment "uvxlan"
		FAMILY saddr != NET FAMILY daddr NET masquerade fully-random comment "uvxlan"
	}

	chain forward {
		type filter hook forward priority filter; policy accept;
		FAMILY saddr NET accept comment "uvxlan"
		FAMILY daddr NET accept comment "uvxlan"
	}
}
`
	family, name, multicast := "ip", "ipv4", "224.0.0.0/4"
	if FamilyOf(p.Network) == IPv6 {
		family, name, multicast = "ip6", "ipv6", "ff00::/8"
	}
	return strings.NewReplacer("FAMILY", family, "NAME", name, "NET", p.Network.String(), "POD", p.Subnet.String(), "MULTICAST", multicast).Replace(text)
}

func TestIntegrationNFTables(t *testing.T) {
	for family, p := range map[string]Policy{"ip": v4, "ip6": v6} {
		t.Run(family, func(t *testing.T) {
			h := newHost(t)
			h.sh(`nft 'table inet other { chain forward { type filter hook forward priority 10; tcp dport 25 drop; }; }'`)
			ruleset := func() string { return h.sh("nft list ruleset") }
			before := ruleset()
			name := "flannel-ipv4"
			if family == "ip6" {
				name = "flannel-ipv6"
			}
			table := func() string { return h.sh("nft list table " + family + " " + name + " 2>/dev/null || true") }
			f := h.open(Config{NFTables: true, Policy: p})
			if after := ruleset(); after != before {
				t.Fatalf("Open changed\n%s\ninto\n%s", before, after)
			}
			h.apply(f, p, Policy{}, true)
			if got := table(); got != nftTable(p) {
				t.Fatalf("it has\n%s\nwant\n%s", got, nftTable(p))
			}
			h.apply(f, p, Policy{}, false)
			h.apply(f, p, p, false)
			if !strings.Contains(ruleset(), strings.TrimSpace(before)) {
				t.Errorf("another table became\n%s", ruleset())
			}

			// The hour until the next resync doesn't pass.
			again := h.open(Config{NFTables: true, Policy: p})
			h.apply(again, p, Policy{}, false)
			stop := h.run(again)
			defer stop()
			for _, cut := range []string{
				"nft flush chain FAMILY NAME postrtg",
				"nft delete rule FAMILY NAME forward handle $(nft -a list chain FAMILY NAME forward | sed -n 's/.*daddr.*handle //p')",
				"nft delete chain FAMILY NAME forward",
				"nft delete table FAMILY NAME",
				"nft flush ruleset",
			} {
				h.sh(strings.NewReplacer("FAMILY", family, "NAME", name).Replace(cut))
				h.await("after "+cut, nftTable(p), table)
			}
			stop()
			h.sh("nft -f - <<'END'\n" + before + "END")

			moved := p
			moved.Subnet = p.Network // any other will do
			h.apply(f, moved, p, true)
			if got := table(); got != nftTable(moved) {
				t.Errorf("with another subnet:\n%s", got)
			}
			moved.Masquerade = false
			h.apply(f, moved, Policy{}, true)
			if got := table(); strings.Contains(got, "postrtg") || !strings.Contains(got, "accept comment") {
				t.Errorf("without masquerading:\n%s", got)
			}
			h.removes("nftables table " + name)
			if after := ruleset(); after != before {
				t.Errorf("Remove leaves\n%s\nof\n%s", after, before)
			}
			h.removes()
		})
	}
}

// What flanneld has left in its tables goes, since a rule of it hides others.
func TestIntegrationNFTablesAfterFlannel(t *testing.T) {
	h := newHost(t)
	h.sh(`nft 'table ip flannel-ipv4 {
		chain postrtg { type nat hook postrouting priority srcnat; meta mark 0x4000 return; ip saddr != 10.42.7.0/24 ip daddr 10.42.0.0/16 return; }
		chain forward { type filter hook forward priority filter; ip saddr 10.42.0.0/16 accept; }; }'`)
	f := h.open(Config{NFTables: true, Policy: v4})
	h.apply(f, v4, Policy{}, true)
	if got := h.sh("nft list table ip flannel-ipv4"); got != nftTable(v4) {
		t.Errorf("it has\n%s", got)
	}
}

// A chain of somebody else's that drops what ours accepts is told of, once.
func TestIntegrationNFTablesObstacle(t *testing.T) {
	h := newHost(t)
	h.sh(`nft 'table ip filter { chain FORWARD { type filter hook forward priority filter; policy drop; }; }'`)
	var log bytes.Buffer
	f := h.open(Config{NFTables: true, Policy: v4, Logger: slog.New(slog.NewTextHandler(&log, nil))})
	h.apply(f, v4, Policy{}, true)
	for range 3 {
		f.look()
	}
	if text := log.String(); strings.Count(text, "\n") != 1 || !strings.Contains(text, "FORWARD") || !strings.Contains(text, "table filter") {
		t.Errorf("it says %s", text)
	}
}

// Another mode's rules go when this one's are there.
func TestIntegrationChangeOfMode(t *testing.T) {
	h := newHost(t)
	none := h.iptables(IPv4)
	tables := h.open(Config{Policy: v4})
	h.apply(tables, v4, Policy{}, true)
	nft := h.open(Config{NFTables: true, Policy: v4})
	h.apply(nft, v4, v4, true)
	if got := h.iptables(IPv4); got != none {
		t.Errorf("iptables has\n%s", got)
	}
	h.removes("nftables table flannel-ipv4")
	h.apply(nft, v4, v4, true)
	h.apply(tables, v4, v4, true)
	h.removes("iptables chain FLANNEL-POSTRTG of table nat", "iptables chain FLANNEL-FWD of table filter")
}

// Two daemons of different networks don't touch each other's rules.
func TestIntegrationTwoNetworks(t *testing.T) {
	second := policy("10.43.0.0/16", "10.43.7.0/24")
	for _, nft := range []bool{false, true} {
		h := newHost(t)
		for i := range 3 {
			for _, p := range []Policy{v4, second} {
				h.apply(h.open(Config{NFTables: nft, Policy: p}), p, Policy{}, i == 0)
			}
		}
	}
}

// What removes one network's rules, of either way, leaves the other's.
func TestIntegrationForgetsOneOfTwoNetworks(t *testing.T) {
	first, other := v4, policy("10.43.0.0/16", "10.43.7.0/24")
	for _, nft := range [][2]bool{{false, false}, {true, true}, {false, true}, {true, false}} {
		h := newHost(t)
		all := func() string {
			return h.iptables(IPv4) + h.sh("nft list table ip flannel-ipv4 2>&1 || true")
		}
		none := all()
		h.apply(h.open(Config{NFTables: nft[1], Policy: other}), other, Policy{}, true)
		before := all()
		h.apply(h.open(Config{NFTables: nft[0], Policy: first}), first, Policy{}, true)
		h.apply(h.open(Config{NFTables: nft[1], Policy: other}), other, Policy{}, false)
		told, err := Leftover(first)
		if err != nil || len(told) == 0 {
			t.Fatalf("%v: it tells of %q, %v", nft, told, err)
		}
		if removed, err := Remove(first); err != nil || !slices.Equal(removed, told) {
			t.Errorf("%v: removed %q, want %q, %v", nft, removed, told, err)
		}
		if after := all(); after != before {
			t.Errorf("%v: what is left is\n%swant\n%s", nft, after, before)
		}
		if told, err := Leftover(first); err != nil || len(told) > 0 {
			t.Errorf("%v: afterwards it tells of %q, %v", nft, told, err)
		}
		if _, err := Remove(other); err != nil || nft[0] && nft[1] && all() != none {
			t.Errorf("%v: the last leaves\n%s, %v", nft, all(), err)
		}
	}
}

// A kernel that lacks what the rules need says so before anything is put.
func TestIntegrationRefusal(t *testing.T) {
	h := newHost(t)
	n, err := openNFTables(IPv4)
	if err != nil {
		t.Fatal(err)
	}
	n.table.Family = 99 // as little known as masquerading without its module
	err = n.probe(chains(v4, Policy{}))
	if !errors.Is(err, ErrNoNFTables) || strings.Contains(err.Error(), "\n") {
		t.Errorf("the kernel says %v", err)
	}
	if left := h.sh("nft list ruleset"); left != "" {
		t.Errorf("the probe leaves\n%s", left)
	}
}

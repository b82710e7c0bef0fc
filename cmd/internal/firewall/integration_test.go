package firewall

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"uvxlan/cmd/internal/host"
	"uvxlan/tunnel/netnstest"
)

// machine is a network namespace.
type machine struct {
	*testing.T
	ns *netnstest.Namespace
}

// newMachine moves the test, and the commands it runs, into a network namespace of
// its own.
func newMachine(t *testing.T) machine {
	t.Helper()
	return machine{t, netnstest.Enter(t)}
}

// sh is the administrator's hand.
func (h machine) sh(command string) string {
	h.Helper()
	return netnstest.Run(h, "sh", "-ec", command)
}

// keep returns the rules as a part of the host, and wants the host to take them.
func (h machine) keep(c Config) host.Part {
	h.Helper()
	c.Resync = time.Nanosecond // each look compares the rules
	f := New(c)
	if err := f.Probe(); err != nil {
		h.Fatal(err)
	}
	return f.Part(c.Policy.Subnet, func() []string { return []string{"flannel.1"} })
}

// look does what a keeper does, and returns the faults before and after.
func (h machine) look(p host.Part) (before, after []host.Fault) {
	h.Helper()
	if before = p.Check(h.Context()); len(before) == 0 {
		return nil, nil
	}
	if err := p.Repair(h.Context()); err != nil {
		h.Fatal(err)
	}
	return before, p.Check(h.Context())
}

// apply puts the rules, and tells whether that was to do anything.
func (h machine) apply(nft bool, now, before Policy, want bool) {
	h.Helper()
	p := h.keep(Config{NFTables: nft, Policy: now, Before: before})
	if found, left := h.look(p); len(found) > 0 != want || len(left) > 0 {
		h.Fatalf("found %+v, want some: %t; afterwards there is %+v", found, want, left)
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
	for _, name := range []string{"iptables", "ip6tables", "iptables-restore", "ip6tables-restore", "iptables-save", "ip6tables-save"} {
		if err := os.Symlink(multi, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
}

// iptables lists both tables.
func (h machine) iptables(f Family) string {
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
				h := newMachine(t)
				variant(t, kind)
				x := xtables{family: family}
				// What Docker and an administrator have.
				h.sh(strings.ReplaceAll(`X -P FORWARD DROP; X -N DOCKER-USER; X -A FORWARD -j DOCKER-USER
					X -A DOCKER-USER -p tcp --dport 25 -j DROP
					X -t nat -A POSTROUTING -p udp --dport 53 -j MASQUERADE`, "X", x.name()))
				before := h.iptables(family)
				h.keep(Config{Policy: p})
				if after := h.iptables(family); after != before {
					t.Fatalf("the probe changed\n%s\ninto\n%s", before, after)
				}
				h.apply(false, p, Policy{}, true)
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
				h.apply(false, p, Policy{}, false)
				h.apply(false, p, p, false)
				if after := h.iptables(family); after != rules {
					t.Errorf("the second time changed it into\n%s", after)
				}
				h.iptablesComeBack(p, x.name())

				moved := p
				moved.Subnet, moved.RandomFully = p.Network, false // any other will do
				h.apply(false, moved, p, true)
				if got := rulesOf(h.iptables(family), "FLANNEL-POSTRTG"); !slices.Equal(got, flannelMasq(moved, "")) {
					t.Errorf("with another subnet:\n%s", strings.Join(got, "\n"))
				}
				moved.Masquerade = false
				h.apply(false, moved, Policy{}, true)
				if got := h.iptables(family); strings.Contains(got, "FLANNEL-POSTRTG") || !slices.Equal(rulesOf(got, "FLANNEL-FWD"), flannelForward(p)) {
					t.Errorf("without masquerading:\n%s", got)
				}
				h.apply(false, p, Policy{}, true)
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
func (h machine) removes(want ...string) {
	h.Helper()
	for _, list := range []func(...Policy) ([]string, error){Leftover, Leftover, Remove} {
		if got, err := list(); err != nil || !slices.Equal(got, want) {
			h.Errorf("it tells of %q, want %q, %v", got, want, err)
		}
	}
}

// iptablesComeBack removes rules and has them put back.
func (h machine) iptablesComeBack(p Policy, command string) {
	h.Helper()
	part := h.keep(Config{Policy: p})
	if found, _ := h.look(part); len(found) > 0 {
		h.Fatalf("found %+v", found)
	}
	list := func() string { return h.iptables(FamilyOf(p.Network)) }
	rules := list()
	for _, cut := range []struct{ command, fault string }{
		{"IPT -t nat -D FLANNEL-POSTRTG 3", "masquerading"},
		{"IPT -F FLANNEL-FWD", "forward"},
		{"IPT -t nat -D POSTROUTING 2", "masquerading"},
		{"IPT -D FORWARD 2; IPT -F FLANNEL-FWD; IPT -X FLANNEL-FWD", "forward"},
		{"IPT -t nat -D FLANNEL-POSTRTG 1; IPT -t nat -D FLANNEL-POSTRTG 4", "masquerading"},
	} {
		h.sh(strings.ReplaceAll(cut.command, "IPT", command))
		found, left := h.look(part)
		if len(found) != 1 || !strings.Contains(found[0].What, cut.fault) || len(left) > 0 {
			h.Errorf("after %s it finds %+v, and then %+v", cut.command, found, left)
		}
		// Chains that are made again are listed in another place.
		if got := list(); sorted(got) != sorted(rules) {
			h.Fatalf("after %s:\n%s\nwant\n%s", cut.command, got, rules)
		}
	}
	h.sh(command + " -A FLANNEL-FWD -p icmp -j ACCEPT")
	if found, _ := h.look(part); len(found) > 0 {
		h.Errorf("somebody's rule in our chain is a fault: %+v", found)
	}
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
			h := newMachine(t)
			h.sh(`nft 'table inet other { chain forward { type filter hook forward priority 10; tcp dport 25 drop; }; }'`)
			ruleset := func() string { return h.sh("nft list ruleset") }
			before := ruleset()
			name := "flannel-ipv4"
			if family == "ip6" {
				name = "flannel-ipv6"
			}
			table := func() string { return h.sh("nft list table " + family + " " + name + " 2>/dev/null || true") }
			part := h.keep(Config{NFTables: true, Policy: p})
			if after := ruleset(); after != before {
				t.Fatalf("the probe changed\n%s\ninto\n%s", before, after)
			}
			h.apply(true, p, Policy{}, true)
			if got := table(); got != nftTable(p) {
				t.Fatalf("it has\n%s\nwant\n%s", got, nftTable(p))
			}
			h.apply(true, p, Policy{}, false)
			h.apply(true, p, p, false)
			if !strings.Contains(ruleset(), strings.TrimSpace(before)) {
				t.Errorf("another table became\n%s", ruleset())
			}

			for _, cut := range []string{
				"nft flush chain FAMILY NAME postrtg",
				"nft delete rule FAMILY NAME forward handle $(nft -a list chain FAMILY NAME forward | sed -n 's/.*daddr.*handle //p')",
				"nft delete chain FAMILY NAME forward",
				"nft delete table FAMILY NAME",
				"nft flush ruleset",
			} {
				h.sh(strings.NewReplacer("FAMILY", family, "NAME", name).Replace(cut))
				if found, left := h.look(part); len(found) == 0 || len(left) > 0 {
					t.Errorf("after %s it finds %+v, and then %+v", cut, found, left)
				}
				if got := table(); got != nftTable(p) {
					t.Errorf("after %s:\n%s", cut, got)
				}
			}
			h.sh("nft -f - <<'END'\n" + before + "END")

			moved := p
			moved.Subnet = p.Network // any other will do
			h.apply(true, moved, p, true)
			if got := table(); got != nftTable(moved) {
				t.Errorf("with another subnet:\n%s", got)
			}
			moved.Masquerade = false
			h.apply(true, moved, Policy{}, true)
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
	h := newMachine(t)
	h.sh(`nft 'table ip flannel-ipv4 {
		chain postrtg { type nat hook postrouting priority srcnat; meta mark 0x4000 return; ip saddr != 10.42.7.0/24 ip daddr 10.42.0.0/16 return; }
		chain forward { type filter hook forward priority filter; ip saddr 10.42.0.0/16 accept; }; }'`)
	h.apply(true, v4, Policy{}, true)
	if got := h.sh("nft list table ip flannel-ipv4"); got != nftTable(v4) {
		t.Errorf("it has\n%s", got)
	}
}

// Another mode's rules go when this one's are there.
func TestIntegrationChangeOfMode(t *testing.T) {
	h := newMachine(t)
	none := h.iptables(IPv4)
	h.apply(false, v4, Policy{}, true)
	h.apply(true, v4, v4, true)
	if got := h.iptables(IPv4); got != none {
		t.Errorf("iptables has\n%s", got)
	}
	h.removes("nftables table flannel-ipv4")
	h.apply(true, v4, v4, true)
	h.apply(false, v4, v4, true)
	h.removes("iptables chain FLANNEL-POSTRTG of table nat", "iptables chain FLANNEL-FWD of table filter")
}

// Two daemons of different networks don't touch each other's rules.
func TestIntegrationTwoNetworks(t *testing.T) {
	second := policy("10.43.0.0/16", "10.43.7.0/24")
	for _, nft := range []bool{false, true} {
		h := newMachine(t)
		for i := range 3 {
			for _, p := range []Policy{v4, second} {
				h.apply(nft, p, Policy{}, i == 0)
			}
		}
	}
}

// What removes one network's rules, of either way, leaves the other's.
func TestIntegrationForgetsOneOfTwoNetworks(t *testing.T) {
	first, other := v4, policy("10.43.0.0/16", "10.43.7.0/24")
	for _, nft := range [][2]bool{{false, false}, {true, true}, {false, true}, {true, false}} {
		h := newMachine(t)
		all := func() string {
			return h.iptables(IPv4) + h.sh("nft list table ip flannel-ipv4 2>&1 || true")
		}
		none := all()
		h.apply(nft[1], other, Policy{}, true)
		before := all()
		h.apply(nft[0], first, Policy{}, true)
		h.apply(nft[1], other, Policy{}, false)
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
	h := newMachine(t)
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

// holdLock locks iptables-legacy until the file is closed.
func holdLock(t *testing.T) *os.File {
	t.Helper()
	path := filepath.Join(t.TempDir(), "xtables.lock")
	t.Setenv("XTABLES_LOCKFILE", path)
	lock, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { lock.Close() })
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	return lock
}

// The lock of iptables-legacy, held by somebody else, keeps us neither from reading
// the rules nor for good from putting them.
func TestIntegrationLockHeld(t *testing.T) {
	for _, p := range []Policy{v4, v6} {
		h := newMachine(t)
		variant(t, "legacy")
		lock := holdLock(t)
		path := lock.Name()
		part := h.keep(Config{Policy: p})
		if found := part.Check(t.Context()); len(found) != 2 || found[0].Remedy != "" {
			t.Errorf("with the lock held it finds %+v", found)
		}
		err := part.Repair(t.Context())
		self, _ := os.ReadFile("/proc/self/comm")
		for _, word := range []string{"lock of iptables", path, strings.TrimSpace(string(self)), strconv.Itoa(os.Getpid())} {
			if err == nil || !strings.Contains(err.Error(), word) {
				t.Errorf("the repair doesn't say %q: %v", word, err)
			}
			if found := part.Check(t.Context()); len(found) != 2 || !strings.Contains(found[0].Remedy, word) || found[0].Stops {
				t.Errorf("after the repair the fault doesn't say %q: %+v", word, found)
			}
		}
		lock.Close()
		if found, left := h.look(part); len(found) != 2 || len(left) > 0 {
			t.Errorf("with the lock free it finds %+v, and then %+v", found, left)
		}
		if rules := h.iptables(FamilyOf(p.Network)); !slices.Equal(rulesOf(rules, "FLANNEL-FWD"), flannelForward(p)) {
			t.Errorf("it has\n%s", rules)
		}
	}
}

// A daemon that ends doesn't wait for the lock.
func TestIntegrationLockHeldAtTheEnd(t *testing.T) {
	h := newMachine(t)
	variant(t, "legacy")
	holdLock(t)
	part := h.keep(Config{Policy: v4})
	part.Check(t.Context())
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := part.Repair(ctx); err == nil || strings.Contains(err.Error(), "lock") {
		t.Errorf("it waited: %v", err)
	}
}

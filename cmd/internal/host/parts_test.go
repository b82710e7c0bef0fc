package host

import (
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"uvxlan/cmd/internal/cniconf"
	"uvxlan/cmd/internal/hoststate"
	"uvxlan/cmd/internal/subnetfile"
	"uvxlan/tunnel/netnstest"
)

func expectFaults(t *testing.T, when string, p Part, want ...string) {
	t.Helper()
	faults := p.Check(t.Context())
	var got []string
	for _, f := range faults {
		got = append(got, f.String())
	}
	if len(got) != len(want) {
		t.Fatalf("%s: %q, want %q", when, got, want)
	}
	for i, w := range want {
		if !strings.Contains(got[i], w) {
			t.Errorf("%s: %q, want %q", when, got[i], w)
		}
	}
}

func TestIntegrationReversePath(t *testing.T) {
	netnstest.RequireRoot(t)
	netnstest.Enter(t)
	dir := t.TempDir()
	netnstest.Run(t, "ip", "link", "add", "eth0.7", "type", "bridge")
	p := ReversePath(dir, func() string { return "eth0.7" })
	set := func(name, value string) {
		netnstest.Run(t, "sysctl", "-qw", "net/ipv4/conf/"+name+"/rp_filter="+value)
	}
	for _, c := range []struct {
		all, own string
		strict   bool
	}{{"0", "0", false}, {"1", "0", true}, {"0", "1", true}, {"2", "1", false}, {"1", "2", false}} {
		set("all", c.all)
		set("eth0.7", c.own)
		if got := len(p.Check(t.Context())) > 0; got != c.strict {
			t.Errorf("all %s, own %s: strict is %t", c.all, c.own, got)
		}
	}
	set("all", "1")
	gone := ReversePath(dir, func() string { return "eth0.8" })
	expectFaults(t, "an interface that is gone", gone)
	set("eth0.7", "0")
	expectFaults(t, "strict", p, "sysctl -w net/ipv4/conf/eth0.7/rp_filter=2")
	if err := p.Repair(t.Context()); err != nil {
		t.Fatal(err)
	}
	expectFaults(t, "repaired", p)
	if restored, err := hoststate.RestoreSysctls(dir); err != nil || len(restored) != 1 || restored[0].Before != "0" {
		t.Errorf("restored %+v, %v", restored, err)
	}
}

func TestIntegrationContainers(t *testing.T) {
	netnstest.RequireRoot(t)
	netnstest.Enter(t)
	arrivals := []string{}
	c := Containers{
		Networks: prefixes("172.7.0.0/16", "2001:db8:7::/48"), Subnets: prefixes("172.7.21.0/24", "2001:db8:7:21::/64"),
		Arrivals: func() []string { return arrivals },
		Ours:     func(name string) bool { return name == "flannel.1" },
	}
	forwarding, subnets := c.Parts()[0], c.Parts()[1]
	sh := func(line string) { netnstest.Run(t, "sh", "-c", line) }
	sh("sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1")
	sh("for l in flannel.1 cni0 docker0 eth0; do ip link add $l type bridge; done")
	sh("ip addr add 172.7.21.0/32 dev flannel.1; ip addr add 172.7.21.1/24 dev cni0; ip addr add 192.0.2.1/24 dev eth0")
	expectFaults(t, "a host as it should be", forwarding)
	expectFaults(t, "a host as it should be", subnets)
	sh("sysctl -qw net.ipv4.ip_forward=0")
	expectFaults(t, "nothing forwards", forwarding, "cni0 doesn't forward IPv4 packets, so containers are cut off: sysctl -w net.ipv4.ip_forward=1")
	sh("sysctl -qw net.ipv4.conf.cni0.forwarding=1")
	expectFaults(t, "the containers' interface forwards by itself", forwarding)
	arrivals = []string{"eth0"}
	expectFaults(t, "packets arrive directly", forwarding, "eth0 doesn't forward")
	sh("sysctl -qw net.ipv4.ip_forward=1 net/ipv4/conf/cni0/forwarding=0")
	expectFaults(t, "an interface that doesn't", forwarding, "cni0 doesn't forward IPv4 packets, so containers are cut off: sysctl -w net/ipv4/conf/cni0/forwarding=1")
	sh("sysctl -qw net.ipv6.conf.all.forwarding=0 net/ipv4/conf/cni0/forwarding=1")
	expectFaults(t, "no IPv6", forwarding, "doesn't forward IPv6")
	sh("ip addr add 172.7.99.1/24 dev docker0; ip addr add 2001:db8:7:99::1/64 dev docker0 nodad")
	expectFaults(t, "an earlier lease's bridge", subnets, "docker0 has the address 172.7.99.1/24, which is not of this host's subnet 172.7.21.0/24",
		"docker0 has the address 2001:db8:7:99::1/64, which is not of this host's subnet 2001:db8:7:21::/64")
	sh("ip link del cni0; sysctl -qw net.ipv4.ip_forward=0")
	arrivals = nil
	if f := forwarding.Check(t.Context()); len(f) != 2 || f[0].Stops || f[1].Stops {
		t.Errorf("no containers yet: %+v", f)
	}
}

func TestIntegrationBlackholes(t *testing.T) {
	netnstest.RequireRoot(t)
	netnstest.Enter(t)
	netnstest.Run(t, "ip", "link", "set", "lo", "up")
	p := Blackholes(t.TempDir(), prefixes("172.7.21.0/24", "2001:db8:7:21::/64"))
	expectFaults(t, "at first", p, "172.7.21.0/24", "2001:db8:7:21::/64")
	for _, when := range []string{"made", "made again"} {
		if err := p.Repair(t.Context()); err != nil {
			t.Fatal(err)
		}
		expectFaults(t, when, p)
	}
	netnstest.Run(t, "ip", "route", "flush", "type", "blackhole")
	expectFaults(t, "flushed", p, "172.7.21.0/24 is missing")
}

func TestSubnetFilePart(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "subnet.env")
	want := subnetfile.File{Network: prefixes("172.7.0.0/16")[0], Subnet: prefixes("172.7.21.0/24")[0], MTU: 1450}
	right := 0
	p := SubnetFile(dir, path, func() subnetfile.File { return want }, func() { right++ })
	check := func(when string, faulty bool) {
		t.Helper()
		before := right
		if got := len(p.Check(t.Context())) > 0; got != faulty || (right > before) == faulty {
			t.Errorf("%s: faulty %t, %d times right", when, got, right-before)
		}
	}
	check("without a file", true)
	if err := p.Repair(t.Context()); err != nil {
		t.Fatal(err)
	}
	check("written", false)
	want.MTU = 1350
	check("another MTU", true)
	if err := p.Repair(t.Context()); err != nil {
		t.Fatal(err)
	}
	check("written again", false)
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(path, 0o755); err != nil {
		t.Fatal(err)
	}
	check("a directory in its place", true)
	if err := p.Repair(t.Context()); err == nil {
		t.Error("a directory was replaced")
	}
}

func prefixes(all ...string) (out []netip.Prefix) {
	for _, p := range all {
		out = append(out, netip.MustParsePrefix(p))
	}
	return out
}

// The CNI configuration is written and put back, but not beside one of flannel's.
func TestCNIConfigPart(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "net.d/10-uvxlan.conflist")
	want := cniconf.Config{Network: prefixes("10.244.0.0/16")[0], Subnet: prefixes("10.244.3.0/24")[0], MTU: 1450}
	p := CNIConfig(dir, path, func() cniconf.Config { return want })
	repair := func() {
		t.Helper()
		if err := p.Repair(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	expectFaults(t, "without a file", p, "doesn't have this host's subnet")
	repair()
	expectFaults(t, "written", p)
	if s, err := hoststate.Load(dir); err != nil || s.CNIConfig != path {
		t.Errorf("on record is %q, %v", s.CNIConfig, err)
	}
	want.MTU = 1350
	expectFaults(t, "another MTU", p, "doesn't have this host's subnet")
	repair()
	expectFaults(t, "written again", p)
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	flannel := filepath.Join(dir, "net.d/10-flannel.conflist")
	if err := os.WriteFile(flannel, []byte(`{"plugins": [{"type": "flannel"}]}`), 0o600); err != nil {
		t.Fatal(err)
	}
	expectFaults(t, "beside flannel's", p)
	if err := os.Remove(flannel); err != nil {
		t.Fatal(err)
	}
	expectFaults(t, "once flannel's is gone", p, "doesn't have this host's subnet")
}

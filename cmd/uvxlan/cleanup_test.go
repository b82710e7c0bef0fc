package main

import (
	"bytes"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"uvxlan/cmd/internal/blackhole"
	"uvxlan/cmd/internal/firewall"
	"uvxlan/cmd/internal/hoststate"
	"uvxlan/cmd/internal/leasefile"
	"uvxlan/cmd/internal/subnetfile"
	"uvxlan/tunnel/device"
	"uvxlan/tunnel/netnstest"
)

// newHost moves the test, and the commands it runs, into a network namespace of
// its own with an interface eth0.
func newHost(t *testing.T) {
	t.Helper()
	netnstest.Enter(t)
	ip(t, "link add eth0 type veth peer name eth1")
	ip(t, "link set eth1 up")
	ip(t, "link set eth0 up")
	ip(t, "address add 192.168.9.1/24 dev eth0")
}

func ip(t *testing.T, command string) string {
	t.Helper()
	return netnstest.Run(t, "ip", strings.Fields(command)...)
}

func iptables(t *testing.T, command string) string {
	t.Helper()
	return netnstest.Run(t, "iptables", strings.Fields(command)...)
}

func cleanup(t *testing.T, dir string, dry bool) string {
	t.Helper()
	return clean(t, cleaner{dir: dir, dry: dry})
}

// cleanupAll also removes what isn't on record.
func cleanupAll(t *testing.T, dir string, dry bool) string {
	t.Helper()
	return clean(t, cleaner{dir: dir, dry: dry, all: true})
}

func clean(t *testing.T, c cleaner) string {
	t.Helper()
	var out bytes.Buffer
	c.out = &out
	if err := c.run(); err != nil {
		t.Fatalf("cleanup: %v, after\n%s", err, out.String())
	}
	expectSame(t, out.String(), c.result())
	return out.String()
}

// expectSame checks that the JSON tells what the lines do.
func expectSame(t *testing.T, lines string, result cleaned) {
	t.Helper()
	var printed, want []string
	for line := range strings.Lines(lines) {
		if line != "nothing to remove\n" {
			printed = append(printed, strings.TrimSuffix(line, "\n"))
		}
	}
	verb := "removed "
	if result.Dry {
		verb = "would remove "
	}
	for _, what := range result.Removed {
		want = append(want, verb+what)
	}
	for _, what := range result.Left {
		want = append(want, "left "+what)
	}
	slices.Sort(printed)
	slices.Sort(want)
	if !slices.Equal(printed, want) {
		t.Errorf("it printed %q, in JSON %+v", printed, result)
	}
}

func expectLines(t *testing.T, got string, want ...string) {
	t.Helper()
	if got != strings.Join(want, "\n")+"\n" {
		t.Errorf("it printed\n%swant\n%s", got, strings.Join(want, "\n"))
	}
}

const rpFilter = "/proc/sys/net/ipv4/conf/eth0/rp_filter"

func reversePath(t *testing.T) string {
	t.Helper()
	text, err := os.ReadFile(rpFilter)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(text))
}

func setSysctl(t *testing.T, value string) {
	t.Helper()
	if err := os.WriteFile(rpFilter, []byte(value), 0); err != nil {
		t.Fatal(err)
	}
}

// abandonSocket leaves a socket as a killed process does.
func abandonSocket(path string) error {
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path})
	if err != nil {
		return err
	}
	l.SetUnlinkOnClose(false)
	return l.Close()
}

func TestIntegrationCleanup(t *testing.T) {
	newHost(t)
	dir := filepath.Join(t.TempDir(), "state")
	expectLines(t, cleanup(t, dir, false), "nothing to remove")
	if exists(dir) {
		t.Error("it made a state directory")
	}

	subnetFile := filepath.Join(t.TempDir(), "subnet.env")
	socket := filepath.Join(t.TempDir(), "uvxlan.sock")
	setSysctl(t, "2")
	cni := filepath.Join(t.TempDir(), "10-uvxlan.conflist")
	state := hoststate.State{SubnetFile: subnetFile, CNIConfig: cni, ControlSocket: socket, Device: "flannel.1", Blackhole: netip.MustParsePrefix("172.7.21.0/24"), Sysctls: []hoststate.Sysctl{
		{Path: "ipv4/conf/eth0/rp_filter", Before: "1", Set: "2"},
		{Path: "ipv4/conf/eth7/rp_filter", Before: "1", Set: "2"},
	}}
	if err := state.Save(dir); err != nil {
		t.Fatal(err)
	}
	for path, make := range map[string]func(string) error{
		subnetFile:              func(p string) error { return os.WriteFile(p, nil, 0o600) },
		cni:                     func(p string) error { return os.WriteFile(p, nil, 0o600) },
		socket:                  abandonSocket,
		leasefile.Path(dir):     func(p string) error { return os.WriteFile(p, nil, 0o600) },
		hoststate.LockPath(dir): func(p string) error { return os.WriteFile(p, []byte("4711\n"), 0o600) }, // of a killed daemon
		hoststate.EtcdDir(dir):  func(p string) error { return os.Mkdir(p, 0o700) },
	} {
		if err := make(path); err != nil {
			t.Fatal(err)
		}
	}
	ip(t, "tuntap add dev flannel.1 mode tun")
	ip(t, "route add 172.7.22.0/24 via 192.168.9.22 proto 89")
	if err := blackhole.Add(state.Blackhole); err != nil {
		t.Fatal(err)
	}
	ip(t, "route add blackhole 172.7.98.0/24 proto 89")
	ip(t, "route add 172.7.99.0/24 via 192.168.9.99 proto static")
	ip(t, "route add 172.7.0.0/16 dev eth0 proto 89")
	iptables(t, "-t nat -N FLANNEL-POSTRTG")
	iptables(t, "-t nat -A POSTROUTING -j FLANNEL-POSTRTG")
	iptables(t, "-A FORWARD -s 172.9.0.0/16 -j DROP")

	onHost := func() string { return ip(t, "route") + ip(t, "link") + reversePath(t) + iptables(t, "-t nat -S") }
	before := onHost()
	lines := []string{
		"removed route 172.7.22.0/24 via 192.168.9.22 dev eth0",
		"removed route blackhole 172.7.21.0/24",
		"removed iptables chain FLANNEL-POSTRTG of table nat",
		"removed interface flannel.1",
		"removed sysctl net/ipv4/conf/eth0/rp_filter=2, set back to 1",
		"removed subnet file " + subnetFile,
		"removed CNI configuration " + cni,
		"removed control socket " + socket,
		"removed leases " + leasefile.Path(dir),
		"removed manifest " + hoststate.Path(dir),
		"removed lock " + hoststate.LockPath(dir),
		"left " + hoststate.EtcdDir(dir) + ": the embedded etcd's data",
	}
	expectLines(t, cleanupAll(t, dir, true), strings.Split(strings.ReplaceAll(strings.Join(lines, "\n"), "removed", "would remove"), "\n")...)
	if after := onHost(); after != before || !exists(subnetFile) || !exists(hoststate.Path(dir)) {
		t.Errorf("a dry run changed\n%s\ninto\n%s", before, after)
	}
	expectLines(t, cleanupAll(t, dir, false), lines...)
	if got := reversePath(t); got != "1" {
		t.Errorf("the sysctl is %s", got)
	}
	for _, path := range []string{subnetFile, cni, leasefile.Path(dir), hoststate.Path(dir), hoststate.LockPath(dir)} {
		if exists(path) {
			t.Errorf("%s is left", path)
		}
	}
	table := ip(t, "route")
	if strings.Contains(table, "172.7.22.0") || strings.Contains(table, "172.7.21.0") || !strings.Contains(table, "blackhole 172.7.98.0/24") || !strings.Contains(table, "172.7.99.0/24 via 192.168.9.99") || !strings.Contains(table, "172.7.0.0/16 dev eth0") {
		t.Errorf("routes after the cleanup:\n%s", table)
	}
	if rules := iptables(t, "-t nat -S") + iptables(t, "-S"); strings.Contains(rules, "FLANNEL") || !strings.Contains(rules, "-s 172.9.0.0/16 -j DROP") {
		t.Errorf("rules after the cleanup:\n%s", rules)
	}
	for range 2 {
		expectLines(t, cleanup(t, dir, false), lines[len(lines)-1], "nothing to remove")
	}
}

// What isn't ours, or no longer, stays.
func TestIntegrationCleanupLeaves(t *testing.T) {
	newHost(t)
	setSysctl(t, "0")
	for _, c := range []struct {
		name, kind string
		add        func(t *testing.T)
		want       string
	}{
		{"a bridge", "bridge", func(t *testing.T) { ip(t, "link add flannel.1 type bridge") }, "left interface flannel.1: the interface exists, of type bridge"},
		{"flannel's device", "vxlan", func(t *testing.T) { ip(t, "link add flannel.1 type vxlan id 1 dstport 8472 dev eth0") }, "left interface flannel.1: the kernel's VXLAN, not ours"},
		{"a device in use", "tun", func(t *testing.T) {
			d, err := device.Open("flannel.1", device.Config{})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { d.Close() })
		}, "left interface flannel.1: the interface exists: a running process holds it"},
	} {
		dir := t.TempDir()
		state := hoststate.State{Device: "flannel.1", Sysctls: []hoststate.Sysctl{{Path: "ipv4/conf/eth0/rp_filter", Before: "1", Set: "2"}}}
		if err := state.Save(dir); err != nil {
			t.Fatal(err)
		}
		c.add(t)
		expectLines(t, cleanup(t, dir, true), c.want, "would remove manifest "+hoststate.Path(dir))
		expectLines(t, cleanup(t, dir, false), c.want, "removed manifest "+hoststate.Path(dir))
		if link := ip(t, "-d link show flannel.1"); !strings.Contains(link, c.kind) {
			t.Errorf("%s: the interface became %s", c.name, link)
		}
		if got := reversePath(t); got != "0" {
			t.Errorf("%s: the sysctl is %s", c.name, got)
		}
		if c.kind != "tun" {
			ip(t, "link delete flannel.1")
		}
	}
}

func TestIntegrationCleanupWhileRunning(t *testing.T) {
	newHost(t)
	dir := t.TempDir()
	lock, err := hoststate.Acquire(dir)
	if err != nil {
		t.Fatal(err)
	}
	ip(t, "route add 172.7.22.0/24 via 192.168.9.22 proto 89")
	for _, dry := range []bool{true, false} {
		c := cleaner{out: os.Stderr, dir: dir, dry: dry}
		if err := c.run(); err == nil || err.Error() != fmt.Sprintf("uvxland runs (pid %d): stop it first (kill %[1]d, if no service manager does)", os.Getpid()) {
			t.Errorf("while a daemon runs: %v", err)
		}
	}
	if table := ip(t, "route"); !strings.Contains(table, "172.7.22.0/24") {
		t.Errorf("routes:\n%s", table)
	}
	if err := lock.Close(); err != nil {
		t.Fatal(err)
	}
	expectLines(t, cleanupAll(t, dir, false), "removed route 172.7.22.0/24 via 192.168.9.22 dev eth0", "removed lock "+hoststate.LockPath(dir))
}

// An older version's cleanup leaves what it doesn't know on record.
func TestIntegrationCleanupOfNewer(t *testing.T) {
	newHost(t)
	dir := t.TempDir()
	if err := os.WriteFile(hoststate.Path(dir), []byte(`{"device": "flannel.1", "chains": ["UVXLAN"]}`), 0o600); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		expectLines(t, cleanup(t, dir, false),
			"left manifest "+hoststate.Path(dir)+": chains is a newer version's, whose cleanup removes it", "nothing to remove")
	}
	s, err := hoststate.Load(dir)
	if err != nil || s.Device != "" || len(s.Unknown()) != 1 {
		t.Errorf("the manifest is %+v, %v", s, err)
	}
}

// Without a record, as with a mistyped state directory, nothing of anybody's is
// removed, and what there is is named.
func TestIntegrationCleanupUnrecorded(t *testing.T) {
	newHost(t)
	dir := filepath.Join(t.TempDir(), "mistyped")
	ip(t, "route add 172.7.22.0/24 via 192.168.9.22 proto 89")
	iptables(t, "-N FLANNEL-FWD")
	iptables(t, "-A FLANNEL-FWD -s 172.7.0.0/16 -j ACCEPT")
	iptables(t, "-A FORWARD -j FLANNEL-FWD")
	before := ip(t, "route") + iptables(t, "-S")
	const why = ": not on record in "
	lines := []string{
		"left route 172.7.22.0/24 via 192.168.9.22 dev eth0" + why + dir + "; -all removes it",
		"left iptables chain FLANNEL-FWD of table filter" + why + dir + "; -all removes it",
		"nothing to remove",
	}
	for _, dry := range []bool{true, false} {
		expectLines(t, cleanup(t, dir, dry), lines...)
	}
	if after := ip(t, "route") + iptables(t, "-S"); after != before {
		t.Errorf("it changed\n%s\ninto\n%s", before, after)
	}
	cleanupAll(t, dir, false)
	if after := ip(t, "route") + iptables(t, "-S"); strings.Contains(after, "172.7.") {
		t.Errorf("with -all there is left\n%s", after)
	}
}

// Once flanneld is back, its subnet file and its rules, which look like ours, stay.
func TestIntegrationCleanupAfterFlannel(t *testing.T) {
	newHost(t)
	path := filepath.Join(t.TempDir(), "subnet.env")
	file := subnetfile.File{Network: netip.MustParsePrefix("172.7.0.0/16"), Subnet: netip.MustParsePrefix("172.7.21.0/24"), MTU: 1450}
	write := func() time.Time {
		if err := file.Write(path); err != nil {
			t.Fatal(err)
		}
		info, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		return info.ModTime()
	}
	policy := firewall.Policy{Network: file.Network, Subnet: file.Subnet, Forward: true}
	for _, flannel := range []bool{true, false} {
		dir := t.TempDir()
		state := hoststate.State{
			SubnetFile: path, SubnetFileTime: write(), Firewall: true,
			Networks: []hoststate.Network{{Network: file.Network, Subnet: file.Subnet}},
		}
		if err := state.Save(dir); err != nil {
			t.Fatal(err)
		}
		putRules(t, policy)
		before := iptables(t, "-S")
		if flannel {
			for write().Equal(state.SubnetFileTime) { // the file system's clock ticks
				time.Sleep(time.Millisecond)
			}
		}
		text := cleanup(t, dir, false)
		if flannel != exists(path) || flannel != strings.Contains(text, "left subnet file "+path) || flannel != (iptables(t, "-S") == before) {
			t.Errorf("with flanneld back: %t, it said\n%s\nand left, of the file: %t, and\n%s", flannel, text, exists(path), iptables(t, "-S"))
		}
	}
}

// putRules puts a policy's rules on the host as a daemon does.
func putRules(t *testing.T, p firewall.Policy) {
	t.Helper()
	part := firewall.New(firewall.Config{Policy: p}).Part(p.Subnet, func() []string { return nil })
	part.Check(t.Context())
	if err := part.Repair(t.Context()); err != nil {
		t.Fatal(err)
	}
	if rules := iptables(t, "-S"); !strings.Contains(rules, "-s "+p.Network.String()) {
		t.Fatalf("the rules are\n%s", rules)
	}
}

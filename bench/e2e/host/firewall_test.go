package host_test

import (
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"uvxlan/bench/e2e"
)

// legacyIPTables is a folder whose iptables commands are those of the legacy
// variant.
func legacyIPTables(t *testing.T) string {
	t.Helper()
	multi, err := exec.LookPath("xtables-legacy-multi")
	if err != nil {
		t.Skipf("iptables has no legacy variant here: %v", err)
	}
	dir := t.TempDir()
	for _, name := range []string{"iptables", "ip6tables"} {
		for _, suffix := range []string{"", "-restore", "-save"} {
			if err := os.Symlink(multi, filepath.Join(dir, name+suffix)); err != nil {
				t.Fatal(err)
			}
		}
	}
	return dir
}

// A lock of iptables that somebody holds ends no start, also with -ip-masq: who
// holds it is named, and the rules come when it is free.
func TestIntegrationXTablesLockAtStart(t *testing.T) {
	w := e2e.NewWorld(t, "kb21", "kb22")
	kb22 := w.Host("kb22")
	e2e.Shell(t, kb22.Node, "iptables-legacy -P FORWARD DROP")
	path := filepath.Join(t.TempDir(), "xtables.lock")
	lock, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Close()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	w.Cluster.Args = []string{"-ip-masq", "-iptables-resync=1"}
	w.Cluster.Env = []string{"PATH=" + legacyIPTables(t) + ":" + os.Getenv("PATH"), "XTABLES_LOCKFILE=" + path}
	d := w.Start("kb22")[0]
	e2e.AwaitWords(t, d, "note", "the masquerading rules are not all there", "the lock of iptables, "+path+", is held by ")
	e2e.AwaitWords(t, d, "reason", "what the overlay forwards is dropped by the policy of chain FORWARD of iptables-legacy's table filter", "is held by ")
	if file := e2e.SubnetFile(t, d.SubnetFile()); file["FLANNEL_SUBNET"] == "" {
		t.Errorf("the subnet file is %v", file)
	}
	if err := lock.Close(); err != nil {
		t.Fatal(err)
	}
	w.Start("kb21")
	w.Mesh("kb21", "kb22")
	e2e.AwaitNoFault(t, d)
	if rules := e2e.Shell(t, kb22.Node, "iptables-legacy -t nat -S; iptables-legacy -S"); strings.Count(rules, "-j FLANNEL-") != 2 {
		t.Errorf("the rules are\n%s", rules)
	}
}

// Somebody's chain that rejects what the overlay forwards is named with what helps.
func TestIntegrationForeignRejectIsTold(t *testing.T) {
	w := e2e.NewWorld(t, "kb21", "kb22")
	d := w.Start("kb21", "kb22")[1]
	w.Mesh("kb21", "kb22")
	kb22 := w.Host("kb22")
	for _, c := range []struct {
		deny     string
		is, undo string
	}{
		{
			deny: `nft 'table inet zones { chain filter_forward { type filter hook forward priority filter + 10; policy accept;
				ct state established,related accept; iifname "c0" accept; reject with icmpx type admin-prohibited; }; }'`,
			is:   `is rejected by the rule "reject" in chain filter_forward of nftables' table inet zones`,
			undo: "nft delete table inet zones",
		},
		{
			deny: "iptables -I FORWARD -j REJECT --reject-with icmp-host-prohibited",
			is:   `is rejected by the rule "-j REJECT" in chain FORWARD of iptables' table filter`,
			undo: "iptables -D FORWARD -j REJECT --reject-with icmp-host-prohibited",
		},
		{
			deny: "iptables-legacy -A FORWARD -j DROP",
			is:   `is dropped by the rule "-j DROP" in chain FORWARD of iptables-legacy's table filter`,
			undo: "iptables-legacy -F FORWARD",
		},
	} {
		e2e.Shell(t, kb22.Node, c.deny)
		line := e2e.AwaitWords(t, d, "reason", c.is)
		if s := e2e.AskStatus(t, d); s.Ready {
			t.Errorf("ready, although %s", line)
		}
		remedy := line[strings.LastIndex(line, ": ")+2:]
		e2e.Shell(t, kb22.Node, remedy)
		e2e.AwaitNoFault(t, d)
		w.Mesh("kb21", "kb22")
		e2e.Shell(t, kb22.Node, c.undo)
	}
	e2e.AwaitNoFault(t, d)
}

// The address that the others know may be on another interface of the host.
func TestIntegrationPublicAddressOnLoopback(t *testing.T) {
	w := e2e.NewWorld(t, "kb21", "kb22")
	for i, name := range []string{"kb21", "kb22"} {
		h, own, other := w.Host(name), []string{"10.9.0.1", "10.9.0.2"}[i], []string{"10.9.0.2", "10.9.0.1"}[i]
		via := w.Host([]string{"kb22", "kb21"}[i]).Address.String()
		e2e.Shell(t, h.Node, "ip addr add "+own+"/32 dev lo && ip route add "+other+"/32 via "+via+" src "+own)
		d, err := w.Cluster.Start(t.Context(), h, "-iface", "eth0", "-public-ip", own)
		if err != nil {
			t.Fatal(err)
		}
		if err := d.Ready(w.Context()); err != nil {
			t.Fatal(err)
		}
		awaitLease(t, w, h, netip.MustParseAddr(own))
	}
	w.Mesh("kb21", "kb22")
}

// A narrow range of ports costs ports, not the start.
func TestIntegrationNarrowPortRange(t *testing.T) {
	w := e2e.NewWorld(t, "kb21", "kb22")
	for _, name := range []string{"kb21", "kb22"} {
		e2e.Shell(t, w.Host(name).Node, `sysctl -qw net.ipv4.ip_local_port_range="50000 50009"`)
	}
	d := w.Start("kb21", "kb22")[0]
	w.Mesh("kb21", "kb22")
	if log := e2e.LogOf(t, d); strings.Count(log, "net.ipv4.ip_local_port_range") != 1 {
		t.Errorf("the log is\n%s", log)
	}
}

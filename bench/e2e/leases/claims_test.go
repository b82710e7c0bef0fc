package leases_test

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"uvxlan/bench/cluster"
	"uvxlan/bench/e2e"
)

// start starts a daemon with more flags, and doesn't wait.
func start(w *e2e.World, host string, flags ...string) *cluster.Daemon {
	w.T.Helper()
	d, err := w.Cluster.Start(w.T.Context(), w.Host(host), flags...)
	if err != nil {
		w.T.Fatal(err)
	}
	return d
}

// awaitNote waits until uvxlan status has a note with the words.
func awaitNote(t *testing.T, d *cluster.Daemon, words ...string) {
	t.Helper()
	var notes []string
	for late := time.Now().Add(e2e.Patience); ; time.Sleep(50 * time.Millisecond) {
		if s, err := e2e.TryStatus(t.Context(), d); err == nil { // it may not be there yet
			notes = s.Notes
		}
		for _, n := range notes {
			if containsAll(n, words) {
				t.Logf("%s: %s", d.Host.Name, n)
				return
			}
		}
		if time.Now().After(late) {
			t.Fatalf("%s: no note with %q in %q", d.Host.Name, words, notes)
		}
	}
}

func containsAll(text string, words []string) bool {
	for _, w := range words {
		if !strings.Contains(text, w) {
			return false
		}
	}
	return true
}

// A daemon that starts without etcd from a lease that has run out might use another
// host's subnet: it waits, and says why, unless it is told otherwise.
func TestIntegrationExpiredStoredLease(t *testing.T) {
	w := e2e.NewWorld(t, "kb21")
	kb21 := w.Host("kb21")
	d := w.Start("kb21")[0]
	e2e.End(t, unix.SIGTERM, d)
	w.StopEtcd()
	stored := filepath.Join(d.StateDir(), "leases.json")
	text, err := os.ReadFile(stored)
	if err != nil {
		t.Fatal(err)
	}
	ago := time.Now().Add(-2 * time.Hour).UTC().Format(time.RFC3339)
	old := regexp.MustCompile(`"(as_of|renewed|expires)":"[^"]*"`).ReplaceAll(text, []byte(`"$1":"`+ago+`"`))
	if err := os.WriteFile(stored, old, 0o600); err != nil {
		t.Fatal(err)
	}
	d = start(w, "kb21", "-healthz-ip", "127.0.0.1", "-healthz-port", e2e.HealthPort)
	answer := e2e.AwaitAnswer(t, kb21, "/readyz", 503, "the stored lease on "+kb21.Subnet.String()+" ran out 2h", "may be another host's", "waiting for etcd")
	t.Logf("/readyz:\n%s", answer)
	e2e.End(t, unix.SIGTERM, d)

	d = start(w, "kb21", "-stored-lease-expired", "use")
	e2e.AwaitLine(t, d, time.Time{}, "starting from the leases that an earlier run stored")
	e2e.End(t, unix.SIGTERM, d)
	d = start(w, "kb21")
	e2e.AwaitLine(t, d, time.Time{}, "level=WARN", "ran out 2h")
	w.StartEtcd()
	if err := d.Ready(w.Context()); err != nil {
		t.Fatal(err)
	}
	if s := e2e.AskStatus(t, d); s.Lease.Subnet != kb21.Subnet || time.Until(s.Lease.Expires) < 23*time.Hour {
		t.Errorf("afterwards the status is %+v", s)
	}
}

// A host that comes back with another address has the same subnet and MAC: its own
// record says who it is.
func TestIntegrationRestartWithAnotherAddress(t *testing.T) {
	w := e2e.NewWorld(t, "kb21")
	useInstalledEtcd(w, e2e.VXLANConfig)
	kb21 := w.Host("kb21")
	d := w.Start("kb21")[0]
	before := entryOf(w, kb21.Subnet)
	e2e.End(t, unix.SIGTERM, d)
	e2e.Command(t, kb21.Node, "ip address add 192.168.14.121/24 dev eth0")
	if err := os.Remove(d.SubnetFile()); err != nil { // as after a boot
		t.Fatal(err)
	}
	d = start(w, "kb21", "-iface", "192.168.14.121")
	e2e.AwaitLine(t, d, time.Time{}, "the public address has changed", "public_ip=192.168.14.121", "before="+kb21.Address.String())
	if err := d.Ready(w.Context()); err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(before.value, kb21.Address.String())
	awaitEntry(w, kb21.Subnet, `{"PublicIP":"192.168.14.121`+rest)
}

// A clone has the address of another machine: both find each other out.
func TestIntegrationClone(t *testing.T) {
	w := e2e.NewWorld(t, "kb21", "kb22")
	kb21 := w.Host("kb21")
	first := w.Start("kb21")[0]
	clone := start(w, "kb22", "-iface", "eth0", "-public-ip", kb21.Address.String())
	e2e.AwaitLine(t, clone, time.Time{}, "level=WARN", "knows nothing of", "subnet="+kb21.Subnet.String(), "public_ip="+kb21.Address.String())
	for _, d := range []*cluster.Daemon{first, clone} {
		awaitNote(t, d, "another host claims subnet "+kb21.Subnet.String(), "clone", "remove "+d.StateDir()+"/leases.json")
	}
}

// What somebody writes by hand under a host's key is put right.
func TestIntegrationDamagedLease(t *testing.T) {
	w := e2e.NewWorld(t, "kb21", "kb22")
	useInstalledEtcd(w, e2e.VXLANConfig)
	daemons := w.Start("kb21", "kb22")
	w.Mesh("kb21", "kb22")
	own := w.Host("kb21").Subnet
	before := entryOf(w, own)
	const junk = `{"PublicIP":"192.168.14.`
	etcdctl(w, "put", keyOf(own), junk)
	awaitEntry(w, own, before.value)
	e2e.AwaitLine(t, daemons[0], time.Time{}, "own lease put back", "cause=damaged")
	if log := e2e.LogOf(t, daemons[1]); strings.Contains(log, "peer gone") {
		t.Errorf("its peer parted with it:\n%s", log)
	}

	e2e.End(t, unix.SIGTERM, daemons[0])
	etcdctl(w, "put", keyOf(own), junk)
	d := w.Start("kb21")[0]
	e2e.AwaitLine(t, d, time.Time{}, "own lease is damaged")
	awaitEntry(w, own, before.value)
	w.Mesh("kb21", "kb22")
}

// A daemon that runs tells that etcd has another configuration, and lists the hosts
// of another model.
func TestIntegrationConfigurationChanges(t *testing.T) {
	w := e2e.NewWorld(t, "kb21")
	useInstalledEtcd(w, e2e.VXLANConfig)
	d := w.Start("kb21")[0]
	etcdctl(w, "put", leaseKeys+"172.7.99.0-24", `{"PublicIP":"192.168.14.99","PublicIPv6":null,"BackendType":"host-gw"}`)
	awaitPeers(t, d, "172.7.99.0/24 192.168.14.99")
	if _, peers := peersOf(t, d); peers[0].Path != "none" || peers[0].Reason != `its backend is "host-gw", not "vxlan"` {
		t.Errorf("the peers are %+v", peers)
	}
	t.Log(e2e.Command(t, w.Host("kb21").Node, e2e.CommandBinary+" peers -control-socket "+d.ControlSocket()))
	w.Configure(strings.Replace(e2e.VXLANConfig, `"Type"`, `"VNI":7,"Type"`, 1))
	awaitNote(t, d, "the network configuration has changed", "Backend.VNI 7, here 1", "until it restarts")
}

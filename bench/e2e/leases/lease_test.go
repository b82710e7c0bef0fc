package leases_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"uvxlan/bench/e2e"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"uvxlan/bench/cluster"
	"uvxlan/bench/lab"
	"uvxlan/lease"
)

// A private etcd has the cluster's data and is reached by no daemon.
const privateEtcd = "http://127.0.0.1:2379"

const leaseKeys = "/coreos.com/network/subnets/"

// useInstalledEtcd puts the machine's etcd in the place of ours, empty but for
// the configuration.
func useInstalledEtcd(w *e2e.World, config string) {
	w.T.Helper()
	w.StopEtcd()
	w.Installed = true
	w.StartEtcd()
	w.Configure(config)
	w.T.Logf("etcd is %s", firstLine(e2e.Command(w.T, w.Cluster.Etcd.Node, "etcd --version")))
}

func firstLine(s string) string { return strings.SplitN(s, "\n", 2)[0] }

// inPrivate lets an operator change what etcd has while no daemon reaches it,
// and leaves etcd stopped.
func inPrivate(w *e2e.World, do func(etcdctl func(args ...string) string)) {
	w.T.Helper()
	w.StartInstalledEtcd(privateEtcd)
	do(func(args ...string) string { return etcdctlAt(w, privateEtcd, args...) })
	w.StopEtcd()
}

func etcdctl(w *e2e.World, args ...string) string {
	w.T.Helper()
	return etcdctlAt(w, w.Cluster.Endpoint, args...)
}

// etcdctlAt repeats the command until etcd is up.
func etcdctlAt(w *e2e.World, endpoint string, args ...string) string {
	w.T.Helper()
	for ctx := w.Context(); ; {
		out, err := w.Cluster.Etcd.Run(ctx, "env", append([]string{"ETCDCTL_API=3", "etcdctl", "--dial-timeout", "1s", "--endpoints", endpoint}, args...)...)
		if err == nil {
			return string(out)
		}
		if ctx.Err() != nil {
			w.T.Fatalf("etcdctl %q: %v: %s", args, err, out)
		}
	}
}

// entry is a lease as etcdctl shows it.
type entry struct{ value, etcdLease string }

func entryOf(w *e2e.World, subnet netip.Prefix) entry {
	w.T.Helper()
	var got struct {
		Kvs []struct {
			Value []byte
			Lease int64
		}
	}
	out := etcdctl(w, "get", "-w", "json", keyOf(subnet))
	if err := json.Unmarshal([]byte(out), &got); err != nil {
		w.T.Fatalf("%v in %s", err, out)
	}
	if len(got.Kvs) == 0 {
		return entry{}
	}
	return entry{string(got.Kvs[0].Value), strconv.FormatInt(got.Kvs[0].Lease, 16)}
}

func keyOf(subnet netip.Prefix) string {
	return leaseKeys + lease.Lease{Subnet: subnet}.Key()
}

// valueAt is what another host would write in a lease's place: its address and,
// if there is a device, the device's MAC.
func valueAt(value, ip string) string {
	for member, other := range map[string]string{"PublicIP": ip, "VtepMAC": macOf(ip)} {
		before, rest, found := strings.Cut(value, `"`+member+`":"`)
		if !found {
			continue
		}
		_, after, _ := strings.Cut(rest, `"`)
		value = before + `"` + member + `":"` + other + `"` + after
	}
	return value
}

// macOf is the MAC of the host at an address.
func macOf(ip string) string {
	b := netip.MustParseAddr(ip).As4()
	return net.HardwareAddr{0x0e, 0, b[0], b[1], b[2], b[3]}.String()
}

// awaitEntry waits until etcd has the value again.
func awaitEntry(w *e2e.World, subnet netip.Prefix, value string) entry {
	w.T.Helper()
	for late := time.Now().Add(e2e.Patience); ; {
		e := entryOf(w, subnet)
		if e.value == value {
			return e
		}
		if time.Now().After(late) {
			w.T.Fatalf("%s is %q, want %q", subnet, e.value, value)
		}
	}
}

// flows sends datagrams both ways, and returns a function that waits until some
// more have come, and for no loss.
func flows(w *e2e.World, a, b *lab.Container) (end func()) {
	w.T.Helper()
	both := []*e2e.Datagrams{w.StartDatagrams(a, b), w.StartDatagrams(b, a)}
	for _, d := range both {
		d.Await(100)
	}
	return func() {
		w.T.Helper()
		for _, d := range both {
			d.Await(1000)
			d.End()
		}
	}
}

// An operator deletes a lease, and revokes another's time to live: the hosts put
// the same leases back, and no packet is lost either way. A host whose lease is
// deleted while it is down has the same subnet and MAC afterwards.
func TestIntegrationLeasePutBack(t *testing.T) {
	w := e2e.NewWorld(t, "kb21", "kb22")
	useInstalledEtcd(w, e2e.VXLANConfig)
	daemons := w.Start("kb21", "kb22")
	w.Mesh("kb21", "kb22")
	kb21, kb22 := w.Host("kb21").Subnet, w.Host("kb22").Subnet
	first, second := entryOf(w, kb21), entryOf(w, kb22)
	endFlows := flows(w, w.Container("kb21"), w.Container("kb22"))
	t.Logf("etcdctl del %s: %s", keyOf(kb21), etcdctl(w, "del", keyOf(kb21)))
	if e := awaitEntry(w, kb21, first.value); e.etcdLease == first.etcdLease || e.etcdLease == "0" {
		t.Errorf("it was put back with the etcd lease %s, was %s", e.etcdLease, first.etcdLease)
	}
	e2e.AwaitLine(t, daemons[0], time.Time{}, "own lease put back", "subnet="+kb21.String(), "cause=removed")
	t.Logf("etcdctl lease revoke: %s", etcdctl(w, "lease", "revoke", second.etcdLease))
	if e := awaitEntry(w, kb22, second.value); e.etcdLease == second.etcdLease {
		t.Errorf("it was put back with the revoked etcd lease %s", e.etcdLease)
	}
	e2e.AwaitLine(t, daemons[1], time.Time{}, "own lease put back", "subnet="+kb22.String())
	endFlows()
	for _, d := range daemons {
		if strings.Contains(e2e.LogOf(t, d), "peer gone") {
			t.Errorf("%s parted with its peer", d.Host.Name)
		}
	}

	e2e.End(t, unix.SIGTERM, daemons[0])
	etcdctl(w, "del", keyOf(kb21))
	w.Start("kb21")
	w.Mesh("kb21", "kb22")
	awaitEntry(w, kb21, first.value)
}

// expectLost waits until a daemon has ended because another host has its subnet,
// and looks what is left.
func expectLost(t *testing.T, d *cluster.Daemon, holder string) {
	t.Helper()
	select {
	case <-d.Done():
	case <-time.After(e2e.Patience):
		t.Fatalf("it goes on:\n%s", e2e.LogOf(t, d))
	}
	lines := strings.Split(strings.TrimSpace(e2e.LogOf(t, d)), "\n")
	last := lines[len(lines)-1]
	t.Log(last)
	if code := d.ProcessState.ExitCode(); code != 1 || !strings.HasPrefix(last, "uvxland: ") || !strings.Contains(last, d.Host.Subnet.String()+" is held by "+holder) {
		t.Errorf("it ended with %d: %s", code, last)
	}
	if _, err := d.Host.Netlink().LinkByName("flannel.1"); !errors.As(err, new(netlink.LinkNotFoundError)) {
		t.Errorf("the device is left: %v", err)
	}
	if routes := e2e.OurRoutes(t, d.Host); len(routes) > 0 {
		t.Errorf("routes are left: %q", routes)
	}
	if _, err := os.Lstat(d.SubnetFile()); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the subnet file is left: %v", err)
	}
}

// Another host's entry under our key ends the daemon, which leaves nothing that
// would use the subnet. The next start takes another one.
func TestIntegrationLeaseTaken(t *testing.T) {
	const thief = "192.168.14.66"
	w := e2e.NewWorld(t, "kb21", "kb22")
	useInstalledEtcd(w, e2e.VXLANConfig)
	for _, m := range []e2e.Model{e2e.Models()[0], e2e.Models()[2], e2e.Models()[3]} { // each has another way to send
		w.Configure(m.Config)
		daemons := w.Start("kb21", "kb22")
		w.Mesh("kb21", "kb22")
		own := w.Host("kb21").Subnet
		etcdctl(w, "put", keyOf(own), valueAt(entryOf(w, own).value, thief))
		expectLost(t, daemons[0], thief)
		d := w.Start("kb21")[0]
		text, err := os.ReadFile(d.SubnetFile())
		if err != nil || strings.Contains(string(text), strings.TrimSuffix(own.String(), "0/24")) {
			t.Errorf("%s: the next start has\n%s%v", m.Name, text, err)
		}
		e2e.End(t, unix.SIGTERM, d, daemons[1])
		etcdctl(w, "del", "--prefix", leaseKeys)
	}
}

// A host that doesn't reach etcd loses its lease meanwhile: it puts it back, or
// ends if another host has it.
func TestIntegrationLeaseEndsWhileCutOff(t *testing.T) {
	const thief = "192.168.14.66"
	w := e2e.NewWorld(t, "kb21", "kb22")
	useInstalledEtcd(w, e2e.VXLANConfig)
	d := w.Start("kb21", "kb22")[1]
	w.Mesh("kb21", "kb22")
	kb22 := w.Host("kb22")
	before := entryOf(w, kb22.Subnet)
	wall := func(verb string) {
		e2e.Command(t, kb22.Node, "iptables "+verb+" OUTPUT -p tcp --dport 2379 -j REJECT --reject-with tcp-reset")
		e2e.Command(t, kb22.Node, "ss -HKtn dport = 2379") // so that it is noticed at once
	}
	for _, taken := range []bool{false, true} {
		begin := time.Now()
		e2e.AwaitStatus(t, d, "it follows the leases", func(s e2e.Status) bool { return s.Etcd.Up && s.Watch.Alive })
		wall("-I")
		e2e.AwaitStatus(t, d, "it is cut off", func(s e2e.Status) bool { return !s.Etcd.Up })
		etcdctl(w, "lease", "revoke", entryOf(w, kb22.Subnet).etcdLease)
		if taken {
			etcdctl(w, "put", keyOf(kb22.Subnet), valueAt(before.value, thief))
		}
		wall("-D")
		if taken {
			expectLost(t, d, thief)
			continue
		}
		t.Log(e2e.AwaitLine(t, d, begin, "own lease put back", "cause=removed"))
		awaitEntry(w, kb22.Subnet, before.value)
		w.Mesh("kb21", "kb22")
	}
}

// peersOf is what uvxlan peers -o json prints, by "subnet host".
func peersOf(t *testing.T, d *cluster.Daemon) (names []string, peers []e2e.Peer) {
	t.Helper()
	peers = e2e.AskPeers(t, d)
	for _, p := range peers {
		names = append(names, p.Subnet.String()+" "+p.PublicIP.String())
	}
	return names, peers
}

// awaitPeers waits until a daemon has the wanted peers.
func awaitPeers(t *testing.T, d *cluster.Daemon, want ...string) {
	t.Helper()
	for late := time.Now().Add(e2e.Patience); ; time.Sleep(20 * time.Millisecond) {
		got, _ := peersOf(t, d)
		if slices.Equal(got, want) {
			return
		}
		if time.Now().After(late) {
			t.Fatalf("the peers are %q, want %q", got, want)
		}
	}
}

// awaitStored waits until a daemon has stored leases, by their keys: one that is
// killed has lost what came in the last second.
func awaitStored(t *testing.T, d *cluster.Daemon, keys ...string) {
	t.Helper()
	for late := time.Now().Add(e2e.Patience); ; time.Sleep(20 * time.Millisecond) {
		text, err := os.ReadFile(storedLeases(d))
		if err == nil && !slices.ContainsFunc(keys, func(key string) bool { return !bytes.Contains(text, []byte(key)) }) {
			return
		}
		if time.Now().After(late) {
			t.Fatalf("%q aren't stored: %s, %v", keys, text, err)
		}
	}
}

func storedLeases(d *cluster.Daemon) string { return filepath.Join(d.StateDir(), "leases.json") }

// A daemon that starts while etcd is away goes on with the leases it had, says
// how old they are, and makes them right when etcd is back.
func TestIntegrationRestartWithoutEtcd(t *testing.T) {
	for _, m := range []e2e.Model{e2e.Models()[0], e2e.Models()[3]} {
		t.Run(m.Name, func(t *testing.T) {
			w := e2e.NewWorld(t, "kb21", "kb22")
			useInstalledEtcd(w, m.Config)
			kb21, kb22 := w.Host("kb21"), w.Host("kb22")
			first := w.StartHealthy("kb21")
			w.Start("kb22")
			w.Mesh("kb21", "kb22")
			own, other := entryOf(w, kb21.Subnet), entryOf(w, kb22.Subnet)
			guest := func(ip string) string { return valueAt(other.value, ip) }
			peer22 := kb22.Subnet.String() + " " + kb22.Address.String()
			etcdctl(w, "put", leaseKeys+"172.7.98.0-24", guest("192.168.14.98"))
			etcdctl(w, "put", leaseKeys+"172.7.99.0-24", guest("192.168.14.99"))
			awaitPeers(t, first, peer22, "172.7.98.0/24 192.168.14.98", "172.7.99.0/24 192.168.14.99")
			awaitStored(t, first, "172.7.98.0-24", "172.7.99.0-24")
			w.StopEtcd()
			stopped := time.Now()
			d := first
			signals := []unix.Signal{unix.SIGKILL, unix.SIGTERM}
			if !m.Device {
				signals = signals[:1]
			}
			for _, signal := range signals {
				e2e.End(t, signal, d)
				begin := time.Now()
				d = w.StartHealthy("kb21")
				if err := d.Ready(w.Context()); err != nil {
					t.Fatal(err)
				}
				t.Logf("after %s it is ready in %s without etcd", signal, time.Since(begin).Round(time.Millisecond))
				w.Mesh("kb21", "kb22")
				expectStale(t, d, stopped, peer22, "172.7.98.0/24 192.168.14.98", "172.7.99.0/24 192.168.14.99")
			}

			if !m.Device {
				return // what follows takes the same way in each model
			}
			inPrivate(w, func(etcdctl func(...string) string) {
				etcdctl("del", leaseKeys+"172.7.98.0-24")
				etcdctl("put", leaseKeys+"172.7.99.0-24", guest("192.168.14.97"))
				etcdctl("put", leaseKeys+"172.7.100.0-24", guest("192.168.14.100"))
				etcdctl("del", keyOf(kb21.Subnet))
			})
			endFlows := flows(w, w.Container("kb21"), w.Container("kb22"))
			w.StartEtcd()
			awaitPeers(t, d, peer22, "172.7.99.0/24 192.168.14.97", "172.7.100.0/24 192.168.14.100")
			awaitEntry(w, kb21.Subnet, own.value)
			e2e.AwaitAnswer(t, kb21, "/readyz", 200, "uvxland is ready\n", "watch: alive for")
			e2e.AwaitAnswer(t, kb21, "/metrics", 200, "\nuvxlan_peers_stale 0\n")
			if s := e2e.AskStatus(t, d); len(s.Notes) > 0 || s.Watch.Stored || !s.Watch.AsOf.IsZero() || time.Until(s.Lease.Expires) < 23*time.Hour {
				t.Errorf("afterwards the status is %+v", s)
			}
			endFlows()
		})
	}
}

// What an earlier run has stored is not the last word: a host whose subnet
// another one has by now ends as soon as etcd says so, and no later start
// believes what is stored. Neither does one that finds the file damaged.
func TestIntegrationRestartWithoutEtcdAndLease(t *testing.T) {
	w := e2e.NewWorld(t, "kb21")
	useInstalledEtcd(w, e2e.VXLANConfig)
	kb21 := w.Host("kb21")
	d := w.Start("kb21")[0]
	own := entryOf(w, kb21.Subnet)
	w.StopEtcd()
	e2e.End(t, unix.SIGTERM, d)
	d = w.Start("kb21")[0]
	inPrivate(w, func(etcdctl func(...string) string) {
		etcdctl("put", keyOf(kb21.Subnet), valueAt(own.value, "192.168.14.66"))
	})
	w.StartEtcd()
	expectLost(t, d, "192.168.14.66")
	var kept struct{ Own json.RawMessage }
	text, err := os.ReadFile(storedLeases(d))
	if err == nil {
		err = json.Unmarshal(text, &kept)
	}
	if err != nil || kept.Own != nil {
		t.Errorf("a later start would have %s, %v", text, err)
	}
	if err := os.WriteFile(storedLeases(d), []byte(`{"version":1,`), 0o600); err != nil {
		t.Fatal(err)
	}
	d = w.Start("kb21")[0]
	t.Log(e2e.AwaitLine(t, d, time.Time{}, "level=WARN", "what an earlier run has stored can't be used"))
}

// expectStale expects a daemon to tell that its peers are old.
func expectStale(t *testing.T, d *cluster.Daemon, since time.Time, want ...string) {
	t.Helper()
	text := e2e.AwaitAnswer(t, d.Host, "/readyz", 200, "uvxland is ready\n", "note: etcd doesn't answer: packets flow by the leases as of ", " ago, stored by an earlier run\n", "etcd: down for")
	t.Logf("/readyz:\n%s", text)
	e2e.AwaitAnswer(t, d.Host, "/metrics", 200, "\nuvxlan_peers_stale 1\n", "\nuvxlan_peers_as_of_timestamp_seconds ", "\nuvxlan_ready 1\n", "\nuvxlan_etcd_up 0\n")
	s := e2e.AskStatus(t, d)
	if age := s.Now.Sub(s.Watch.AsOf); !s.Watch.Stored || s.Watch.Alive || age < s.Now.Sub(since) || age > s.Now.Sub(since)+e2e.Patience {
		t.Errorf("the leases are %s old, %s without etcd: %+v", age, s.Now.Sub(since), s.Watch)
	}
	names, peers := peersOf(t, d)
	if !slices.Equal(names, want) || !peers[0].AsOf.Equal(s.Watch.AsOf) {
		t.Errorf("the peers are %+v", peers)
	}
	table := e2e.Command(t, d.Host.Node, e2e.CommandBinary+" peers -control-socket "+d.ControlSocket())
	t.Logf("uvxlan status and peers:\n%s%s", e2e.Command(t, d.Host.Node, e2e.CommandBinary+" status -control-socket "+d.ControlSocket()), table)
	if !strings.Contains(table, "stale: leases as of ") {
		t.Errorf("the table doesn't say how old it is:\n%s", table)
	}
	e2e.AwaitLine(t, d, time.Time{}, "level=WARN", "starting from the leases that an earlier run stored", "peers="+strconv.Itoa(len(want)))
}

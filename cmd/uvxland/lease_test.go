package main

import (
	"encoding/json"
	"errors"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"uvxlan/bench/cluster"
	"uvxlan/bench/iperf"
	"uvxlan/bench/lab"
	"uvxlan/cmd/internal/control"
	"uvxlan/cmd/internal/leasefile"
	"uvxlan/lease"
)

// A private etcd has the cluster's data and is reached by no daemon.
const privateEtcd = "http://127.0.0.1:2379"

const leaseKeys = "/coreos.com/network/subnets/"

// useInstalledEtcd puts the machine's etcd in the place of ours, empty but for
// the configuration.
func (w *world) useInstalledEtcd(config string) {
	w.t.Helper()
	w.stopEtcd()
	w.installed = true
	w.startEtcd()
	w.configure(config)
	w.t.Logf("etcd is %s", firstLine(command(w.t, w.cluster.Etcd.Node, "etcd --version")))
}

func firstLine(s string) string { return strings.SplitN(s, "\n", 2)[0] }

// startInstalledEtcd starts the machine's etcd at one address alone.
func (w *world) startInstalledEtcd(endpoint string) {
	w.t.Helper()
	const peer = "http://127.0.0.1:2380"
	w.etcd = w.cluster.Etcd.Command(w.t.Context(), "etcd", "--name", "test", "--data-dir", filepath.Join(w.dir, "etcd-installed"),
		"--listen-client-urls", endpoint, "--advertise-client-urls", endpoint,
		"--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer, "--initial-cluster", "test="+peer,
		"--heartbeat-interval", "10", "--election-timeout", "100", "--logger", "zap", "--log-level", "error")
	if err := w.etcd.Start(); err != nil {
		w.t.Fatal(err)
	}
}

// inPrivate lets an operator change what etcd has while no daemon reaches it,
// and leaves etcd stopped.
func (w *world) inPrivate(do func(etcdctl func(args ...string) string)) {
	w.t.Helper()
	w.startInstalledEtcd(privateEtcd)
	do(func(args ...string) string { return w.etcdctlAt(privateEtcd, args...) })
	w.stopEtcd()
}

func (w *world) etcdctl(args ...string) string {
	w.t.Helper()
	return w.etcdctlAt(w.cluster.Endpoint, args...)
}

// etcdctlAt repeats the command until etcd is up.
func (w *world) etcdctlAt(endpoint string, args ...string) string {
	w.t.Helper()
	for ctx := w.context(); ; {
		out, err := w.cluster.Etcd.Run(ctx, "env", append([]string{"ETCDCTL_API=3", "etcdctl", "--dial-timeout", "1s", "--endpoints", endpoint}, args...)...)
		if err == nil {
			return string(out)
		}
		if ctx.Err() != nil {
			w.t.Fatalf("etcdctl %q: %v: %s", args, err, out)
		}
	}
}

// entry is a lease as etcdctl shows it.
type entry struct{ value, etcdLease string }

func (w *world) entry(subnet netip.Prefix) entry {
	w.t.Helper()
	var got struct {
		Kvs []struct {
			Value []byte
			Lease int64
		}
	}
	out := w.etcdctl("get", "-w", "json", keyOf(subnet))
	if err := json.Unmarshal([]byte(out), &got); err != nil {
		w.t.Fatalf("%v in %s", err, out)
	}
	if len(got.Kvs) == 0 {
		return entry{}
	}
	return entry{string(got.Kvs[0].Value), strconv.FormatInt(got.Kvs[0].Lease, 16)}
}

func keyOf(subnet netip.Prefix) string {
	return leaseKeys + lease.Lease{Subnet: subnet}.Key()
}

// valueAt is a lease's value with another host's address.
func valueAt(value, ip string) string {
	before, rest, _ := strings.Cut(value, `"PublicIP":"`)
	_, after, _ := strings.Cut(rest, `"`)
	return before + `"PublicIP":"` + ip + `"` + after
}

// awaitEntry waits until etcd has the value again.
func (w *world) awaitEntry(subnet netip.Prefix, value string) entry {
	w.t.Helper()
	for late := time.Now().Add(patience); ; {
		e := w.entry(subnet)
		if e.value == value {
			return e
		}
		if time.Now().After(late) {
			w.t.Fatalf("%s is %q, want %q", subnet, e.value, value)
		}
	}
}

// flows sends datagrams both ways for some time, and returns a function that
// waits for the end and for no loss.
func flows(t *testing.T, a, b *lab.Container, length time.Duration) func() {
	t.Helper()
	type outcome struct {
		name string
		iperf.Result
		err error
	}
	done := make(chan outcome, 2)
	for _, way := range [][2]*lab.Container{{a, b}, {b, a}} {
		go func() {
			r, err := iperf.Test{
				Server: way[1].Node, Client: way[0].Node, To: way[1].Address, Duration: length, UDP: true, Bandwidth: 20e6, Length: 1200,
			}.Run(t.Context())
			done <- outcome{way[0].Name + " -> " + way[1].Name, r, err}
		}()
	}
	return func() {
		t.Helper()
		for range 2 {
			o := <-done
			t.Logf("%s: %d of %d datagrams were lost, %v", o.name, o.Lost, o.Packets, o.err)
			if o.err != nil || o.Lost != 0 || o.Packets == 0 {
				t.Errorf("%s: %d of %d datagrams were lost, %v", o.name, o.Lost, o.Packets, o.err)
			}
		}
	}
}

// An operator deletes a lease, and revokes another's time to live: the hosts put
// the same leases back, and no packet is lost either way. A host whose lease is
// deleted while it is down has the same subnet and MAC afterwards.
func TestIntegrationLeasePutBack(t *testing.T) {
	w := newWorld(t, "kb21", "kb22")
	w.useInstalledEtcd(vxlanConfig)
	daemons := w.start("kb21", "kb22")
	w.mesh("kb21", "kb22")
	kb21, kb22 := w.Host("kb21").Subnet, w.Host("kb22").Subnet
	first, second := w.entry(kb21), w.entry(kb22)
	wait := flows(t, w.container("kb21"), w.container("kb22"), 5*time.Second)
	time.Sleep(time.Second) // traffic before it
	t.Logf("etcdctl del %s: %s", keyOf(kb21), w.etcdctl("del", keyOf(kb21)))
	if e := w.awaitEntry(kb21, first.value); e.etcdLease == first.etcdLease || e.etcdLease == "0" {
		t.Errorf("it was put back with the etcd lease %s, was %s", e.etcdLease, first.etcdLease)
	}
	awaitLine(t, daemons[0], time.Time{}, "own lease put back", "subnet="+kb21.String(), "cause=removed")
	t.Logf("etcdctl lease revoke: %s", w.etcdctl("lease", "revoke", second.etcdLease))
	if e := w.awaitEntry(kb22, second.value); e.etcdLease == second.etcdLease {
		t.Errorf("it was put back with the revoked etcd lease %s", e.etcdLease)
	}
	awaitLine(t, daemons[1], time.Time{}, "own lease put back", "subnet="+kb22.String())
	wait()
	for _, d := range daemons {
		if strings.Contains(logOf(t, d), "peer gone") {
			t.Errorf("%s parted with its peer", d.Host.Name)
		}
	}

	end(t, unix.SIGTERM, daemons[0])
	w.etcdctl("del", keyOf(kb21))
	w.start("kb21")
	w.mesh("kb21", "kb22")
	w.awaitEntry(kb21, first.value)
}

// expectLost waits until a daemon has ended because another host has its subnet,
// and looks what is left.
func expectLost(t *testing.T, d *cluster.Daemon, holder string) {
	t.Helper()
	select {
	case <-d.Done():
	case <-time.After(patience):
		t.Fatalf("it goes on:\n%s", logOf(t, d))
	}
	lines := strings.Split(strings.TrimSpace(logOf(t, d)), "\n")
	last := lines[len(lines)-1]
	t.Log(last)
	if code := d.ProcessState.ExitCode(); code != 1 || !strings.HasPrefix(last, "uvxland: ") || !strings.Contains(last, d.Host.Subnet.String()+" is held by "+holder) {
		t.Errorf("it ended with %d: %s", code, last)
	}
	if _, err := d.Host.Netlink().LinkByName("flannel.1"); !errors.As(err, new(netlink.LinkNotFoundError)) {
		t.Errorf("the device is left: %v", err)
	}
	if routes := ourRoutes(t, d.Host); len(routes) > 0 {
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
	w := newWorld(t, "kb21", "kb22")
	w.useInstalledEtcd(vxlanConfig)
	for _, m := range []model{models()[0], models()[2], models()[3]} { // each has another way to send
		w.configure(m.config)
		daemons := w.start("kb21", "kb22")
		w.mesh("kb21", "kb22")
		own := w.Host("kb21").Subnet
		w.etcdctl("put", keyOf(own), valueAt(w.entry(own).value, thief))
		expectLost(t, daemons[0], thief)
		d := w.start("kb21")[0]
		text, err := os.ReadFile(d.SubnetFile())
		if err != nil || strings.Contains(string(text), strings.TrimSuffix(own.String(), "0/24")) {
			t.Errorf("%s: the next start has\n%s%v", m.name, text, err)
		}
		end(t, unix.SIGTERM, d, daemons[1])
		w.etcdctl("del", "--prefix", leaseKeys)
	}
}

// A host that doesn't reach etcd loses its lease meanwhile: it puts it back, or
// ends if another host has it.
func TestIntegrationLeaseEndsWhileCutOff(t *testing.T) {
	const thief = "192.168.14.66"
	w := newWorld(t, "kb21", "kb22")
	w.useInstalledEtcd(vxlanConfig)
	d := w.start("kb21", "kb22")[1]
	w.mesh("kb21", "kb22")
	kb22 := w.Host("kb22")
	before := w.entry(kb22.Subnet)
	wall := func(verb string) {
		command(t, kb22.Node, "iptables "+verb+" OUTPUT -p tcp --dport 2379 -j REJECT --reject-with tcp-reset")
	}
	for _, taken := range []bool{false, true} {
		begin := time.Now()
		wall("-I")
		awaitLine(t, d, begin, "waiting for the lease registry")
		w.etcdctl("lease", "revoke", w.entry(kb22.Subnet).etcdLease)
		if taken {
			w.etcdctl("put", keyOf(kb22.Subnet), valueAt(before.value, thief))
		}
		wall("-D")
		if taken {
			expectLost(t, d, thief)
			continue
		}
		t.Log(awaitLine(t, d, begin, "own lease put back", "cause=removed"))
		w.awaitEntry(kb22.Subnet, before.value)
		w.mesh("kb21", "kb22")
	}
}

// peersOf is what uvxlan peers -o json prints, by "subnet host".
func peersOf(t *testing.T, d *cluster.Daemon) (names []string, peers []control.Peer) {
	t.Helper()
	out := command(t, d.Host.Node, commandBinary+" peers -o json -control-socket "+d.ControlSocket())
	if err := json.Unmarshal([]byte(out), &peers); err != nil {
		t.Fatal(err)
	}
	for _, p := range peers {
		names = append(names, p.Subnet.String()+" "+p.PublicIP.String())
	}
	return names, peers
}

// awaitPeers waits until a daemon has the wanted peers.
func awaitPeers(t *testing.T, d *cluster.Daemon, want ...string) {
	t.Helper()
	for late := time.Now().Add(patience); ; time.Sleep(20 * time.Millisecond) {
		got, _ := peersOf(t, d)
		if slices.Equal(got, want) {
			return
		}
		if time.Now().After(late) {
			t.Fatalf("the peers are %q, want %q", got, want)
		}
	}
}

// A daemon that starts while etcd is away goes on with the leases it had, says
// how old they are, and makes them right when etcd is back.
func TestIntegrationRestartWithoutEtcd(t *testing.T) {
	for _, m := range []model{models()[0], models()[3]} {
		t.Run(m.name, func(t *testing.T) {
			w := newWorld(t, "kb21", "kb22")
			w.useInstalledEtcd(m.config)
			kb21, kb22 := w.Host("kb21"), w.Host("kb22")
			first := w.startHealthy("kb21")
			w.start("kb22")
			w.mesh("kb21", "kb22")
			own, other := w.entry(kb21.Subnet), w.entry(kb22.Subnet)
			guest := func(ip string) string { return valueAt(other.value, ip) }
			peer22 := kb22.Subnet.String() + " " + kb22.Address.String()
			w.etcdctl("put", leaseKeys+"172.7.98.0-24", guest("192.168.14.98"))
			w.etcdctl("put", leaseKeys+"172.7.99.0-24", guest("192.168.14.99"))
			awaitPeers(t, first, peer22, "172.7.98.0/24 192.168.14.98", "172.7.99.0/24 192.168.14.99")
			time.Sleep(1500 * time.Millisecond) // a killed daemon has stored what is older than a second
			w.stopEtcd()
			stopped := time.Now()
			d := first
			signals := []unix.Signal{unix.SIGKILL, unix.SIGTERM}
			if !m.device {
				signals = signals[:1]
			}
			for _, signal := range signals {
				end(t, signal, d)
				begin := time.Now()
				d = w.startHealthy("kb21")
				if err := d.Ready(w.context()); err != nil {
					t.Fatal(err)
				}
				t.Logf("after %s it is ready in %s without etcd", signal, time.Since(begin).Round(time.Millisecond))
				w.mesh("kb21", "kb22")
				expectStale(t, d, stopped, peer22, "172.7.98.0/24 192.168.14.98", "172.7.99.0/24 192.168.14.99")
			}

			if !m.device {
				return // what follows takes the same way in each model
			}
			w.inPrivate(func(etcdctl func(...string) string) {
				etcdctl("del", leaseKeys+"172.7.98.0-24")
				etcdctl("put", leaseKeys+"172.7.99.0-24", guest("192.168.14.97"))
				etcdctl("put", leaseKeys+"172.7.100.0-24", guest("192.168.14.100"))
				etcdctl("del", keyOf(kb21.Subnet))
			})
			wait := flows(t, w.container("kb21"), w.container("kb22"), 6*time.Second)
			w.startEtcd()
			awaitPeers(t, d, peer22, "172.7.99.0/24 192.168.14.97", "172.7.100.0/24 192.168.14.100")
			w.awaitEntry(kb21.Subnet, own.value)
			awaitAnswer(t, kb21, "/readyz", 200, "uvxland is ready\n", "watch: alive for")
			awaitAnswer(t, kb21, "/metrics", 200, "\nuvxlan_peers_stale 0\n")
			if s := askStatus(t, d); len(s.Notes) > 0 || s.Watch.Stored || !s.Watch.AsOf.IsZero() || time.Until(s.Lease.Expires) < 23*time.Hour {
				t.Errorf("afterwards the status is %+v", s)
			}
			wait()
		})
	}
}

// What an earlier run has stored is not the last word: a host whose subnet
// another one has by now ends as soon as etcd says so, and no later start
// believes what is stored. Neither does one that finds the file damaged.
func TestIntegrationRestartWithoutEtcdAndLease(t *testing.T) {
	w := newWorld(t, "kb21")
	w.useInstalledEtcd(vxlanConfig)
	kb21 := w.Host("kb21")
	d := w.start("kb21")[0]
	own := w.entry(kb21.Subnet)
	w.stopEtcd()
	end(t, unix.SIGTERM, d)
	d = w.start("kb21")[0]
	w.inPrivate(func(etcdctl func(...string) string) {
		etcdctl("put", keyOf(kb21.Subnet), valueAt(own.value, "192.168.14.66"))
	})
	w.startEtcd()
	expectLost(t, d, "192.168.14.66")
	if s, err := (leasefile.Store{Dir: d.StateDir(), Prefix: "/coreos.com/network"}).Load(); err != nil || s.Own.Subnet.IsValid() {
		t.Errorf("a later start would have %+v, %v", s, err)
	}
	if err := os.WriteFile(leasefile.Path(d.StateDir()), []byte(`{"version":1,`), 0o600); err != nil {
		t.Fatal(err)
	}
	d = w.start("kb21")[0]
	t.Log(awaitLine(t, d, time.Time{}, "level=WARN", "what an earlier run has stored can't be used"))
}

// expectStale expects a daemon to tell that its peers are old.
func expectStale(t *testing.T, d *cluster.Daemon, since time.Time, want ...string) {
	t.Helper()
	text := awaitAnswer(t, d.Host, "/readyz", 200, "uvxland is ready\n", "note: etcd doesn't answer: packets flow by the leases as of ", " ago, stored by an earlier run\n", "etcd: down for")
	t.Logf("/readyz:\n%s", text)
	awaitAnswer(t, d.Host, "/metrics", 200, "\nuvxlan_peers_stale 1\n", "\nuvxlan_peers_as_of_seconds ", "\nuvxlan_ready 1\n", "\nuvxlan_etcd_up 0\n")
	s := askStatus(t, d)
	if age := s.Now.Sub(s.Watch.AsOf); !s.Watch.Stored || s.Watch.Alive || age < s.Now.Sub(since) || age > s.Now.Sub(since)+patience {
		t.Errorf("the leases are %s old, %s without etcd: %+v", age, s.Now.Sub(since), s.Watch)
	}
	names, peers := peersOf(t, d)
	if !slices.Equal(names, want) || !peers[0].AsOf.Equal(s.Watch.AsOf) {
		t.Errorf("the peers are %+v", peers)
	}
	table := command(t, d.Host.Node, commandBinary+" peers -control-socket "+d.ControlSocket())
	t.Logf("uvxlan status and peers:\n%s%s", command(t, d.Host.Node, commandBinary+" status -control-socket "+d.ControlSocket()), table)
	if !strings.Contains(table, "stale: leases as of ") {
		t.Errorf("the table doesn't say how old it is:\n%s", table)
	}
	awaitLine(t, d, time.Time{}, "level=WARN", "starting from the leases that an earlier run stored", "peers="+strconv.Itoa(len(want)))
}

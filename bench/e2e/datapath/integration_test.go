package datapath_test

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"strings"
	"testing"
	"time"

	"uvxlan/bench/e2e"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"uvxlan/bench/cluster"
	"uvxlan/bench/lab"
)

func TestIntegrationThreeHosts(t *testing.T) {
	w := e2e.NewWorld(t)
	daemons := w.Start("kb21", "kb22", "kb31")
	w.Mesh("kb21", "kb22", "kb31")
	w.NoLoss()

	file := e2e.SubnetFile(t, daemons[0].SubnetFile())
	want := map[string]string{"FLANNEL_NETWORK": "172.7.0.0/16", "FLANNEL_SUBNET": "172.7.21.1/24", "FLANNEL_MTU": "1450", "FLANNEL_IPMASQ": "false"}
	if !maps.Equal(file, want) {
		t.Errorf("the subnet file says %v, want %v", file, want)
	}
	from := w.Container("kb21")
	for _, to := range []*lab.Container{w.Container("kb22"), w.Container("kb31")} {
		w.SendDatagrams(from.Node, to.Node, to.Address)
		w.SendDatagrams(to.Node, from.Node, from.Address)
	}
	e2e.Transfer(t, from.Node, w.Container("kb22"), e2e.Gigabyte/4)
	e2e.Transfer(t, w.Container("kb31").Node, from, e2e.Gigabyte/8)
	// A host's own traffic to a container takes the VTEP's address.
	e2e.Transfer(t, w.Host("kb31").Node, w.Container("kb22"), 1<<20)
}

// Stop and start: nothing is left, and the next run has the same lease.
func TestIntegrationStopLeavesNothing(t *testing.T) {
	w := e2e.NewWorld(t, "kb21", "kb22")
	w.Start("kb22")
	before := networkState(t, w.Host("kb21"))
	for _, signal := range []unix.Signal{unix.SIGTERM, unix.SIGKILL, unix.SIGTERM} {
		d := w.Start("kb21")[0]
		w.Mesh("kb21", "kb22")
		if err := d.Process.Signal(signal); err != nil {
			t.Fatal(err)
		}
		if err := d.Wait(); signal == unix.SIGTERM && err != nil {
			t.Errorf("after SIGTERM: %v", err)
		}
		after := networkState(t, w.Host("kb21"))
		for ctx := w.Context(); signal == unix.SIGKILL && after != before && ctx.Err() == nil; {
			after = networkState(t, w.Host("kb21")) // the kernel is at it
		}
		if after != before {
			t.Errorf("left after %s:\n%s\nbefore:\n%s", signal, after, before)
		}
	}
	leases, _, err := w.Registry().List(w.Context())
	if err != nil || len(leases) != 2 {
		t.Fatalf("leases after three runs: %v, %v", leases, err)
	}
}

// networkState is every interface by name, and every IPv4 address and route.
// What the kernel settles by itself after a lab is made, such as link states
// and IPv6 addresses, is left out.
func networkState(t *testing.T, h *lab.Host) string {
	t.Helper()
	links, err := h.Netlink().LinkList()
	if err != nil {
		t.Fatal(err)
	}
	var state strings.Builder
	for _, l := range links {
		fmt.Fprintln(&state, l.Type(), l.Attrs().Name)
	}
	for _, args := range [][]string{{"-4", "-o", "addr"}, {"-4", "route", "show", "table", "all"}} {
		out, err := h.Run(t.Context(), "ip", args...)
		if err != nil {
			t.Fatal(err)
		}
		state.Write(out)
	}
	return state.String()
}

// Packets flow by the last table while etcd is away, for as long as UVXLAN_OUTAGE
// says once the daemons know of it.
func TestIntegrationEtcdOutage(t *testing.T) {
	outage := 5 * time.Second
	if length, err := time.ParseDuration(os.Getenv("UVXLAN_OUTAGE")); err == nil {
		outage = length
	}
	w := e2e.NewWorld(t, "kb21", "kb22")
	daemons := w.Start("kb21", "kb22")
	w.Mesh("kb21", "kb22")
	stream := w.StartDatagrams(w.Container("kb21"), w.Container("kb22"))
	stream.Await(1000) // before the outage
	w.StopEtcd()
	for _, d := range daemons {
		e2e.AwaitStatus(t, d, "etcd is away", func(s e2e.Status) bool { return !s.Etcd.Up && !s.Watch.Alive })
	}
	time.Sleep(outage) // the outage itself
	w.StartEtcd()
	for _, d := range daemons {
		e2e.AwaitStatus(t, d, "etcd is back", func(s e2e.Status) bool { return s.Etcd.Up && s.Watch.Alive })
	}
	stream.Await(1000) // after it
	stream.End()
	// And it heals: a host that joins afterwards is seen.
	late := lab.DefaultHosts()[2]
	if _, err := w.AddHost(w.Context(), late); err != nil {
		t.Fatal(err)
	}
	w.Start(late.Name)
	w.Mesh("kb21", "kb22", late.Name)
}

// The device is deleted by hand: the daemon makes another.
func TestIntegrationDeviceDeleted(t *testing.T) {
	w := e2e.NewWorld(t, "kb21", "kb22")
	w.Start("kb21", "kb22")
	w.Mesh("kb21", "kb22")
	link, err := w.Host("kb21").Netlink().LinkByName("flannel.1")
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Host("kb21").Netlink().LinkDel(link); err != nil {
		t.Fatal(err)
	}
	w.Mesh("kb21", "kb22")
}

// Making the device again is tried until nothing is in the way. What is, the log
// says once as an error and once as a fault of the host.
func TestIntegrationDeviceMadeAgainLater(t *testing.T) {
	w := e2e.NewWorld(t, "kb21", "kb22")
	d := w.Start("kb21", "kb22")[0]
	w.Mesh("kb21", "kb22")
	nl := w.Host("kb21").Netlink()
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "flannel.1"
	bridge := &netlink.Bridge{LinkAttrs: attrs}
	e2e.Freeze(t, d.Process)
	for _, do := range []func() error{
		func() error { return nl.LinkDel(&netlink.Tuntap{LinkAttrs: attrs}) },
		func() error { return nl.LinkAdd(bridge) },
		func() error { return d.Process.Signal(unix.SIGCONT) },
	} {
		if err := do(); err != nil {
			t.Fatal(err)
		}
	}
	for _, words := range []string{"it will be tried again", "the host is not as it should be"} {
		e2e.AwaitLine(t, d, time.Time{}, words, "the interface exists")
	}
	time.Sleep(time.Second) // some failed attempts
	if n := strings.Count(e2e.LogOf(t, d), "the interface exists"); n != 2 {
		t.Errorf("it says %d times what is in the way", n)
	}
	if err := nl.LinkDel(bridge); err != nil {
		t.Fatal(err)
	}
	w.Mesh("kb21", "kb22")
}

// The sockets are destroyed by hand: the daemon makes others.
func TestIntegrationSocketsDestroyed(t *testing.T) {
	w := e2e.NewWorld(t, "kb21", "kb22")
	d := w.Start("kb21", "kb22")[0]
	w.Mesh("kb21", "kb22")
	for _, filter := range []string{"sport = 4789", "sport != 4789"} { // receiving and sending
		out, err := w.Host("kb21").Run(w.Context(), "ss", "-HKuan", filter)
		if err != nil || len(out) == 0 {
			t.Fatalf("destroy the sockets of %s: %q, %v", filter, out, err)
		}
		w.Mesh("kb21", "kb22")
	}
	if n := strings.Count(e2e.LogOf(t, d), "making the device and the sockets again"); n != 1 {
		t.Errorf("it made them again %d times", n)
	}
}

// A second daemon on a host is refused and does the first no harm.
func TestIntegrationSecondDaemonRefused(t *testing.T) {
	w := e2e.NewWorld(t, "kb21", "kb22")
	w.Start("kb21", "kb22")
	second, err := w.Cluster.Restart(w.T.Context(), w.Host("kb21"))
	if err != nil {
		t.Fatal(err)
	}
	select { // the subnet file, by which others are known to be ready, is the first's
	case <-second.Done():
	case <-w.Context().Done():
		t.Fatal("the second daemon doesn't end")
	}
	if log := e2e.LogOf(t, second); !strings.Contains(log, "uvxland runs (pid ") {
		t.Errorf("the second daemon says: %s", log)
	}
	w.Mesh("kb21", "kb22")
}

// A host that joins is reachable. How soon is the bench's matter.
func TestIntegrationJoin(t *testing.T) {
	w := e2e.NewWorld(t)
	w.Start("kb21", "kb22")
	w.Mesh("kb21", "kb22")
	if _, err := w.Cluster.Start(t.Context(), w.Host("kb31")); err != nil {
		t.Fatal(err)
	}
	w.LeaseOf("kb31")
	since := time.Now()
	for _, from := range []string{"kb21", "kb22"} {
		if _, err := cluster.Reach(w.Context(), w.Container(from).Node, w.Container("kb31"), 100); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("reachable %s after its lease appeared", time.Since(since))
}

// The subnet of a lease that is put is reachable, and unreachable when it is
// deleted, which senders are told.
func TestIntegrationLeaseDeleted(t *testing.T) {
	w := e2e.NewWorld(t)
	w.Start("kb21")
	registry := w.Registry()
	peer := e2e.NewKernelPeer(t, w.Host("kb31"))
	peer.Learn(w.LeaseOf("kb21"))
	own, err := registry.Create(w.Context(), peer.Lease(), time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	from, to := w.Container("kb21"), w.Container("kb31")
	since := time.Now()
	if _, err := cluster.Reach(w.Context(), from.Node, to, 100); err != nil {
		t.Fatal(err)
	}
	t.Logf("reachable %s after the lease was put", time.Since(since))
	if err := registry.Delete(w.Context(), own); err != nil {
		t.Fatal(err)
	}
	since = time.Now()
	w.AwaitUnreachable(from, to)
	t.Logf("unreachable %s after the lease was deleted", time.Since(since))
	if _, err := w.Host("kb21").Netlink().LinkByName("flannel.1"); errors.As(err, new(netlink.LinkNotFoundError)) {
		t.Error("the device went with the peer")
	}
}

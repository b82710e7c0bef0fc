package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"uvxlan/bench/cluster"
	"uvxlan/bench/iperf"
	"uvxlan/bench/lab"
	"uvxlan/cmd/internal/subnetfile"
)

const gigabyte = 1 << 30

var overlayNetwork = netip.MustParsePrefix("172.7.0.0/16")

func TestIntegrationThreeHosts(t *testing.T) {
	w := newWorld(t)
	daemons := w.start("kb21", "kb22", "kb31")
	w.mesh("kb21", "kb22", "kb31")
	noLoss(t, w.Hosts())

	file, err := subnetfile.Read(daemons[0].SubnetFile())
	want := subnetfile.File{Network: overlayNetwork, Subnet: w.Host("kb21").Subnet, MTU: 1450}
	if err != nil || file != want {
		t.Errorf("the subnet file says %+v, want %+v, %v", file, want, err)
	}
	from := w.container("kb21")
	for _, to := range []*lab.Container{w.container("kb22"), w.container("kb31")} {
		tcp := iperfRun(t, iperf.Test{Server: to.Node, Client: from.Node, To: to.Address, Duration: 2 * time.Second})
		udp := iperfRun(t, iperf.Test{
			Server: to.Node, Client: from.Node, To: to.Address, Duration: 2 * time.Second, UDP: true, Bandwidth: 50e6,
		})
		t.Logf("%s -> %s: TCP %.2f Gbit/s; UDP %d datagrams, %d lost", from.Name, to.Name, tcp.BitsPerSecond/1e9, udp.Packets, udp.Lost)
		if tcp.Bytes == 0 || udp.Packets == 0 || udp.Lost*1000 > udp.Packets {
			t.Errorf("%s -> %s: TCP %+v, UDP %+v", from.Name, to.Name, tcp, udp)
		}
	}
	transfer(t, from.Node, w.container("kb22"), gigabyte)
	transfer(t, w.container("kb31").Node, from, gigabyte/8)
	// A host's own traffic to a container takes the VTEP's address.
	transfer(t, w.Host("kb31").Node, w.container("kb22"), 1<<20)
}

func iperfRun(t *testing.T, test iperf.Test) iperf.Result {
	t.Helper()
	r, err := test.Run(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// noLoss pings each container from each other a hundred times with packets of
// full size that may not be fragmented, and misses none.
func noLoss(t *testing.T, hosts []*lab.Host) {
	t.Helper()
	for _, from := range hosts {
		for _, to := range hosts {
			for range 100 {
				if from == to {
					break
				}
				ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
				_, err := from.Container.Ping(ctx, to.Container.Address, lab.DefaultContainerMTU)
				cancel()
				if err != nil {
					t.Fatal(err)
				}
			}
		}
	}
}

// Stop and start: nothing is left, and the next run has the same lease.
func TestIntegrationStopLeavesNothing(t *testing.T) {
	w := newWorld(t, "kb21", "kb22")
	w.start("kb22")
	before := networkState(t, w.Host("kb21"))
	for _, signal := range []unix.Signal{unix.SIGTERM, unix.SIGKILL, unix.SIGTERM} {
		d := w.start("kb21")[0]
		w.mesh("kb21", "kb22")
		if err := d.Process.Signal(signal); err != nil {
			t.Fatal(err)
		}
		if err := d.Wait(); signal == unix.SIGTERM && err != nil {
			t.Errorf("after SIGTERM: %v", err)
		}
		after := networkState(t, w.Host("kb21"))
		for ctx := w.context(); signal == unix.SIGKILL && after != before && ctx.Err() == nil; {
			after = networkState(t, w.Host("kb21")) // the kernel is at it
		}
		if after != before {
			t.Errorf("left after %s:\n%s\nbefore:\n%s", signal, after, before)
		}
	}
	leases, _, err := w.registry().List(w.context())
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
// says.
func TestIntegrationEtcdOutage(t *testing.T) {
	outage := 30 * time.Second
	if length, err := time.ParseDuration(os.Getenv("UVXLAN_OUTAGE")); err == nil {
		outage = length
	}
	w := newWorld(t, "kb21", "kb22")
	w.start("kb21", "kb22")
	w.mesh("kb21", "kb22")
	from, to := w.container("kb21"), w.container("kb22")
	type outcome struct {
		iperf.Result
		err error
	}
	done := make(chan outcome, 1)
	go func() {
		r, err := iperf.Test{
			Server: to.Node, Client: from.Node, To: to.Address, Duration: outage + 8*time.Second,
			UDP: true, Bandwidth: 20e6, Length: 1200,
		}.Run(t.Context())
		done <- outcome{r, err}
	}()
	time.Sleep(2 * time.Second) // traffic before the outage
	w.stopEtcd()
	time.Sleep(outage) // the outage itself
	w.startEtcd()
	result := <-done
	if result.err != nil || result.Lost != 0 || result.Packets < int64(2000*outage.Seconds()) {
		t.Errorf("%d of %d datagrams were lost, %v", result.Lost, result.Packets, result.err)
	}
	// And it heals: a host that joins afterwards is seen.
	late := lab.DefaultHosts()[2]
	if _, err := w.AddHost(w.context(), late); err != nil {
		t.Fatal(err)
	}
	w.start(late.Name)
	w.mesh("kb21", "kb22", late.Name)
}

// The device is deleted by hand: the daemon makes another.
func TestIntegrationDeviceDeleted(t *testing.T) {
	w := newWorld(t, "kb21", "kb22")
	w.start("kb21", "kb22")
	w.mesh("kb21", "kb22")
	link, err := w.Host("kb21").Netlink().LinkByName("flannel.1")
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Host("kb21").Netlink().LinkDel(link); err != nil {
		t.Fatal(err)
	}
	w.mesh("kb21", "kb22")
}

// Making the device again is tried until nothing is in the way, and the log
// says once what is.
func TestIntegrationDeviceMadeAgainLater(t *testing.T) {
	w := newWorld(t, "kb21", "kb22")
	d := w.start("kb21", "kb22")[0]
	w.mesh("kb21", "kb22")
	nl := w.Host("kb21").Netlink()
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "flannel.1"
	bridge := &netlink.Bridge{LinkAttrs: attrs}
	for _, do := range []func() error{
		func() error { return d.Process.Signal(unix.SIGSTOP) },
		func() error { return nl.LinkDel(&netlink.Tuntap{LinkAttrs: attrs}) },
		func() error { return nl.LinkAdd(bridge) },
		func() error { return d.Process.Signal(unix.SIGCONT) },
	} {
		if err := do(); err != nil {
			t.Fatal(err)
		}
	}
	time.Sleep(time.Second) // some failed attempts
	if n := strings.Count(logOf(t, d), "the interface exists"); n != 1 {
		t.Errorf("it says %d times what is in the way", n)
	}
	if err := nl.LinkDel(bridge); err != nil {
		t.Fatal(err)
	}
	w.mesh("kb21", "kb22")
}

// The sockets are destroyed by hand: the daemon makes others.
func TestIntegrationSocketsDestroyed(t *testing.T) {
	w := newWorld(t, "kb21", "kb22")
	d := w.start("kb21", "kb22")[0]
	w.mesh("kb21", "kb22")
	for _, filter := range []string{"sport = 4789", "sport != 4789"} { // receiving and sending
		out, err := w.Host("kb21").Run(w.context(), "ss", "-HKuan", filter)
		if err != nil || len(out) == 0 {
			t.Fatalf("destroy the sockets of %s: %q, %v", filter, out, err)
		}
		w.mesh("kb21", "kb22")
	}
	if n := strings.Count(logOf(t, d), "making the device and the sockets again"); n != 1 {
		t.Errorf("it made them again %d times", n)
	}
}

// A second daemon on a host is refused and does the first no harm.
func TestIntegrationSecondDaemonRefused(t *testing.T) {
	w := newWorld(t, "kb21", "kb22")
	w.start("kb21", "kb22")
	second, err := w.cluster.Start(w.t.Context(), w.Host("kb21"))
	if err != nil {
		t.Fatal(err)
	}
	if err := second.Ready(w.context()); err == nil || !strings.Contains(err.Error(), "uvxland runs (pid ") {
		t.Errorf("the second daemon says: %v", err)
	}
	w.mesh("kb21", "kb22")
}

// A host that joins is reachable within 100 ms of its lease.
func TestIntegrationJoin(t *testing.T) {
	w := newWorld(t)
	w.start("kb21", "kb22")
	w.mesh("kb21", "kb22")
	if _, err := w.cluster.Start(t.Context(), w.Host("kb31")); err != nil {
		t.Fatal(err)
	}
	w.leaseOf("kb31")
	since := time.Now()
	for _, from := range []string{"kb21", "kb22"} {
		if _, err := cluster.Reach(w.context(), w.container(from).Node, w.container("kb31"), 100); err != nil {
			t.Fatal(err)
		}
	}
	if took := time.Since(since); took > 100*time.Millisecond {
		t.Errorf("reachable %s after its lease appeared", took)
	} else {
		t.Logf("reachable %s after its lease appeared", took)
	}
}

// A lease that is deleted is unreachable within 100 ms, and one that is put
// reachable.
func TestIntegrationLeaseDeleted(t *testing.T) {
	w := newWorld(t)
	w.start("kb21")
	registry := w.registry()
	peer := newKernelPeer(t, w.Host("kb31"))
	peer.learn(w.leaseOf("kb21"))
	own, err := registry.Create(w.context(), peer.lease(), time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	from, to := w.container("kb21"), w.container("kb31")
	since := time.Now()
	if _, err := cluster.Reach(w.context(), from.Node, to, 100); err != nil {
		t.Fatal(err)
	}
	t.Logf("reachable %s after the lease was put", time.Since(since))
	if took := time.Since(since); took > 100*time.Millisecond {
		t.Errorf("reachable only %s after the lease was put", took)
	}
	if err := registry.Delete(w.context(), own); err != nil {
		t.Fatal(err)
	}
	since = time.Now()
	for err = nil; err == nil; {
		_, err = from.Ping(w.context(), to.Address, 100)
	}
	if took := time.Since(since); !errors.Is(err, lab.ErrUnreachable) || took > 100*time.Millisecond {
		t.Errorf("after %s: %v", took, err)
	} else {
		t.Logf("unreachable %s after the lease was deleted: %v", took, err)
	}
	if _, err := w.Host("kb21").Netlink().LinkByName("flannel.1"); errors.As(err, new(netlink.LinkNotFoundError)) {
		t.Error("the device went with the peer")
	}
}

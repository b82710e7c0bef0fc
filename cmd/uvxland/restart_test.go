package main

import (
	"encoding/json"
	"errors"
	"io/fs"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"uvxlan/bench/cluster"
	"uvxlan/bench/lab"
	"uvxlan/cmd/internal/hoststate"
	"uvxlan/lease"
)

// model is a way to join hosts, with what it leaves to be seen on kb21.
type model struct {
	name, config string
	backend      string // of the lease
	device       bool   // there is one
	routes       bool   // kb22 has a kernel route
	filter       string // rp_filter, which was strict
}

func models() []model {
	return []model{
		{"vxlan", vxlanConfig, lease.TypeVXLAN, true, false, "1"},
		{"socket", hybridConfig, lease.TypeVXLAN, true, false, "2"},
		{"route", routeConfig, lease.TypeVXLAN, true, true, "1"},
		{"host-gw", hostGWConfig, lease.TypeHostGW, false, true, "1"},
	}
}

// await waits until kb21 has the model's routes, and to the guest too if that
// has a subnet; then nothing else of ours may be there.
func (m model) await(t *testing.T, w *world, guest lease.Lease) {
	t.Helper()
	var want []string
	kb21 := w.Host("kb21")
	if m.device {
		want = append(want, "172.7.0.0/16 dev flannel.1 scope link src "+kb21.Subnet.Addr().String())
	}
	if m.routes {
		want = append(want, routeTo(w.Host("kb22")))
	}
	if m.routes && guest.Subnet.IsValid() {
		want = append(want, guest.Subnet.String()+" via "+guest.Attrs.PublicIP.String()+" dev eth0")
	}
	awaitRoutes(t, kb21, want...)
	if filter := reversePath(t, kb21); filter != m.filter {
		t.Errorf("%s: rp_filter is %s, want %s", m.name, filter, m.filter)
	}
}

// guest is the lease of one more subnet behind kb22.
func (m model) guest(t *testing.T, w *world) lease.Lease {
	t.Helper()
	l := lease.Lease{Subnet: netip.MustParsePrefix("172.7.99.0/24"), Attrs: lease.Attrs{PublicIP: w.Host("kb22").Address, BackendType: m.backend}}
	if m.device {
		data, err := json.Marshal(lease.VXLANData{VNI: 1, VtepMAC: "0e:00:00:00:00:99"})
		if err != nil {
			t.Fatal(err)
		}
		l.Attrs.BackendData = data
	}
	l, err := w.registry().Create(w.context(), l, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func strictReversePath(t *testing.T, h *lab.Host) {
	t.Helper()
	if err := h.Sysctl("ipv4/conf/eth0/rp_filter", "1"); err != nil {
		t.Fatal(err)
	}
}

func reversePath(t *testing.T, h *lab.Host) string {
	t.Helper()
	return strings.TrimSpace(command(t, h.Node, "cat /proc/sys/net/ipv4/conf/eth0/rp_filter"))
}

// end ends daemons, in order or not.
func end(t *testing.T, signal unix.Signal, daemons ...*cluster.Daemon) {
	t.Helper()
	for _, d := range daemons {
		if err := d.Process.Signal(signal); err != nil {
			t.Fatal(err)
		}
	}
	for _, d := range daemons {
		if err := d.Wait(); signal == unix.SIGTERM && err != nil {
			t.Errorf("after SIGTERM: %v", err)
		}
	}
}

// hostState is all that a daemon may leave on a host, but for routes of ours.
func hostState(t *testing.T, h *lab.Host) string {
	t.Helper()
	out, err := h.Run(t.Context(), "sh", "-c", `ip -o link; ip -o address; ip route show table all | grep -v 'proto 89'
		grep -rs . /proc/sys/net/ipv4/conf /proc/sys/net/ipv6/conf | sort`)
	if err != nil {
		t.Fatal(err)
	}
	return string(out)
}

// settledState is hostState once the container's bridge is up, which it says
// some time after it carries packets.
func settledState(t *testing.T, h *lab.Host) string {
	t.Helper()
	for late := time.Now().Add(patience); ; {
		state := hostState(t, h)
		for line := range strings.Lines(state) {
			if strings.Contains(line, ": cni0: ") && strings.Contains(line, "state UP") {
				return state
			}
		}
		if time.Now().After(late) {
			t.Fatalf("%s: the bridge doesn't come up: %s", h.Name, state)
		}
	}
}

// expectState compares a host with its state before.
func expectState(t *testing.T, h *lab.Host, before, when string) {
	t.Helper()
	after := strings.Split(hostState(t, h), "\n")
	for line := range strings.SplitSeq(before, "\n") {
		i := slices.Index(after, line)
		if i < 0 {
			t.Errorf("%s %s: gone: %s", h.Name, when, line)
			continue
		}
		after = slices.Delete(after, i, i+1)
	}
	for _, line := range after {
		t.Errorf("%s %s: new: %s", h.Name, when, line)
	}
}

// A daemon that was stopped in order leaves nothing, but for the routes of
// host-gw, which carry packets until the next run. One that was killed leaves
// what the next one uses or removes, with the same lease.
func TestIntegrationRestart(t *testing.T) {
	for _, m := range models() {
		t.Run(m.name, func(t *testing.T) {
			w := newWorld(t, "kb21", "kb22")
			kb21 := w.Host("kb21")
			strictReversePath(t, kb21)
			w.configure(m.config)
			w.start("kb22")
			before := settledState(t, kb21)
			var first lease.Lease
			for _, signal := range []unix.Signal{unix.SIGTERM, unix.SIGKILL, unix.SIGTERM} {
				d := w.start("kb21")[0]
				w.mesh("kb21", "kb22")
				m.await(t, w, lease.Lease{})
				if l := w.leaseOf("kb21"); !first.Subnet.IsValid() {
					first = l
				} else if !l.Equal(first) {
					t.Errorf("the lease was %+v and is %+v", first, l)
				}
				if signal == unix.SIGKILL {
					m.killWithGuest(t, w, d)
					continue
				}
				end(t, signal, d)
				expectState(t, kb21, before, "after SIGTERM")
				if state, err := hoststate.Load(d.StateDir()); err != nil || len(state.Sysctls) > 0 {
					t.Errorf("the manifest is %+v, %v", state, err)
				}
				if m.device {
					awaitRoutes(t, kb21)
				} else {
					awaitRoutes(t, kb21, routeTo(w.Host("kb22")))
				}
			}
		})
	}
}

// killWithGuest kills a daemon while it has one more peer, which then goes.
func (m model) killWithGuest(t *testing.T, w *world, d *cluster.Daemon) {
	t.Helper()
	guest := m.guest(t, w)
	awaitLine(t, d, time.Time{}, "subnet="+guest.Subnet.String())
	m.await(t, w, guest)
	end(t, unix.SIGKILL, d)
	if err := w.registry().Delete(w.context(), guest); err != nil {
		t.Fatal(err)
	}
}

// A TCP stream outlives restarts of a host-gw daemon of any kind: its routes
// are never away, so that no packet is lost.
func TestIntegrationRestartHostGWStream(t *testing.T) {
	w := newWorld(t, "kb21", "kb22")
	w.configure(hostGWConfig)
	daemons := w.start("kb21", "kb22")
	w.mesh("kb21", "kb22")
	kb21, kb22 := w.Host("kb21"), w.Host("kb22")
	awaitRoutes(t, kb21, routeTo(kb22))
	events := watchRoutes(t, kb21)
	s := startStream(t, w)
	for _, signal := range []unix.Signal{unix.SIGTERM, unix.SIGKILL} {
		end(t, signal, daemons[0])
		s.goesOn()
		begin := time.Now()
		daemons = w.start("kb21")
		awaitPath(t, daemons[0], kb22, "direct now", begin)
		s.goesOn()
	}
	for _, e := range events() {
		if e.Dst.String() == kb22.Subnet.String() {
			t.Errorf("the route was touched: %+v", e)
		}
	}
}

// watchRoutes returns a function that returns the changes of a host's routes
// since.
func watchRoutes(t *testing.T, h *lab.Host) func() []netlink.RouteUpdate {
	t.Helper()
	updates, done := make(chan netlink.RouteUpdate, 1000), make(chan struct{})
	if err := h.Do(func() error { return netlink.RouteSubscribe(updates, done) }); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { close(done) })
	return func() (all []netlink.RouteUpdate) {
		const last = "198.51.100.0/24"
		command(t, h.Node, "ip route add blackhole "+last)
		for late := time.After(patience); ; {
			select {
			case u := <-updates:
				if u.Dst.String() == last {
					return all
				}
				all = append(all, u)
			case <-late:
				t.Fatal("the kernel doesn't report routes")
			}
		}
	}
}

// An operator changes the model, in each way: the hosts reach each other after
// each change, and nothing of the model before is left.
func TestIntegrationSwitch(t *testing.T) {
	w := newWorld(t, "kb21", "kb22")
	kb21 := w.Host("kb21")
	strictReversePath(t, kb21)
	before := settledState(t, kb21)
	order := append(models(), models()[0])
	for _, signal := range []unix.Signal{unix.SIGKILL, unix.SIGTERM} {
		for _, m := range order {
			w.configure(m.config)
			daemons := w.start("kb21", "kb22")
			w.mesh("kb21", "kb22")
			m.await(t, w, lease.Lease{})
			transfer(t, w.container("kb21").Node, w.container("kb22"), 4<<20)
			transfer(t, w.container("kb22").Node, w.container("kb21"), 4<<20)
			for _, d := range daemons {
				l := w.leaseOf(d.Host.Name)
				if l.Attrs.BackendType != m.backend || (l.Attrs.BackendData != nil) != m.device || l.Attrs.PublicIP != d.Host.Address {
					t.Errorf("%s: the lease is %+v", m.name, l)
				}
			}
			end(t, signal, daemons...)
		}
	}
	expectState(t, kb21, before, "at the end")
	awaitRoutes(t, kb21)
	if leases, _, err := w.registry().List(w.context()); err != nil || len(leases) != 2 {
		t.Errorf("the leases are %v, %v", leases, err)
	}
}

// uvxlan cleanup removes what a killed daemon left, and nothing else.
func TestIntegrationCleanup(t *testing.T) {
	w := newWorld(t, "kb21", "kb22")
	kb21 := w.Host("kb21")
	strictReversePath(t, kb21)
	command(t, kb21.Node, "ip tuntap add dev other0 mode tun")
	command(t, kb21.Node, "ip route add 172.7.99.0/24 via 192.168.14.99 proto static")
	command(t, kb21.Node, "ip route add 172.7.98.0/24 via 192.168.14.98 proto static metric 7")
	before := settledState(t, kb21)
	for _, m := range models() {
		w.configure(m.config)
		daemons := w.start("kb21", "kb22")
		w.mesh("kb21", "kb22")
		m.await(t, w, lease.Lease{})
		end(t, unix.SIGKILL, daemons...)
		kb22 := w.Host("kb22")
		t.Logf("%s: %s", m.name, command(t, kb22.Node, commandBinary+" cleanup -state-dir "+daemons[1].StateDir()))
		d := daemons[0]
		t.Logf("%s: %s", m.name, command(t, kb21.Node, commandBinary+" cleanup -state-dir "+d.StateDir()))
		expectState(t, kb21, before, "after cleanup of "+m.name)
		awaitRoutes(t, kb21)
		if left := command(t, kb21.Node, "ip -o link show type tun"); strings.Count(left, "\n") != 1 || !strings.Contains(left, "other0") {
			t.Errorf("%s: devices afterwards: %s", m.name, left)
		}
		if left, err := os.ReadDir(d.StateDir()); err != nil || len(left) > 0 {
			t.Errorf("%s: the state directory has %v, %v", m.name, left, err)
		}
		if _, err := os.Stat(d.SubnetFile()); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: the subnet file is left, %v", m.name, err)
		}
	}
}

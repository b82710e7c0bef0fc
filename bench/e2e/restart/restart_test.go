package restart_test

import (
	"errors"
	"io/fs"
	"os"
	"strings"
	"testing"
	"time"

	"uvxlan/bench/e2e"

	"golang.org/x/sys/unix"

	"uvxlan/bench/cluster"
	"uvxlan/lease"
)

// A daemon that was stopped in order leaves nothing, but for the routes of
// host-gw, which carry packets until the next run. One that was killed leaves
// what the next one uses or removes, with the same lease.
func TestIntegrationRestart(t *testing.T) {
	for _, m := range e2e.Models() {
		t.Run(m.Name, func(t *testing.T) {
			w := e2e.NewWorld(t, "kb21", "kb22")
			kb21 := w.Host("kb21")
			e2e.StrictReversePath(t, kb21)
			w.Configure(m.Config)
			w.Start("kb22")
			before := e2e.SettledState(t, kb21)
			var first lease.Lease
			for _, signal := range []unix.Signal{unix.SIGTERM, unix.SIGKILL, unix.SIGTERM} {
				d := w.Start("kb21")[0]
				w.Mesh("kb21", "kb22")
				m.Await(t, w, lease.Lease{})
				if l := w.LeaseOf("kb21"); !first.Subnet.IsValid() {
					first = l
				} else if !l.Equal(first) {
					t.Errorf("the lease was %+v and is %+v", first, l)
				}
				if signal == unix.SIGKILL {
					killWithGuest(m, t, w, d)
					continue
				}
				e2e.End(t, signal, d)
				e2e.ExpectState(t, kb21, before, "after SIGTERM")
				if m := e2e.ReadManifest(t, d.StateDir()); len(m.Sysctls) > 0 {
					t.Errorf("the manifest is %+v", m)
				}
				if m.Device {
					e2e.AwaitRoutes(t, kb21)
				} else {
					e2e.AwaitRoutes(t, kb21, e2e.RouteTo(w.Host("kb22")))
				}
			}
		})
	}
}

// killWithGuest kills a daemon while it has one more peer, which then goes.
func killWithGuest(m e2e.Model, t *testing.T, w *e2e.World, d *cluster.Daemon) {
	t.Helper()
	guest := m.Guest(t, w)
	e2e.AwaitLine(t, d, time.Time{}, "subnet="+guest.Subnet.String())
	m.Await(t, w, guest)
	e2e.End(t, unix.SIGKILL, d)
	if err := w.Registry().Delete(w.Context(), guest); err != nil {
		t.Fatal(err)
	}
}

// A TCP stream outlives restarts of a host-gw daemon of any kind: its routes
// are never away, so that no packet is lost.
func TestIntegrationRestartHostGWStream(t *testing.T) {
	w := e2e.NewWorld(t, "kb21", "kb22")
	w.Configure(e2e.HostGWConfig)
	daemons := w.Start("kb21", "kb22")
	w.Mesh("kb21", "kb22")
	kb21, kb22 := w.Host("kb21"), w.Host("kb22")
	e2e.AwaitRoutes(t, kb21, e2e.RouteTo(kb22))
	events := e2e.WatchRoutes(t, kb21)
	s := e2e.StartStream(t, w)
	for _, signal := range []unix.Signal{unix.SIGTERM, unix.SIGKILL} {
		e2e.End(t, signal, daemons[0])
		s.GoesOn()
		begin := time.Now()
		daemons = w.Start("kb21")
		e2e.AwaitPath(t, daemons[0], kb22, "direct now", begin)
		s.GoesOn()
	}
	for _, e := range events() {
		if e.Dst.String() == kb22.Subnet.String() {
			t.Errorf("the route was touched: %+v", e)
		}
	}
}

// An operator changes the model, in each way: the hosts reach each other after
// each change, and nothing of the model before is left.
func TestIntegrationSwitch(t *testing.T) {
	w := e2e.NewWorld(t, "kb21", "kb22")
	kb21 := w.Host("kb21")
	e2e.StrictReversePath(t, kb21)
	before := e2e.SettledState(t, kb21)
	order := append(e2e.Models(), e2e.Models()[0])
	for _, signal := range []unix.Signal{unix.SIGKILL, unix.SIGTERM} {
		for _, m := range order {
			w.Configure(m.Config)
			daemons := w.Start("kb21", "kb22")
			w.Mesh("kb21", "kb22")
			m.Await(t, w, lease.Lease{})
			e2e.Transfer(t, w.Container("kb21").Node, w.Container("kb22"), 4<<20)
			e2e.Transfer(t, w.Container("kb22").Node, w.Container("kb21"), 4<<20)
			for _, d := range daemons {
				l := w.LeaseOf(d.Host.Name)
				if l.Attrs.BackendType != m.Backend || (l.Attrs.BackendData != nil) != m.Device || l.Attrs.PublicIP != d.Host.Address {
					t.Errorf("%s: the lease is %+v", m.Name, l)
				}
			}
			e2e.End(t, signal, daemons...)
		}
	}
	e2e.ExpectState(t, kb21, before, "at the end")
	e2e.AwaitRoutes(t, kb21)
	if leases, _, err := w.Registry().List(w.Context()); err != nil || len(leases) != 2 {
		t.Errorf("the leases are %v, %v", leases, err)
	}
}

// uvxlan cleanup removes what a killed daemon left, and nothing else.
func TestIntegrationCleanup(t *testing.T) {
	w := e2e.NewWorld(t, "kb21", "kb22")
	kb21 := w.Host("kb21")
	e2e.StrictReversePath(t, kb21)
	e2e.Command(t, kb21.Node, "ip tuntap add dev other0 mode tun")
	e2e.Command(t, kb21.Node, "ip route add 172.7.99.0/24 via 192.168.14.99 proto static")
	e2e.Command(t, kb21.Node, "ip route add 172.7.98.0/24 via 192.168.14.98 proto static metric 7")
	before := e2e.SettledState(t, kb21)
	for _, m := range e2e.Models() {
		w.Configure(m.Config)
		daemons := w.Start("kb21", "kb22")
		w.Mesh("kb21", "kb22")
		m.Await(t, w, lease.Lease{})
		e2e.End(t, unix.SIGKILL, daemons...)
		kb22 := w.Host("kb22")
		t.Logf("%s: %s", m.Name, e2e.Command(t, kb22.Node, e2e.CommandBinary+" cleanup -state-dir "+daemons[1].StateDir()))
		d := daemons[0]
		t.Logf("%s: %s", m.Name, e2e.Command(t, kb21.Node, e2e.CommandBinary+" cleanup -state-dir "+d.StateDir()))
		e2e.ExpectState(t, kb21, before, "after cleanup of "+m.Name)
		e2e.AwaitRoutes(t, kb21)
		if left := e2e.Command(t, kb21.Node, "ip -o link show type tun"); strings.Count(left, "\n") != 1 || !strings.Contains(left, "other0") {
			t.Errorf("%s: devices afterwards: %s", m.Name, left)
		}
		if left, err := os.ReadDir(d.StateDir()); err != nil || len(left) > 0 {
			t.Errorf("%s: the state directory has %v, %v", m.Name, left, err)
		}
		if _, err := os.Stat(d.SubnetFile()); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: the subnet file is left, %v", m.Name, err)
		}
	}
}

package main

import (
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"uvxlan/bench/lab"
	"uvxlan/cmd/internal/hoststate"
)

// divert gives a host a default route by another interface, which the choice
// would fall on.
func divert(t *testing.T, h *lab.Host) {
	t.Helper()
	command(t, h.Node, "ip link add up0 type veth peer name up1")
	command(t, h.Node, "ip link set up1 up")
	command(t, h.Node, "ip link set up0 up")
	command(t, h.Node, "ip address add 10.99.0.1/24 dev up0")
	command(t, h.Node, "ip route replace default via 10.99.0.2 dev up0")
}

// Hosts whose default route leads elsewhere find the interface to each other,
// by its address or name, or by where it leads.
func TestIntegrationInterfaceChoice(t *testing.T) {
	w := newWorld(t, "kb21", "kb22")
	ways := map[string][]string{
		"kb21": {"-iface=eth9", "-iface-regex=^wlan", `-iface-regex=^192\.168\.14\.`, "-iface-can-reach=10.99.0.2"},
		"kb22": {"--iface-can-reach", w.Host("kb21").Address.String()},
	}
	for name, args := range ways {
		divert(t, w.Host(name))
		d, err := w.cluster.Start(t.Context(), w.Host(name), args...)
		if err != nil {
			t.Fatal(err)
		}
		if err := d.Ready(w.context()); err != nil {
			t.Fatal(err)
		}
		if l := w.leaseOf(name); l.Attrs.PublicIP != w.Host(name).Address {
			t.Errorf("%s has the public address %s, want %s", name, l.Attrs.PublicIP, w.Host(name).Address)
		}
	}
	w.mesh("kb21", "kb22")
}

// With -ip-blackhole-route, what is sent to a container that isn't there goes
// nowhere while the containers' network is down; the route goes with the daemon,
// or with the next one, or with uvxlan cleanup.
func TestIntegrationBlackholeRoute(t *testing.T) {
	w := newWorld(t, "kb21", "kb22")
	w.start("kb22")
	kb21 := w.Host("kb21")
	hole := "blackhole " + kb21.Subnet.String()
	expect := func(when string, want bool) {
		t.Helper()
		if table := command(t, kb21.Node, "ip route show"); strings.Contains(table, hole) != want {
			t.Errorf("%s: the blackhole route must be there: %t, but the routes are\n%s", when, want, table)
		}
	}
	for _, signal := range []unix.Signal{unix.SIGTERM, unix.SIGKILL} {
		d, err := w.cluster.Start(t.Context(), kb21, "-ip-blackhole-route")
		if err != nil {
			t.Fatal(err)
		}
		if err := d.Ready(w.context()); err != nil {
			t.Fatal(err)
		}
		expect("while it runs", true)
		w.mesh("kb21", "kb22")
		end(t, signal, d)
		expect("after "+signal.String(), signal == unix.SIGKILL)
	}
	d := w.start("kb21")[0]
	expect("without the flag", false)
	w.mesh("kb21", "kb22")
	end(t, unix.SIGTERM, d)

	w.cluster.Args = []string{"-ip-blackhole-route"}
	d = w.start("kb21")[0]
	bridge := strings.Fields(command(t, kb21.Node, "ip -o route show "+kb21.Subnet.String()+" scope link"))
	if len(bridge) < 3 {
		t.Fatalf("the containers' network has no route: %q", bridge)
	}
	command(t, kb21.Node, "ip link set "+bridge[2]+" down")
	if out, err := kb21.Run(t.Context(), "ip", "route", "get", kb21.Subnet.Addr().Next().Next().String()); err == nil {
		t.Errorf("the way to a container that isn't there is %s", out)
	}
	end(t, unix.SIGKILL, d)
	if out := command(t, kb21.Node, commandBinary+" cleanup -state-dir "+d.StateDir()); !strings.Contains(out, "removed route "+hole) {
		t.Errorf("the cleanup says %s", out)
	}
	expect("after the cleanup", false)
	if state, err := hoststate.Load(d.StateDir()); err != nil || state.Blackhole.IsValid() {
		t.Errorf("the manifest is %+v, %v", state, err)
	}
}

package host_test

import (
	"strings"
	"testing"

	"uvxlan/bench/e2e"

	"golang.org/x/sys/unix"

	"uvxlan/bench/lab"
)

// divert gives a host a default route by another interface, which the choice
// would fall on.
func divert(t *testing.T, h *lab.Host) {
	t.Helper()
	e2e.Command(t, h.Node, "ip link add up0 type veth peer name up1")
	e2e.Command(t, h.Node, "ip link set up1 up")
	e2e.Command(t, h.Node, "ip link set up0 up")
	e2e.Command(t, h.Node, "ip address add 10.99.0.1/24 dev up0")
	e2e.Command(t, h.Node, "ip route replace default via 10.99.0.2 dev up0")
}

// Hosts whose default route leads elsewhere find the interface to each other,
// by its address or name, or by where it leads.
func TestIntegrationInterfaceChoice(t *testing.T) {
	w := e2e.NewWorld(t, "kb21", "kb22")
	ways := map[string][]string{
		"kb21": {"-iface=eth9", "-iface-regex=^wlan", `-iface-regex=^192\.168\.14\.`, "-iface-can-reach=10.99.0.2"},
		"kb22": {"--iface-can-reach", w.Host("kb21").Address.String()},
	}
	for name, args := range ways {
		divert(t, w.Host(name))
		d, err := w.Cluster.Start(t.Context(), w.Host(name), args...)
		if err != nil {
			t.Fatal(err)
		}
		if err := d.Ready(w.Context()); err != nil {
			t.Fatal(err)
		}
		if l := w.LeaseOf(name); l.Attrs.PublicIP != w.Host(name).Address {
			t.Errorf("%s has the public address %s, want %s", name, l.Attrs.PublicIP, w.Host(name).Address)
		}
	}
	w.Mesh("kb21", "kb22")
}

// With -ip-blackhole-route, what is sent to a container that isn't there goes
// nowhere while the containers' network is down; the route goes with the daemon,
// or with the next one, or with uvxlan cleanup.
func TestIntegrationBlackholeRoute(t *testing.T) {
	w := e2e.NewWorld(t, "kb21", "kb22")
	w.Start("kb22")
	kb21 := w.Host("kb21")
	hole := "blackhole " + kb21.Subnet.String()
	expect := func(when string, want bool) {
		t.Helper()
		if table := e2e.Command(t, kb21.Node, "ip route show"); strings.Contains(table, hole) != want {
			t.Errorf("%s: the blackhole route must be there: %t, but the routes are\n%s", when, want, table)
		}
	}
	for _, signal := range []unix.Signal{unix.SIGTERM, unix.SIGKILL} {
		d, err := w.Cluster.Start(t.Context(), kb21, "-ip-blackhole-route")
		if err != nil {
			t.Fatal(err)
		}
		if err := d.Ready(w.Context()); err != nil {
			t.Fatal(err)
		}
		expect("while it runs", true)
		w.Mesh("kb21", "kb22")
		e2e.End(t, signal, d)
		expect("after "+signal.String(), signal == unix.SIGKILL)
	}
	d := w.Start("kb21")[0]
	expect("without the flag", false)
	w.Mesh("kb21", "kb22")
	e2e.End(t, unix.SIGTERM, d)

	w.Cluster.Args = []string{"-ip-blackhole-route"}
	d = w.Start("kb21")[0]
	bridge := strings.Fields(e2e.Command(t, kb21.Node, "ip -o route show "+kb21.Subnet.String()+" scope link"))
	if len(bridge) < 3 {
		t.Fatalf("the containers' network has no route: %q", bridge)
	}
	e2e.Command(t, kb21.Node, "ip link set "+bridge[2]+" down")
	if out, err := kb21.Run(t.Context(), "ip", "route", "get", kb21.Subnet.Addr().Next().Next().String()); err == nil {
		t.Errorf("the way to a container that isn't there is %s", out)
	}
	e2e.End(t, unix.SIGKILL, d)
	if out := e2e.Command(t, kb21.Node, e2e.CommandBinary+" cleanup -state-dir "+d.StateDir()); !strings.Contains(out, "removed route "+hole) {
		t.Errorf("the cleanup says %s", out)
	}
	expect("after the cleanup", false)
	if m := e2e.ReadManifest(t, d.StateDir()); m.Blackhole != "" {
		t.Errorf("the manifest is %+v", m)
	}
}

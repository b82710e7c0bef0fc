package host_test

import (
	"net/netip"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"uvxlan/bench/cluster"
	"uvxlan/bench/e2e"
	"uvxlan/bench/lab"
)

var renumbered = netip.MustParseAddr("192.168.14.99")

const (
	renumber = "ip addr flush dev eth0 scope global && ip addr add 192.168.14.99/24 dev eth0 && ip route replace default via 192.168.14.1"
	restore  = "ip addr flush dev eth0 scope global && ip addr add 192.168.14.22/24 dev eth0 && ip route replace default via 192.168.14.1"
)

// awaitLease waits until a host's lease has a public address, and returns it.
func awaitLease(t *testing.T, w *e2e.World, h *lab.Host, public netip.Addr) {
	t.Helper()
	e2e.Await(t, "the lease's address "+public.String(), func() bool {
		all, _, err := w.Registry().List(w.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, l := range all {
			if l.Subnet == h.Subnet && l.Attrs.PublicIP == public {
				return true
			}
		}
		return false
	})
}

// When the underlay's address changes, sockets and lease follow and the subnet
// stays, in every model; a connection between containers survives, and so does the
// subnet when the daemon is started again under the other address.
func TestIntegrationRenumbering(t *testing.T) {
	for name, config := range map[string]string{
		"vxlan":   e2e.VXLANConfig,
		"hybrid":  `{"Network":"172.7.0.0/16","Backend":{"Type":"vxlan","DirectRouting":true}}`,
		"route":   `{"Network":"172.7.0.0/16","Backend":{"Type":"vxlan","DirectRouting":true,"DirectMode":"route"}}`,
		"host-gw": `{"Network":"172.7.0.0/16","Backend":{"Type":"host-gw"}}`,
	} {
		t.Run(name, func(t *testing.T) {
			w := e2e.NewWorld(t, "kb21", "kb22")
			w.Configure(config)
			d := w.Start("kb21", "kb22")[1]
			w.Mesh("kb21", "kb22")
			kb22 := w.Host("kb22")
			stream := e2e.StartStream(t, w)
			stream.GoesOn()
			e2e.Shell(t, kb22.Node, renumber)
			awaitLease(t, w, kb22, renumbered)
			stream.GoesOn()
			e2e.AwaitNoFault(t, d)
			if s := e2e.AskStatus(t, d); s.PublicIP != renumbered {
				t.Errorf("the status says %s", s.PublicIP)
			}
			e2e.End(t, unix.SIGTERM, d)
			e2e.Shell(t, kb22.Node, restore)
			d, err := w.Cluster.Restart(t.Context(), kb22)
			if err != nil {
				t.Fatal(err)
			}
			awaitLease(t, w, kb22, kb22.Address)
			w.Mesh("kb21", "kb22")
			e2e.AwaitNoFault(t, d)
		})
	}
}

// An address that goes is told, and taken again when it comes back.
func TestIntegrationUnderlayWithoutAddress(t *testing.T) {
	w := e2e.NewWorld(t, "kb21", "kb22")
	d := w.Start("kb21", "kb22")[1]
	w.Mesh("kb21", "kb22")
	kb22 := w.Host("kb22")
	e2e.Shell(t, kb22.Node, "ip addr flush dev eth0 scope global")
	e2e.AwaitWords(t, d, "reason", "eth0 has lost the address 192.168.14.22", "ip addr add")
	e2e.Shell(t, kb22.Node, restore)
	e2e.AwaitNoFault(t, d)
	w.Mesh("kb21", "kb22")
}

// An interface keeps its part under another name, also where it was chosen by the
// name before.
func TestIntegrationUnderlayIsRenamed(t *testing.T) {
	for _, config := range []string{e2e.VXLANConfig, `{"Network":"172.7.0.0/16","Backend":{"Type":"host-gw"}}`} {
		w := e2e.NewWorld(t, "kb21", "kb22")
		w.Configure(config)
		w.Cluster.Args = []string{"-iface", "eth0"}
		d := w.Start("kb21", "kb22")[1]
		w.Mesh("kb21", "kb22")
		e2e.Shell(t, w.Host("kb22").Node, "ip link set eth0 down && ip link set eth0 name wan0 && ip link set wan0 up && ip route replace default via 192.168.14.1")
		e2e.AwaitWords(t, d, "host", "192.168.14.22 on wan0")
		w.Mesh("kb21", "kb22")
		e2e.AwaitNoFault(t, d)
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// A public address that was given stays as it is when the interface's own changes.
func TestIntegrationPublicAddressStays(t *testing.T) {
	w := e2e.NewWorld(t, "kb21", "kb22")
	w.Start("kb21")
	kb22 := w.Host("kb22")
	public := netip.MustParseAddr("203.0.113.22")
	d := start(t, w, kb22, "-iface", "eth0", "-public-ip", public.String())
	awaitLease(t, w, kb22, public)
	e2e.Shell(t, kb22.Node, renumber)
	e2e.Await(t, "the sockets' move", func() bool { return strings.Contains(e2e.LogOf(t, d), `msg="sockets moved" address=192.168.14.99`) })
	e2e.AwaitNoFault(t, d)
	awaitLease(t, w, kb22, public)
}

// The MTU of the underlay is followed by the device and the subnet file.
func TestIntegrationUnderlayMTU(t *testing.T) {
	w := e2e.NewWorld(t, "kb21", "kb22")
	d := w.Start("kb21", "kb22")[1]
	kb22 := w.Host("kb22")
	e2e.Shell(t, kb22.Node, "ip link set eth0 mtu 1400")
	e2e.Await(t, "the device's MTU", func() bool {
		return strings.Contains(e2e.Command(t, kb22.Node, "ip link show flannel.1"), "mtu 1350")
	})
	e2e.Await(t, "the subnet file", func() bool { return e2e.SubnetFile(t, d.SubnetFile())["FLANNEL_MTU"] == "1350" })
	e2e.AwaitNoFault(t, d)
}

// Two daemons of one host whose networks overlap are one too many.
func TestIntegrationOverlappingNetworks(t *testing.T) {
	w := e2e.NewWorld(t, "kb21")
	w.Start("kb21")
	other := *w.Cluster
	other.Prefix, other.Dir = "/other", t.TempDir()
	for _, config := range []string{
		`{"Network":"172.7.128.0/17","Backend":{"Type":"vxlan","VNI":2,"Port":4790}}`,
		`{"Network":"172.0.0.0/8","SubnetLen":24,"Backend":{"Type":"host-gw"}}`,
	} {
		if err := other.SetConfig(w.Context(), config); err != nil {
			t.Fatal(err)
		}
		d, err := other.Start(t.Context(), w.Host("kb21"))
		if err != nil {
			t.Fatal(err)
		}
		if err := d.Ready(w.Context()); err == nil || !containsAll(err.Error(), []string{"overlapping network: 172.7.0.0/16 (pid ", "set another Network"}) {
			t.Errorf("%s: %v", config, err)
		}
	}
	e2e.Shell(t, w.Host("kb21").Node, "ip route get 172.7.99.9 | grep -q flannel.1")
}

// With direct routes of the kernel and strict reverse-path filters packets pass,
// though only one of two hosts finds the other on-link.
func TestIntegrationOneSidedDirectRoute(t *testing.T) {
	w := e2e.NewWorld(t, "kb21", "kb22")
	w.Configure(`{"Network":"172.7.0.0/16","Backend":{"Type":"vxlan","DirectRouting":true,"DirectMode":"route"}}`)
	for _, name := range []string{"kb21", "kb22"} {
		e2e.Shell(t, w.Host(name).Node, "sysctl -qw net.ipv4.conf.all.rp_filter=1 net.ipv4.conf.default.rp_filter=1 net.ipv4.conf.eth0.rp_filter=1")
	}
	kb22 := w.Host("kb22")
	e2e.Shell(t, kb22.Node, "ip addr flush dev eth0 scope global && ip addr add 192.168.14.22/32 dev eth0 && ip route add 192.168.14.1 dev eth0 && ip route add default via 192.168.14.1")
	daemons := w.Start("kb21", "kb22")
	w.Mesh("kb21", "kb22")
	paths := map[string]string{}
	for i, name := range []string{"kb21", "kb22"} {
		for _, p := range e2e.AskPeers(t, daemons[i]) {
			paths[name] = p.Path
		}
	}
	if paths["kb21"] != "direct" || paths["kb22"] != "vxlan" {
		t.Errorf("the paths are %v: nothing is shown", paths)
	}
	for _, d := range daemons {
		e2e.AwaitNoFault(t, d)
	}
}

func start(t *testing.T, w *e2e.World, h *lab.Host, args ...string) *cluster.Daemon {
	t.Helper()
	d, err := w.Cluster.Start(t.Context(), h, args...)
	if err != nil {
		t.Fatal(err)
	}
	if err := d.Ready(w.Context()); err != nil {
		t.Fatal(err)
	}
	return d
}

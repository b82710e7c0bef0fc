package host_test

import (
	"strings"
	"testing"

	"uvxlan/bench/e2e"
)

// What somebody changes of the device comes back, and packets pass again.
func TestIntegrationDeviceIsRepaired(t *testing.T) {
	w := e2e.NewWorld(t, "kb21", "kb22")
	d := w.Start("kb21", "kb22")[0]
	w.Mesh("kb21", "kb22")
	kb21 := w.Host("kb21")
	for _, c := range []struct{ change, repaired string }{
		{"ip link set flannel.1 down", "it is down"},
		{"ip link set flannel.1 down && ip link set flannel.1 up", "its route to 172.7.0.0/16 is missing"},
		{"ip route del 172.7.0.0/16", "its route to 172.7.0.0/16 is missing"},
		{"ip addr flush dev flannel.1", "its address 172.7.21.0 is missing"},
		{"ip link set flannel.1 mtu 1300", "its MTU is 1300, not 1450"},
		{"sysctl -qw net/ipv4/conf/flannel.1/forwarding=0", "net/ipv4/conf/flannel.1/forwarding is 0, not 1"},
	} {
		before := strings.Count(e2e.LogOf(t, d), "msg=repaired part=device")
		e2e.Shell(t, kb21.Node, c.change)
		e2e.Await(t, c.change+" is repaired", func() bool {
			log := e2e.LogOf(t, d)
			return strings.Count(log, "msg=repaired part=device") > before && strings.Contains(log, c.repaired)
		})
		e2e.AwaitNoFault(t, d)
		w.Mesh("kb21", "kb22")
	}
	e2e.Shell(t, kb21.Node, "ip link del flannel.1")
	w.Mesh("kb21", "kb22")
	e2e.AwaitNoFault(t, d)
}

// A deletion of the IPv6 address and route is one as well: the kernel does it when
// the device goes down.
func TestIntegrationDeviceIsRepairedIPv6(t *testing.T) {
	w := e2e.NewDualWorld(t, e2e.DualConfig, "kb21", "kb22")
	d := w.Start("kb21", "kb22")[0]
	w.DualMesh("kb21", "kb22")
	e2e.Shell(t, w.Host("kb21").Node, "ip link set flannel.1 down && ip link set flannel.1 up")
	w.DualMesh("kb21", "kb22")
	e2e.AwaitNoFault(t, d)
}

// The subnet file and the blackhole route come back, too.
func TestIntegrationSubnetFileIsRepaired(t *testing.T) {
	w := e2e.NewWorld(t, "kb21")
	d, err := w.Cluster.Start(t.Context(), w.Host("kb21"), "-ip-blackhole-route")
	if err != nil {
		t.Fatal(err)
	}
	if err := d.Ready(w.Context()); err != nil {
		t.Fatal(err)
	}
	want := e2e.Shell(t, w.Host("kb21").Node, "cat "+d.SubnetFile())
	for _, change := range []string{"rm ", "truncate -s 0 ", "sed -i s/1450/1500/ "} {
		e2e.Shell(t, w.Host("kb21").Node, change+d.SubnetFile())
		e2e.Await(t, change+"is repaired", func() bool {
			text, _ := w.Host("kb21").Run(t.Context(), "cat", d.SubnetFile())
			return string(text) == want
		})
	}
	e2e.Shell(t, w.Host("kb21").Node, "ip route del blackhole "+w.Host("kb21").Subnet.String())
	e2e.Await(t, "the blackhole route", func() bool {
		return strings.Contains(e2e.Command(t, w.Host("kb21").Node, "ip route show type blackhole"), w.Host("kb21").Subnet.String())
	})
	e2e.AwaitNoFault(t, d)
}

// What is the operator's is named with its remedy, and the host is ready again once
// he has followed it.
func TestIntegrationForwardingIsTold(t *testing.T) {
	w := e2e.NewWorld(t, "kb21", "kb22")
	daemons := w.Start("kb21", "kb22")
	w.Mesh("kb21", "kb22")
	kb22 := w.Host("kb22")
	e2e.Shell(t, kb22.Node, "sysctl -qw net.ipv4.ip_forward=0")
	line := e2e.AwaitWords(t, daemons[1], "reason", "doesn't forward IPv4", "sysctl -w net.ipv4.ip_forward=1")
	if s := e2e.AskStatus(t, daemons[1]); s.Ready {
		t.Errorf("ready, although %s", line)
	}
	_, remedy, _ := strings.Cut(line, "cut off: ")
	e2e.Shell(t, kb22.Node, remedy)
	e2e.AwaitNoFault(t, daemons[1])
	w.Mesh("kb21", "kb22")
}

// A bridge that an earlier lease left isn't passed over in silence.
func TestIntegrationForeignBridgeIsTold(t *testing.T) {
	w := e2e.NewWorld(t, "kb21")
	d := w.Start("kb21")[0]
	kb21 := w.Host("kb21")
	e2e.Shell(t, kb21.Node, "ip link add docker0 type bridge && ip addr add 172.7.99.1/24 dev docker0 && ip link set docker0 up")
	e2e.AwaitWords(t, d, "note", "docker0 has the address 172.7.99.1/24", "this host's subnet 172.7.21.0/24", "restart the container runtime")
	if s := e2e.AskStatus(t, d); !s.Ready {
		t.Error("not ready, although its own containers are connected")
	}
	e2e.Shell(t, kb21.Node, "ip link del docker0")
	e2e.AwaitNoFault(t, d)
}

package kubernetes_test

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"uvxlan/bench/cluster"
	"uvxlan/bench/e2e"
	"uvxlan/bench/lab"
	"uvxlan/lease/kube/kubetest"
)

// hosts are those of the lab, which has two networks.
var hosts = []string{"kb21", "kb22", "kb31"}

// A daemon that lacks something waits for it, and says for what, until it has it all.
func TestIntegrationWaits(t *testing.T) {
	w := newWorld(t)
	kb21 := w.Host("kb21")
	w.api.Down()
	d := w.StartHealthy("kb21")
	e2e.AwaitAnswer(t, kb21, "/readyz", 503, "waiting for Kubernetes", "does not answer", "kubernetes: ")
	w.api.Up(t)
	e2e.AwaitAnswer(t, kb21, "/readyz", 503, "there is no node kb21")
	w.api.CreateNode(t, "kb21")
	e2e.AwaitAnswer(t, kb21, "/readyz", 503, "waiting for the device and a lease", "no podCIDR yet", "kubernetes: up for")
	w.api.Assign(t, "kb21", "10.99.1.0/24")
	e2e.AwaitAnswer(t, kb21, "/readyz", 503, "10.99.1.0/24 doesn't lie in the Network 172.7.0.0/16")
	w.api.DeleteNode(t, "kb21")
	w.api.CreateNode(t, "kb21", kb21.Subnet.String())
	e2e.AwaitAnswer(t, kb21, "/readyz", 200, "lease: 172.7.21.0/24, assigned to node kb21")
	if n := w.api.Node(t, "kb21"); n.Metadata.Annotations[kubetest.Prefix+"public-ip"] != kb21.Address.String() || n.Unavailable() != "False" {
		t.Errorf("the node is %+v", n)
	}
	if text := subnetFile(t, d); !strings.Contains(text, "FLANNEL_SUBNET=172.7.21.1/24\n") {
		t.Errorf("the subnet file says %q", text)
	}
	if text := e2e.Command(t, kb21.Node, e2e.CommandBinary+" status -control-socket "+d.ControlSocket()); !strings.Contains(text, "kubernetes") || strings.Contains(text, "etcd") {
		t.Errorf("the status is\n%s", text)
	}
	e2e.End(t, unix.SIGTERM, d)
}

// Pods' packets go on, whatever happens to the API server and to the annotations.
func TestIntegrationTrafficGoesOn(t *testing.T) {
	w := newWorld(t, hosts...)
	daemons := w.Start(hosts...)
	w.Mesh(hosts...)
	stream := w.StartDatagrams(w.Container("kb21"), w.Container("kb31"))
	stream.Await(1000)

	// Somebody takes away what the daemon has written, or writes something else.
	mac := w.api.Node(t, "kb31").Metadata.Annotations[kubetest.Prefix+"backend-data"]
	before := w.api.Node(t, "kb31").Metadata.Annotations
	for _, change := range []map[string]any{
		{"kube-subnet-manager": nil, "backend-type": nil, "backend-data": nil, "public-ip": nil},
		{"backend-data": nil},
	} {
		w.api.Annotate(t, "kb31", change)
		e2e.Await(t, "the annotations' return", func() bool {
			now := w.api.Node(t, "kb31").Metadata.Annotations
			for name, value := range before {
				if now[name] != value {
					return false
				}
			}
			return true
		})
		stream.Await(1000)
	}
	// Another program takes the daemon's place, and its lease.
	begin := time.Now()
	if err := daemons[2].Process.Signal(unix.SIGUSR2); err != nil {
		t.Fatal(err)
	}
	e2e.AwaitLine(t, daemons[2], begin, "took over")
	e2e.AwaitStatus(t, daemons[2], "after the reload", func(s e2e.Status) bool { return s.Ready && s.Watch.Alive && s.Peers == 2 })
	stream.Await(1000)
	lists := w.api.Count("list")

	w.api.Down()
	for _, d := range daemons {
		e2e.AwaitStatus(t, d, "without the API server", func(s e2e.Status) bool {
			return s.Ready && strings.Contains(strings.Join(s.Notes, " "), "Kubernetes doesn't answer")
		})
	}
	stream.Await(1000)
	stream.End()

	// A daemon that dies meanwhile comes back by what it has stored.
	e2e.End(t, unix.SIGKILL, daemons[2])
	again, err := w.Cluster.Restart(t.Context(), w.Host("kb31"))
	if err != nil {
		t.Fatal(err)
	}
	e2e.Await(t, "a daemon without the API server", func() bool {
		s, err := e2e.TryStatus(w.Context(), again)
		return err == nil && s.Ready
	})
	w.Mesh(hosts...)
	w.api.Up(t)
	e2e.AwaitStatus(t, again, "with the API server", func(s e2e.Status) bool { return s.Ready && len(s.Notes) == 0 && s.Peers == 2 })
	w.Mesh(hosts...)
	if now := w.api.Node(t, "kb31").Metadata.Annotations[kubetest.Prefix+"backend-data"]; now != mac {
		t.Errorf("the backend's data was %s, and is %s", mac, now)
	}
	if n := w.api.Count("list") - lists; n != 1 {
		t.Errorf("after the outage there were %d lists, want that of the daemon that was started again", n)
	}
}

// What a Node's annotation says of its public address holds for the daemons that come
// after the first, too.
func TestIntegrationNodePublicIP(t *testing.T) {
	w := newWorld(t, "kb21")
	w.api.Annotate(t, "kb21", map[string]any{"node-public-ip": "203.0.113.9"})
	w.Cluster.Args = []string{"-iface", "eth0"} // which doesn't have that address
	d := w.Start("kb21")[0]
	published := func(when string, d *cluster.Daemon) {
		t.Helper()
		s := e2e.AwaitStatus(t, d, when, func(s e2e.Status) bool { return s.Ready && s.PID == d.Process.Pid })
		now := w.api.Node(t, "kb21").Metadata.Annotations[kubetest.Prefix+"public-ip"]
		if s.PublicIP.String() != "203.0.113.9" || now != "203.0.113.9" {
			t.Errorf("%s the public address is %s, and the Node says %s", when, s.PublicIP, now)
		}
	}
	published("at first", d)
	begin := time.Now()
	if err := d.Process.Signal(unix.SIGUSR2); err != nil {
		t.Fatal(err)
	}
	e2e.AwaitLine(t, d, begin, "took over")
	published("after a reload", d)
	next, err := w.Cluster.Restart(t.Context(), w.Host("kb21"), "-takeover")
	if err != nil {
		t.Fatal(err)
	}
	e2e.AwaitLine(t, next, begin, "this daemon's work is over")
	published("after a takeover", next)
}

// Nodes of both families join by both.
func TestIntegrationDualStack(t *testing.T) {
	w := newWorldOf(t, lab.Options{Hosts: lab.DualHosts(), ContainerMTU: e2e.DualMTU}, e2e.DualConfig, hosts...)
	daemons := w.Start(hosts...)
	w.DualMesh(hosts...)
	n := w.api.Node(t, "kb31").Metadata.Annotations
	for _, name := range []string{"public-ip", "public-ipv6", "backend-data", "backend-v6-data"} {
		if n[kubetest.Prefix+name] == "" {
			t.Errorf("there is no %s in %v", name, n)
		}
	}
	stream := w.StartDatagramsTo(w.Container("kb21").Node, w.Container("kb31").Node, w.Container("kb31").AddressV6)
	stream.Await(1000)
	w.api.Annotate(t, "kb31", map[string]any{"backend-v6-data": nil, "public-ipv6": nil})
	e2e.Await(t, "the annotations' return", func() bool {
		now := w.api.Node(t, "kb31").Metadata.Annotations
		return now[kubetest.Prefix+"backend-v6-data"] == n[kubetest.Prefix+"backend-v6-data"] && now[kubetest.Prefix+"public-ipv6"] == n[kubetest.Prefix+"public-ipv6"]
	})
	stream.Await(1000)
	stream.End()
	e2e.End(t, unix.SIGTERM, daemons...)
}

// A node that is deleted and registered anew gets another podCIDR, which its daemon takes
// by itself.
func TestIntegrationNodeRegistersAnew(t *testing.T) {
	w := newWorld(t, "kb21", "kb22")
	daemons := w.Start("kb21", "kb22")
	w.Mesh("kb21", "kb22")
	kb22 := w.Host("kb22")
	w.api.DeleteNode(t, "kb22")
	e2e.AwaitStatus(t, daemons[1], "without a node", func(s e2e.Status) bool {
		return !s.Ready && strings.Contains(strings.Join(s.Reasons, " "), "the other hosts don't send here")
	})
	e2e.AwaitStatus(t, daemons[0], "without the peer", func(s e2e.Status) bool { return s.Peers == 0 })
	w.api.CreateNode(t, "kb22", "172.7.77.0/24")
	e2e.AwaitStatus(t, daemons[1], "with the new podCIDR", func(s e2e.Status) bool {
		return s.Ready && s.Lease.Subnet == netip.MustParsePrefix("172.7.77.0/24")
	})
	e2e.AwaitStatus(t, daemons[0], "with the peer", func(s e2e.Status) bool { return s.Peers == 1 })
	e2e.AwaitLine(t, daemons[1], time.Time{}, "starting again with another subnet", kb22.Subnet.String())
	if text := subnetFile(t, daemons[1]); !strings.Contains(text, "FLANNEL_SUBNET=172.7.77.1/24\n") {
		t.Errorf("the subnet file says %q", text)
	}
	e2e.End(t, unix.SIGTERM, daemons...)
}

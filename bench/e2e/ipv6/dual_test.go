package ipv6_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"strings"
	"testing"
	"time"

	"uvxlan/bench/e2e"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"uvxlan/bench/cluster"
	"uvxlan/bench/lab"
	"uvxlan/lease"
	"uvxlan/tunnel"
)

// dualDatagrams sends datagrams of both families from one container to another.
func dualDatagrams(w *e2e.World, from, to string) {
	w.T.Helper()
	for _, at := range e2e.AddressesOf(w.Host(to)) {
		w.SendDatagrams(w.Container(from).Node, w.Container(to).Node, at)
	}
}

// Containers of both families side by side on one device, across a router too;
// the lease, the subnet file and the command tell of both; a restart keeps them
// and nothing stays.
func TestIntegrationDualStack(t *testing.T) {
	w := e2e.NewDualWorld(t, e2e.DualConfig)
	kb21, kb31 := w.Host("kb21"), w.Host("kb31")
	before := e2e.SettledState(t, kb21)
	d := w.Start("kb21", "kb22", "kb31")[0]
	w.DualMesh("kb21", "kb22", "kb31")
	w.DualTransfer(t, "kb21", "kb22", 16<<20)
	w.DualTransfer(t, "kb31", "kb21", 16<<20)
	dualDatagrams(w, "kb21", "kb31")
	for _, at := range e2e.AddressesOf(kb31) {
		if _, err := cluster.ReachAt(w.Context(), kb21.Node, kb31.Container.Node, at, e2e.DualMTU); err != nil {
			t.Error(err) // from the host itself
		}
	}
	tooBig(w, t)
	tellsOfBoth(w, t, d)

	first := w.LeaseOf("kb21")
	for _, signal := range []unix.Signal{unix.SIGTERM, unix.SIGKILL} {
		e2e.End(t, signal, d)
		d = w.Start("kb21")[0]
		w.DualMesh("kb21", "kb22")
		if l := w.LeaseOf("kb21"); !l.Equal(first) {
			t.Errorf("after %s the lease was %+v and is %+v", signal, first, l)
		}
	}
	e2e.End(t, unix.SIGKILL, d)
	t.Log(e2e.Command(t, kb21.Node, e2e.CommandBinary+" cleanup -state-dir "+d.StateDir()))
	e2e.ExpectState(t, kb21, before, "after the cleanup")
	awaitRoutesV6(t, kb21)
}

// tooBig sends what containers with another MTU may: the host says how much fits.
func tooBig(w *e2e.World, t *testing.T) {
	t.Helper()
	kb21 := w.Host("kb21")
	for _, link := range []struct {
		node *lab.Node
		name string
	}{{kb21.Node, "cni0"}, {kb21.Node, "veth-c1"}, {kb21.Container.Node, "eth0"}} {
		e2e.Command(t, link.node, "ip link set "+link.name+" mtu 1500")
		defer e2e.Command(t, link.node, fmt.Sprintf("ip link set %s mtu %d", link.name, e2e.DualMTU))
	}
	for _, at := range e2e.AddressesOf(w.Host("kb22")) {
		if _, err := kb21.Container.Ping(w.Context(), at, e2e.DualMTU+1); !errors.Is(err, unix.EMSGSIZE) {
			t.Errorf("%d bytes to %s: %v", e2e.DualMTU+1, at, err)
		}
	}
}

// tellsOfBoth looks at what kb21's daemon tells of itself and its peers.
func tellsOfBoth(w *e2e.World, t *testing.T, d *cluster.Daemon) {
	t.Helper()
	h := d.Host
	file := e2e.SubnetFile(t, d.SubnetFile())
	want := map[string]string{
		"FLANNEL_NETWORK": "172.7.0.0/16", "FLANNEL_SUBNET": "172.7.21.1/24",
		"FLANNEL_IPV6_NETWORK": "fd00:7::/56", "FLANNEL_IPV6_SUBNET": "fd00:7:0:21::1/64",
		"FLANNEL_MTU": "1430", "FLANNEL_IPMASQ": "false",
	}
	if !maps.Equal(file, want) {
		t.Errorf("the subnet file says %v, want %v", file, want)
	}
	l := w.LeaseOf(h.Name)
	if l.IPv6Subnet != h.IPv6.Subnet || l.Attrs.PublicIPv6 != h.IPv6.Underlay.Addr() || string(l.Attrs.BackendV6Data) != string(l.Attrs.BackendData) {
		t.Errorf("the lease is %s, with %+v", l.Key(), l.Attrs)
	}
	for line, words := range map[string][]string{
		" status -control-socket " + d.ControlSocket():         {h.Subnet.String() + " and " + h.IPv6.Subnet.String(), "192.168.14.21 and fd00:14::21", "peers        4"},
		" peers -control-socket " + d.ControlSocket():          {"fd00:7:0:22::/64  fd00:14::22", "fd00:7:0:31::/64  fd00:15::31", "172.7.31.0/24"},
		" leases -etcd-endpoints " + w.Cluster.Endpoint:        {"172.7.31.0/24 fd00:7:0:31::/64", "192.168.15.31 fd00:15::31"},
		" status -o json -control-socket " + d.ControlSocket(): {`"ipv6_subnet": "fd00:7:0:21::/64"`, `"ipv6_network": "fd00:7::/56"`, `"public_ipv6": "fd00:14::21"`, `"fallbacks": 0,`},
	} {
		said := e2e.Command(t, w.Host("kb21").Node, e2e.CommandBinary+line)
		for _, word := range words {
			if !strings.Contains(said, word) {
				t.Errorf("uvxlan%s doesn't say %q:\n%s", line, word, said)
			}
		}
	}
}

// awaitRoutesV6 is awaitRoutes for IPv6; each route is told without its metric.
func awaitRoutesV6(t *testing.T, h *lab.Host, want ...string) {
	t.Helper()
	var got []string
	for end := time.Now().Add(e2e.Patience); time.Now().Before(end); {
		got = nil
		for line := range strings.Lines(e2e.Command(t, h.Node, "ip -6 route show proto 89")) {
			route, _, _ := strings.Cut(line, " metric ")
			got = append(got, strings.Join(strings.Fields(route), " "))
		}
		if strings.Join(got, "\n") == strings.Join(want, "\n") {
			return
		}
	}
	t.Fatalf("%s has the IPv6 routes %q, want %q", h.Name, got, want)
}

func routeToV6(h *lab.Host) string {
	return fmt.Sprintf("%s via %s dev eth0", h.IPv6.Subnet, h.IPv6.Underlay.Addr())
}

// A host with uvxlan and one whose kernel speaks VXLAN, with a device for each
// family as flannel makes them. The kernel takes no IPv6 datagram without a
// checksum.
func TestIntegrationDualKernelPeer(t *testing.T) {
	w := e2e.NewDualWorld(t, e2e.DualConfig)
	w.Start("kb21")
	for _, kind := range []lab.Offload{lab.Veth, lab.NIC, lab.NICGRO, lab.NICPlain} {
		t.Run(kind.String(), func(t *testing.T) {
			if err := w.SetOffloads(kind); err != nil {
				t.Fatal(err)
			}
			peer := dualKernelPeer(w, t, "kb22")
			w.DualMesh("kb21", "kb22")
			w.DualTransfer(t, "kb21", "kb22", 16<<20)
			if kind == lab.NICPlain {
				dualDatagrams(w, "kb22", "kb21")
				checksums(w, t, peer.Host)
				asksForNeighbour(w, t, peer)
			}
		})
	}
	t.Run("behind a router", func(t *testing.T) {
		dualKernelPeer(w, t, "kb31")
		w.DualMesh("kb21", "kb31")
		w.DualTransfer(t, "kb21", "kb31", 16<<20)
	})
}

// dualKernelPeer makes a host a kernel peer of kb21 until the test ends.
func dualKernelPeer(w *e2e.World, t *testing.T, host string) *e2e.KernelPeer {
	t.Helper()
	peer := e2e.NewKernelPeer(t, w.Host(host))
	peer.AddV6()
	t.Cleanup(peer.Remove)
	peer.Learn(w.LeaseOf("kb21"))
	registry := w.Registry()
	l, err := registry.Create(w.Context(), peer.Lease(), time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := registry.Delete(w.Context(), l); err != nil {
			t.Error(err)
		}
	})
	return peer
}

// A host changes over from flanneld, which leaves both of its devices: they go,
// the lease stays, and the peers are told the one MAC.
func TestIntegrationDualTakeOver(t *testing.T) {
	w := e2e.NewDualWorld(t, e2e.DualConfig, "kb21", "kb22")
	w.Start("kb21")
	peer := e2e.NewKernelPeer(t, w.Host("kb22"))
	peer.AddV6()
	peer.Learn(w.LeaseOf("kb21"))
	before, err := w.Registry().Create(w.Context(), peer.Lease(), time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	w.DualMesh("kb21", "kb22")
	w.Start("kb22")
	w.DualMesh("kb21", "kb22")
	now := w.LeaseOf("kb22")
	v6, err := tunnel.PeerV6FromLease(now)
	if err != nil || now.Key() != before.Key() || v6.MAC != peer.Mac || string(now.Attrs.BackendV6Data) != string(now.Attrs.BackendData) {
		t.Errorf("the lease %s with %+v became %s with %+v, %v", before.Key(), before.Attrs, now.Key(), now.Attrs, err)
	}
	if links := e2e.Command(t, peer.Host.Node, "ip -o link show type vxlan"); links != "" {
		t.Errorf("left are %s", links)
	}
}

// What is wrong with a host's IPv6 is found before a lease is taken.
func TestIntegrationDualStartErrors(t *testing.T) {
	w := e2e.NewDualWorld(t, e2e.DualConfig, "kb21")
	kb21 := w.Host("kb21")
	hostGW := strings.Replace(e2e.DualConfig, "VxLAN", "host-gw", 1)
	for _, c := range []struct {
		name, config  string
		prepare, undo string
		args, want    []string
	}{
		{"small MTU", e2e.DualConfig, "ip link set eth0 mtu 1340", "ip link set eth0 mtu 1500", nil, []string{"leaves 1270 bytes", "raise it to 1350"}},
		{"loop", e2e.DualConfig, "", "", []string{"-public-ipv6=fd00:7:0:99::1"}, []string{"fd00:7:0:99::1 lies inside the overlay network fd00:7::/56", "-public-ipv6"}},
		{"NAT and host-gw", hostGW, "", "", []string{"-public-ipv6=2001:db8::1"}, []string{"host-gw: the public address 2001:db8::1", "fd00:14::21"}},
		{"port in use", e2e.DualConfig, "ip link add other6 up type vxlan id 9 dstport 4789 local fd00:14::21 dev eth0", "ip link del other6", nil, []string{"bind [fd00:14::21]:4789", "the port is in use"}},
		{"route in the way", e2e.DualConfig, "ip -6 route add fd00:7::/56 dev eth0", "ip -6 route del fd00:7::/56 dev eth0", nil, []string{"fd00:7::/56", "the route exists"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			w.Configure(c.config)
			if c.prepare != "" {
				e2e.Command(t, kb21.Node, c.prepare)
				defer e2e.Command(t, kb21.Node, c.undo)
			}
			d, err := w.Cluster.Start(t.Context(), kb21, c.args...)
			if err != nil {
				t.Fatal(err)
			}
			if err := d.Wait(); err == nil {
				t.Error("it ended without an error")
			}
			lines := strings.Split(strings.TrimSpace(e2e.LogOf(t, d)), "\n")
			last := lines[len(lines)-1]
			for _, want := range c.want {
				if !strings.Contains(last, want) {
					t.Errorf("the line doesn't say %q: %s", want, last)
				}
			}
			if leases, _, err := w.Registry().List(w.Context()); err != nil || len(leases) != 0 {
				t.Errorf("it took a lease nevertheless: %v, %v", leases, err)
			}
		})
	}
}

// checksums reads what arrives at a host that fills in nothing: every outer and
// every inner checksum is right, and the outer hop limit is 64.
func checksums(w *e2e.World, t *testing.T, h *lab.Host) {
	t.Helper()
	if err := h.SetFeatures("eth0", map[string]bool{"rx-gro": false}); err != nil {
		t.Fatal(err)
	}
	dump := h.Command(w.Context(), "tcpdump", "-nvv", "-i", "eth0", "-c", "1000", "-s", "0", "--direction=in", "ip6 and udp port 4789")
	var out strings.Builder
	dump.Stdout, dump.Stderr = &out, &out
	if err := dump.Start(); err != nil {
		t.Fatal(err)
	}
	go func() { _ = dump.Wait() }() // closes Done
	to := h.Container
	datagrams := w.StartDatagramsTo(w.Container("kb21").Node, to.Node, to.AddressV6)
	for captured := false; !captured; {
		w.DualTransfer(t, "kb21", h.Name, 1<<20)
		select {
		case <-dump.Done():
			captured = true
		default:
		}
	}
	datagrams.End()
	if err := dump.Wait(); err != nil {
		t.Fatalf("%v: %s", err, out.String())
	}
	outer, inner := 0, 0
	for line := range strings.Lines(out.String()) {
		switch {
		case strings.Contains(line, "incorrect"), strings.Contains(line, "bad udp cksum"), strings.Contains(line, "no cksum"):
			t.Error(line)
		case strings.Contains(line, "[udp sum ok] VXLAN"):
			outer++
		case strings.Contains(line, "(correct)"), strings.Contains(line, "udp sum ok"):
			inner++
		}
	}
	t.Logf("%d outer and %d inner checksums are right", outer, inner)
	if outer != 1000 || inner < 950 {
		t.Errorf("%d outer and %d inner checksums of 1000 packets are right:\n%.2000s", outer, inner, out.String())
	}
}

// asksForNeighbour has the kernel ask for our VTEP, which answers.
func asksForNeighbour(w *e2e.World, t *testing.T, p *e2e.KernelPeer) {
	t.Helper()
	ours, err := tunnel.PeerV6FromLease(w.LeaseOf("kb21"))
	if err != nil {
		t.Fatal(err)
	}
	nl, index := p.Host.Netlink(), p.V6.Attrs().Index
	p.Must("remove neighbour", nl.NeighDel(&netlink.Neigh{LinkIndex: index, IP: ours.Subnet.Addr().AsSlice()}))
	p.Must("add broadcast entry", nl.NeighAppend(&netlink.Neigh{
		LinkIndex: index, State: netlink.NUD_PERMANENT, Family: unix.AF_BRIDGE,
		Flags: netlink.NTF_SELF, IP: ours.Underlay.AsSlice(), HardwareAddr: make([]byte, 6),
	}))
	w.DualMesh("kb21", "kb22")
	neighbours, err := nl.NeighList(index, netlink.FAMILY_V6)
	p.Must("list neighbours", err)
	for _, n := range neighbours {
		if n.IP.Equal(ours.Subnet.Addr().AsSlice()) && n.HardwareAddr.String() == ours.MAC.String() && n.State&netlink.NUD_PERMANENT == 0 {
			return
		}
	}
	t.Errorf("the kernel's neighbours are %v, want %s at %s", neighbours, ours.Subnet.Addr(), ours.MAC)
}

// Each family takes its best path by itself: plainly to hosts of the same
// network, by VXLAN to those behind the router and when the way changes.
func TestIntegrationDualHybrid(t *testing.T) {
	for name, mode := range map[string]string{"socket": "socket", "route": "route"} {
		t.Run(name, func(t *testing.T) {
			w := e2e.NewDualWorld(t, `{`+e2e.DualNetworks+`,"Backend":{"Type":"VxLAN","DirectRouting":true,"DirectMode":"`+mode+`"}}`)
			d := w.Start("kb21", "kb22", "kb31")[0]
			kb21, kb22 := w.Host("kb21"), w.Host("kb22")
			w.DualMesh("kb21", "kb22", "kb31")
			v6 := "subnet=" + kb22.IPv6.Subnet.String()
			e2e.AwaitLine(t, d, time.Time{}, v6, "direct now", "public_ip=fd00:14::22", "via=")
			e2e.AwaitPath(t, d, kb22, "direct now", time.Time{})
			network := "fd00:7::/56 dev flannel.1 src fd00:7:0:21::"
			if mode == "route" {
				awaitRoutesV6(t, kb21, routeToV6(kb22), network)
			} else {
				awaitRoutesV6(t, kb21, network)
			}
			seen := watchTrafficV6(t, kb21)
			w.DualTransfer(t, "kb21", "kb22", 8<<20)
			if plain, wrapped := seen.count(kb22); plain == 0 || wrapped > 0 {
				t.Errorf("to kb22 %d packets plain, %d in VXLAN", plain, wrapped)
			}
			w.DualTransfer(t, "kb21", "kb31", 8<<20)
			if plain, wrapped := seen.count(w.Host("kb31")); plain > 0 || wrapped == 0 {
				t.Errorf("to kb31 %d packets plain, %d in VXLAN", plain, wrapped)
			}

			begin := time.Now()
			detour := "fd00:14::22/128 via fd00:14::1 dev eth0"
			e2e.Command(t, kb21.Node, "ip -6 route add "+detour)
			e2e.AwaitLine(t, d, begin, v6, "back to vxlan", "reason=\"via gateway fd00:14::1\"")
			w.DualMesh("kb21", "kb22")
			e2e.Command(t, kb21.Node, "ip -6 route del "+detour)
			e2e.AwaitLine(t, d, begin, v6, "direct now")
			w.DualMesh("kb21", "kb22")
			if n := strings.Count(e2e.LogOf(t, d), "subnet="+kb22.Subnet.String()+" public_ip=192.168.14.22 via="); n != 1 {
				t.Errorf("IPv4 became direct %d times", n)
			}
			e2e.End(t, unix.SIGTERM, d)
			awaitRoutesV6(t, kb21)
		})
	}
}

// watchTrafficV6 is watchTraffic for IPv6.
func watchTrafficV6(t *testing.T, h *lab.Host) trafficV6 {
	t.Helper()
	c, err := h.Capture(t.Context(), "eth0", func(p lab.Packet) bool {
		_, _, _, ok := p.IPv6()
		return ok
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return trafficV6{c, t}
}

type trafficV6 struct {
	capture *lab.Capture
	t       *testing.T
}

// count returns how many packets went to or came from the host's containers
// plainly, and how many went to or came from the host in UDP.
func (c trafficV6) count(far *lab.Host) (plain, wrapped int) {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(c.t.Context(), e2e.Patience)
	defer cancel()
	if err := c.capture.Settle(ctx); err != nil {
		c.t.Fatal(err)
	}
	if n, err := c.capture.Drops(); n > 0 || err != nil {
		c.t.Errorf("the capture missed %d packets: %v", n, err)
	}
	for _, p := range c.capture.Packets() {
		src, dst, next, _ := p.IPv6()
		host := far.IPv6.Underlay.Addr()
		switch {
		case far.IPv6.Subnet.Contains(src), far.IPv6.Subnet.Contains(dst):
			plain++
		case next == unix.IPPROTO_UDP && (src == host || dst == host):
			wrapped++
		}
	}
	return plain, wrapped
}

// host-gw has routes of both families, which stay when the daemon stops.
func TestIntegrationDualHostGW(t *testing.T) {
	w := e2e.NewDualWorld(t, `{`+e2e.DualNetworks+`,"Backend":{"Type":"host-gw"}}`, "kb21", "kb22")
	d := w.Start("kb21", "kb22")[0]
	kb21, kb22 := w.Host("kb21"), w.Host("kb22")
	w.DualMesh("kb21", "kb22")
	awaitRoutesV6(t, kb21, routeToV6(kb22))
	e2e.AwaitRoutes(t, kb21, e2e.RouteTo(kb22))
	w.DualTransfer(t, "kb21", "kb22", 16<<20)
	if l := w.LeaseOf("kb21"); !l.Attrs.Equal(lease.Attrs{PublicIP: kb21.Address, PublicIPv6: kb21.IPv6.Underlay.Addr(), BackendType: lease.TypeHostGW}) {
		t.Errorf("the lease says %+v", l.Attrs)
	}
	e2e.End(t, unix.SIGTERM, d)
	awaitRoutesV6(t, kb21, routeToV6(kb22))
	said := e2e.Command(t, kb21.Node, e2e.CommandBinary+" cleanup -state-dir "+d.StateDir())
	if !strings.Contains(said, "removed route "+routeToV6(kb22)) {
		t.Errorf("the cleanup says\n%s", said)
	}
	awaitRoutesV6(t, kb21)
}

// What host-gw has left of both families goes when the model changes.
func TestIntegrationDualSwitch(t *testing.T) {
	w := e2e.NewDualWorld(t, `{`+e2e.DualNetworks+`,"Backend":{"Type":"host-gw"}}`, "kb21", "kb22")
	daemons := w.Start("kb21", "kb22")
	kb21, kb22 := w.Host("kb21"), w.Host("kb22")
	w.DualMesh("kb21", "kb22")
	e2e.End(t, unix.SIGTERM, daemons...)
	awaitRoutesV6(t, kb21, routeToV6(kb22))
	w.Configure(e2e.DualConfig)
	w.Start("kb21", "kb22")
	w.DualMesh("kb21", "kb22")
	awaitRoutesV6(t, kb21, "fd00:7::/56 dev flannel.1 src fd00:7:0:21::")
	e2e.AwaitRoutes(t, kb21, "172.7.0.0/16 dev flannel.1 scope link src "+kb21.Subnet.Addr().String())
}

// Masquerading, the forward rules and the blackhole route are there for IPv6 as
// for IPv4, and the cleanup removes them.
func TestIntegrationDualFirewall(t *testing.T) {
	w := e2e.NewDualWorld(t, e2e.DualConfig, "kb21", "kb31")
	kb21, kb31 := w.Host("kb21"), w.Host("kb31")
	for _, c := range []struct {
		name, config, policy, left string
		leftover                   []string
	}{
		{
			"iptables", e2e.DualConfig, "ip6tables -P FORWARD DROP", "ip6tables -t nat -S FLANNEL-POSTRTG",
			[]string{"removed ip6tables chain FLANNEL-POSTRTG of table nat", "removed ip6tables chain FLANNEL-FWD of table filter"},
		},
		{
			"nftables", strings.Replace(e2e.DualConfig, "{", `{"EnableNFTables":true,`, 1), "ip6tables -P FORWARD ACCEPT", "nft list table ip6 flannel-ipv6",
			[]string{"removed nftables table flannel-ipv6"},
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			w.Configure(c.config)
			for _, h := range w.Hosts() {
				e2e.Command(t, h.Node, c.policy)
			}
			w.Cluster.Args = []string{"-ip-masq", "-ip-blackhole-route"}
			daemons := w.Start("kb21", "kb31")
			w.DualMesh("kb21", "kb31")
			if got := e2e.SeenFrom(t, kb21.Container.Node, w.Router(), kb21.IPv6.Gateway); got != kb21.IPv6.Underlay.Addr() {
				t.Errorf("the router sees %s, want the host's %s", got, kb21.IPv6.Underlay.Addr())
			}
			if got := e2e.SeenFrom(t, kb21.Container.Node, kb31.Container.Node, kb31.Container.AddressV6); got != kb21.Container.AddressV6 {
				t.Errorf("a container of the other host sees %s, want the container's own %s", got, kb21.Container.AddressV6)
			}
			blackhole := "blackhole " + kb21.IPv6.Subnet.String()
			if routes := e2e.Command(t, kb21.Node, "ip -6 route show"); !strings.Contains(routes, blackhole) {
				t.Errorf("no %s in\n%s", blackhole, routes)
			}
			for _, d := range daemons {
				if err := d.Stop(w.Context()); err != nil {
					t.Error(err)
				}
				said := e2e.Command(t, d.Host.Node, e2e.CommandBinary+" cleanup -state-dir "+d.StateDir())
				for _, line := range c.leftover {
					if !strings.Contains(said, line+"\n") {
						t.Errorf("the cleanup doesn't say %q:\n%s", line, said)
					}
				}
				if _, err := d.Host.Run(t.Context(), "sh", "-c", c.left); err == nil {
					t.Errorf("the cleanup leaves\n%s", e2e.Command(t, d.Host.Node, c.left))
				}
			}
			if routes := e2e.Command(t, kb21.Node, "ip -6 route show"); strings.Contains(routes, "blackhole") {
				t.Errorf("after the daemon there is\n%s", routes)
			}
		})
	}
}

// IPv6 comes to a network and goes again: IPv4 stays as it was, and nothing of
// IPv6 is left.
func TestIntegrationIPv6ComesAndGoes(t *testing.T) {
	w := e2e.NewDualWorld(t, e2e.VXLANConfig, "kb21", "kb22")
	kb21 := w.Host("kb21")
	before := e2e.SettledState(t, kb21)
	e2e.Command(t, w.Host("kb22").Node, "sysctl -q -w net.ipv6.conf.all.forwarding=0")
	for _, config := range []string{e2e.VXLANConfig, e2e.DualConfig, e2e.VXLANConfig} {
		w.Configure(config)
		daemons := w.Start("kb21", "kb22")
		mesh4(w, "kb21", "kb22")
		if config == e2e.DualConfig {
			if _, err := cluster.ReachAt(w.Context(), kb21.Node, w.Host("kb22").Node, w.Host("kb22").IPv6.Subnet.Addr(), e2e.DualMTU); err != nil {
				t.Error(err) // from one end of the overlay to the other
			}
			e2e.AwaitLine(t, daemons[1], time.Time{}, "level=WARN", "net.ipv6.conf.all.forwarding=1")
		}
		for _, d := range daemons {
			if l := w.LeaseOf(d.Host.Name); l.IPv6Subnet.IsValid() != (config == e2e.DualConfig) {
				t.Errorf("%s: the lease is %s", config, l.Key())
			}
		}
		if all, _, err := w.Registry().List(w.Context()); err != nil || len(all) != 2 {
			t.Errorf("%s: the leases are %v, %v", config, all, err)
		}
		e2e.End(t, unix.SIGTERM, daemons...)
	}
	e2e.ExpectState(t, kb21, before, "at the end")
	awaitRoutesV6(t, kb21)
}

// The rules of IPv6 go with it, as the subnet file tells of them.
func TestIntegrationIPv6RulesGo(t *testing.T) {
	w := e2e.NewDualWorld(t, e2e.DualConfig, "kb21")
	kb21 := w.Host("kb21")
	d, err := w.Cluster.Start(t.Context(), kb21, "-ip-masq")
	if err != nil {
		t.Fatal(err)
	}
	if err := d.Ready(w.Context()); err != nil {
		t.Fatal(err)
	}
	e2e.End(t, unix.SIGTERM, d)
	if rules := e2e.Command(t, kb21.Node, "ip6tables-save"); strings.Count(rules, "fd00:7:0:21::/64") == 0 || !strings.Contains(rules, "FLANNEL-FWD") {
		t.Fatalf("the rules are\n%s", rules)
	}
	w.Configure(e2e.VXLANConfig)
	c, out := e2e.NewCommand(t, w, e2e.DaemonBinary, "-ip-masq", "-subnet-file", d.SubnetFile(), "-state-dir", d.StateDir(),
		"-control-socket", d.ControlSocket(), "-etcd-endpoints", w.Cluster.Endpoint)
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	for ctx := w.Context(); ; time.Sleep(5 * time.Millisecond) {
		if file := e2e.SubnetFile(t, d.SubnetFile()); file["FLANNEL_IPV6_NETWORK"] == "" && file["FLANNEL_NETWORK"] == "172.7.0.0/16" {
			break
		}
		if ctx.Err() != nil {
			t.Fatalf("it isn't ready: %v: %s", c.Stop(ctx), out)
		}
	}
	if err := c.Stop(w.Context()); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if rules := e2e.Command(t, kb21.Node, "ip6tables-save"); strings.Contains(rules, "FLANNEL") || strings.Contains(rules, "fd00:") {
		t.Errorf("without IPv6 the rules are\n%s", rules)
	}
	if rules := e2e.Command(t, kb21.Node, "iptables-save"); !strings.Contains(rules, "172.7.21.0/24") {
		t.Errorf("the IPv4 rules are\n%s", rules)
	}
}

// mesh4 is dualMesh for IPv4 alone.
func mesh4(w *e2e.World, a, b string) {
	w.T.Helper()
	for _, ends := range [][2]string{{a, b}, {b, a}} {
		if _, err := cluster.Reach(w.Context(), w.Container(ends[0]).Node, w.Container(ends[1]), e2e.DualMTU); err != nil {
			w.T.Fatal(err)
		}
	}
}

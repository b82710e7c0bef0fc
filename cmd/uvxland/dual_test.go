package main

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"uvxlan/bench/cluster"
	"uvxlan/bench/iperf"
	"uvxlan/bench/lab"
	"uvxlan/cmd/internal/subnetfile"
	"uvxlan/lease"
	"uvxlan/tunnel"
)

const (
	dualNetworks = `"EnableIPv6":true,"Network":"172.7.0.0/16","IPv6Network":"fd00:7::/56"`
	dualConfig   = `{` + dualNetworks + `,"Backend":{"Type":"VxLAN"}}`
	// dualMTU is what an IPv6 underlay of 1500 bytes leaves.
	dualMTU = 1430
)

// newDualWorld makes hosts that have both families.
func newDualWorld(t *testing.T, config string, hosts ...string) *world {
	t.Helper()
	return newWorldOf(t, lab.Options{Hosts: named(lab.DualHosts(), hosts), ContainerMTU: dualMTU}, config)
}

// addressesOf are the container's, of both families.
func addressesOf(h *lab.Host) []netip.Addr {
	return []netip.Addr{h.Container.Address, h.Container.AddressV6}
}

// dualMesh waits until the containers of the hosts reach each other by both
// families, with the longest packets.
func (w *world) dualMesh(names ...string) {
	w.t.Helper()
	for _, from := range names {
		for _, to := range names {
			if from == to {
				continue
			}
			for _, at := range addressesOf(w.Host(to)) {
				if _, err := cluster.ReachAt(w.context(), w.container(from).Node, w.container(to).Node, at, dualMTU); err != nil {
					w.t.Fatal(err)
				}
			}
		}
	}
}

// dualTransfer sends bytes both ways and by both families.
func (w *world) dualTransfer(t *testing.T, a, b string, size int64) {
	t.Helper()
	for _, ends := range [][2]string{{a, b}, {b, a}} {
		for _, at := range addressesOf(w.Host(ends[1])) {
			if err := checkedTransferTo(w.container(ends[0]).Node, w.container(ends[1]).Node, at, size); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// dualFlows measures both families from one container to another.
func (w *world) dualFlows(t *testing.T, from, to string) {
	t.Helper()
	server, client := w.container(to).Node, w.container(from).Node
	for _, at := range addressesOf(w.Host(to)) {
		tcp := iperfRun(t, iperf.Test{Server: server, Client: client, To: at, Duration: time.Second})
		udp := iperfRun(t, iperf.Test{Server: server, Client: client, To: at, Duration: time.Second, UDP: true, Bandwidth: 50e6, Length: 1300})
		t.Logf("%s -> %s: TCP %.2f Gbit/s; UDP %d datagrams, %d lost", from, at, tcp.BitsPerSecond/1e9, udp.Packets, udp.Lost)
		if tcp.Bytes == 0 || udp.Packets == 0 || udp.Lost*1000 > udp.Packets {
			t.Errorf("%s -> %s: TCP %+v, UDP %+v", from, at, tcp, udp)
		}
	}
}

// Containers of both families side by side on one device, across a router too;
// the lease, the subnet file and the command tell of both; a restart keeps them
// and nothing stays.
func TestIntegrationDualStack(t *testing.T) {
	w := newDualWorld(t, dualConfig)
	kb21, kb31 := w.Host("kb21"), w.Host("kb31")
	before := settledState(t, kb21)
	d := w.start("kb21", "kb22", "kb31")[0]
	w.dualMesh("kb21", "kb22", "kb31")
	w.dualTransfer(t, "kb21", "kb22", 64<<20)
	w.dualTransfer(t, "kb31", "kb21", 64<<20)
	w.dualFlows(t, "kb21", "kb31")
	for _, at := range addressesOf(kb31) {
		if _, err := cluster.ReachAt(w.context(), kb21.Node, kb31.Container.Node, at, dualMTU); err != nil {
			t.Error(err) // from the host itself
		}
	}
	w.tooBig(t)
	w.tellsOfBoth(t, d)

	first := w.leaseOf("kb21")
	for _, signal := range []unix.Signal{unix.SIGTERM, unix.SIGKILL} {
		end(t, signal, d)
		d = w.start("kb21")[0]
		w.dualMesh("kb21", "kb22")
		if l := w.leaseOf("kb21"); !l.Equal(first) {
			t.Errorf("after %s the lease was %+v and is %+v", signal, first, l)
		}
	}
	end(t, unix.SIGKILL, d)
	t.Log(command(t, kb21.Node, commandBinary+" cleanup -state-dir "+d.StateDir()))
	expectState(t, kb21, before, "after the cleanup")
	awaitRoutesV6(t, kb21)
}

// tooBig sends what containers with another MTU may: the host says how much fits.
func (w *world) tooBig(t *testing.T) {
	t.Helper()
	kb21 := w.Host("kb21")
	for _, link := range []struct {
		node *lab.Node
		name string
	}{{kb21.Node, "cni0"}, {kb21.Node, "veth-c1"}, {kb21.Container.Node, "eth0"}} {
		command(t, link.node, "ip link set "+link.name+" mtu 1500")
		defer command(t, link.node, fmt.Sprintf("ip link set %s mtu %d", link.name, dualMTU))
	}
	for _, at := range addressesOf(w.Host("kb22")) {
		if _, err := kb21.Container.Ping(w.context(), at, dualMTU+1); !errors.Is(err, unix.EMSGSIZE) {
			t.Errorf("%d bytes to %s: %v", dualMTU+1, at, err)
		}
	}
}

// tellsOfBoth looks at what kb21's daemon tells of itself and its peers.
func (w *world) tellsOfBoth(t *testing.T, d *cluster.Daemon) {
	t.Helper()
	h := d.Host
	file, err := subnetfile.Read(d.SubnetFile())
	want := subnetfile.File{
		Network: overlayNetwork, Subnet: h.Subnet, NetworkV6: netip.MustParsePrefix("fd00:7::/56"), SubnetV6: h.IPv6.Subnet, MTU: dualMTU,
	}
	if err != nil || file != want {
		t.Errorf("the subnet file says %+v, want %+v, %v", file, want, err)
	}
	l := w.leaseOf(h.Name)
	if l.IPv6Subnet != h.IPv6.Subnet || l.Attrs.PublicIPv6 != h.IPv6.Underlay.Addr() || string(l.Attrs.BackendV6Data) != string(l.Attrs.BackendData) {
		t.Errorf("the lease is %s, with %+v", l.Key(), l.Attrs)
	}
	for line, words := range map[string][]string{
		" status -control-socket " + d.ControlSocket():         {h.Subnet.String() + " and " + h.IPv6.Subnet.String(), "192.168.14.21 and fd00:14::21", "peers        4"},
		" peers -control-socket " + d.ControlSocket():          {"fd00:7:0:22::/64  fd00:14::22", "fd00:7:0:31::/64  fd00:15::31", "172.7.31.0/24"},
		" leases -etcd-endpoints " + w.cluster.Endpoint:        {"172.7.31.0/24 fd00:7:0:31::/64", "192.168.15.31 fd00:15::31"},
		" status -o json -control-socket " + d.ControlSocket(): {`"ipv6_subnet": "fd00:7:0:21::/64"`, `"ipv6_network": "fd00:7::/56"`, `"public_ipv6": "fd00:14::21"`, `"fallbacks": 0,`},
	} {
		said := command(t, w.Host("kb21").Node, commandBinary+line)
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
	for end := time.Now().Add(patience); time.Now().Before(end); {
		got = nil
		for line := range strings.Lines(command(t, h.Node, "ip -6 route show proto 89")) {
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
	w := newDualWorld(t, dualConfig)
	w.start("kb21")
	for _, kind := range []lab.Offload{lab.Veth, lab.NIC, lab.NICPlain} {
		t.Run(kind.String(), func(t *testing.T) {
			if err := w.SetOffloads(kind); err != nil {
				t.Fatal(err)
			}
			peer := w.dualKernelPeer(t, "kb22")
			w.dualMesh("kb21", "kb22")
			w.dualTransfer(t, "kb21", "kb22", 64<<20)
			if kind == lab.NICPlain {
				w.dualFlows(t, "kb22", "kb21")
				w.checksums(t, peer.host)
				w.asksForNeighbour(t, peer)
			}
		})
	}
	t.Run("behind a router", func(t *testing.T) {
		w.dualKernelPeer(t, "kb31")
		w.dualMesh("kb21", "kb31")
		w.dualTransfer(t, "kb21", "kb31", 64<<20)
	})
}

// dualKernelPeer makes a host a kernel peer of kb21 until the test ends.
func (w *world) dualKernelPeer(t *testing.T, host string) *kernelPeer {
	t.Helper()
	peer := newKernelPeer(t, w.Host(host))
	peer.addV6()
	t.Cleanup(peer.remove)
	peer.learn(w.leaseOf("kb21"))
	registry := w.registry()
	l, err := registry.Create(w.context(), peer.lease(), time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := registry.Delete(w.context(), l); err != nil {
			t.Error(err)
		}
	})
	return peer
}

// A host changes over from flanneld, which leaves both of its devices: they go,
// the lease stays, and the peers are told the one MAC.
func TestIntegrationDualTakeOver(t *testing.T) {
	w := newDualWorld(t, dualConfig, "kb21", "kb22")
	w.start("kb21")
	peer := newKernelPeer(t, w.Host("kb22"))
	peer.addV6()
	peer.learn(w.leaseOf("kb21"))
	before, err := w.registry().Create(w.context(), peer.lease(), time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	w.dualMesh("kb21", "kb22")
	w.start("kb22")
	w.dualMesh("kb21", "kb22")
	now := w.leaseOf("kb22")
	v6, err := tunnel.PeerV6FromLease(now)
	if err != nil || now.Key() != before.Key() || v6.MAC != peer.mac || string(now.Attrs.BackendV6Data) != string(now.Attrs.BackendData) {
		t.Errorf("the lease %s with %+v became %s with %+v, %v", before.Key(), before.Attrs, now.Key(), now.Attrs, err)
	}
	if links := command(t, peer.host.Node, "ip -o link show type vxlan"); links != "" {
		t.Errorf("left are %s", links)
	}
}

// What is wrong with a host's IPv6 is found before a lease is taken.
func TestIntegrationDualStartErrors(t *testing.T) {
	w := newDualWorld(t, dualConfig, "kb21")
	kb21 := w.Host("kb21")
	hostGW := strings.Replace(dualConfig, "VxLAN", "host-gw", 1)
	for _, c := range []struct {
		name, config  string
		prepare, undo string
		args, want    []string
	}{
		{"small MTU", dualConfig, "ip link set eth0 mtu 1340", "ip link set eth0 mtu 1500", nil, []string{"leaves 1270 bytes", "raise it to 1350"}},
		{"loop", dualConfig, "", "", []string{"-public-ipv6=fd00:7:0:99::1"}, []string{"fd00:7:0:99::1 lies inside the overlay network fd00:7::/56", "-public-ipv6"}},
		{"NAT and host-gw", hostGW, "", "", []string{"-public-ipv6=2001:db8::1"}, []string{"host-gw: the public address 2001:db8::1", "fd00:14::21"}},
		{"port in use", dualConfig, "ip link add other6 up type vxlan id 9 dstport 4789 local fd00:14::21 dev eth0", "ip link del other6", nil, []string{"bind [fd00:14::21]:4789", "the port is in use"}},
		{"route in the way", dualConfig, "ip -6 route add fd00:7::/56 dev eth0", "ip -6 route del fd00:7::/56 dev eth0", nil, []string{"fd00:7::/56", "the route exists"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			w.configure(c.config)
			if c.prepare != "" {
				command(t, kb21.Node, c.prepare)
				defer command(t, kb21.Node, c.undo)
			}
			d, err := w.cluster.Start(t.Context(), kb21, c.args...)
			if err != nil {
				t.Fatal(err)
			}
			if err := d.Wait(); err == nil {
				t.Error("it ended without an error")
			}
			lines := strings.Split(strings.TrimSpace(logOf(t, d)), "\n")
			last := lines[len(lines)-1]
			for _, want := range c.want {
				if !strings.Contains(last, want) {
					t.Errorf("the line doesn't say %q: %s", want, last)
				}
			}
			if leases, _, err := w.registry().List(w.context()); err != nil || len(leases) != 0 {
				t.Errorf("it took a lease nevertheless: %v, %v", leases, err)
			}
		})
	}
}

// checksums reads what arrives at a host that fills in nothing: every outer and
// every inner checksum is right, and the outer hop limit is 64.
func (w *world) checksums(t *testing.T, h *lab.Host) {
	t.Helper()
	if err := h.SetFeatures("eth0", map[string]bool{"rx-gro": false}); err != nil {
		t.Fatal(err)
	}
	dump := h.Command(w.context(), "tcpdump", "-nvv", "-i", "eth0", "-c", "1000", "-s", "0", "--direction=in", "ip6 and udp port 4789")
	var out strings.Builder
	dump.Stdout, dump.Stderr = &out, &out
	if err := dump.Start(); err != nil {
		t.Fatal(err)
	}
	go func() { _ = dump.Wait() }() // closes Done
	to := h.Container
	for captured := false; !captured; {
		iperfRun(t, iperf.Test{Server: to.Node, Client: w.container("kb21").Node, To: to.AddressV6, Duration: time.Second, UDP: true, Bandwidth: 2e6, Length: 1300})
		iperfRun(t, iperf.Test{Server: to.Node, Client: w.container("kb21").Node, To: to.AddressV6, Duration: time.Second})
		select {
		case <-dump.Done():
			captured = true
		default:
		}
	}
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
func (w *world) asksForNeighbour(t *testing.T, p *kernelPeer) {
	t.Helper()
	ours, err := tunnel.PeerV6FromLease(w.leaseOf("kb21"))
	if err != nil {
		t.Fatal(err)
	}
	nl, index := p.host.Netlink(), p.v6.Attrs().Index
	p.must("remove neighbour", nl.NeighDel(&netlink.Neigh{LinkIndex: index, IP: ours.Subnet.Addr().AsSlice()}))
	p.must("add broadcast entry", nl.NeighAppend(&netlink.Neigh{
		LinkIndex: index, State: netlink.NUD_PERMANENT, Family: unix.AF_BRIDGE,
		Flags: netlink.NTF_SELF, IP: ours.Underlay.AsSlice(), HardwareAddr: make([]byte, 6),
	}))
	w.dualMesh("kb21", "kb22")
	neighbours, err := nl.NeighList(index, netlink.FAMILY_V6)
	p.must("list neighbours", err)
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
			w := newDualWorld(t, `{`+dualNetworks+`,"Backend":{"Type":"VxLAN","DirectRouting":true,"DirectMode":"`+mode+`"}}`)
			d := w.start("kb21", "kb22", "kb31")[0]
			kb21, kb22 := w.Host("kb21"), w.Host("kb22")
			w.dualMesh("kb21", "kb22", "kb31")
			v6 := "subnet=" + kb22.IPv6.Subnet.String()
			awaitLine(t, d, time.Time{}, v6, "direct now", "public_ip=fd00:14::22", "via=")
			awaitPath(t, d, kb22, "direct now", time.Time{})
			network := "fd00:7::/56 dev flannel.1 src fd00:7:0:21::"
			if mode == "route" {
				awaitRoutesV6(t, kb21, routeToV6(kb22), network)
			} else {
				awaitRoutesV6(t, kb21, network)
			}
			seen := watchTrafficV6(t, kb21)
			w.dualTransfer(t, "kb21", "kb22", 32<<20)
			if plain, wrapped := seen.count(kb22); plain == 0 || wrapped > 0 {
				t.Errorf("to kb22 %d packets plain, %d in VXLAN", plain, wrapped)
			}
			w.dualTransfer(t, "kb21", "kb31", 32<<20)
			if plain, wrapped := seen.count(w.Host("kb31")); plain > 0 || wrapped == 0 {
				t.Errorf("to kb31 %d packets plain, %d in VXLAN", plain, wrapped)
			}

			begin := time.Now()
			detour := "fd00:14::22/128 via fd00:14::1 dev eth0"
			command(t, kb21.Node, "ip -6 route add "+detour)
			awaitLine(t, d, begin, v6, "back to vxlan", "reason=\"via gateway fd00:14::1\"")
			w.dualMesh("kb21", "kb22")
			command(t, kb21.Node, "ip -6 route del "+detour)
			awaitLine(t, d, begin, v6, "direct now")
			w.dualMesh("kb21", "kb22")
			if n := strings.Count(logOf(t, d), "subnet="+kb22.Subnet.String()+" public_ip=192.168.14.22 via="); n != 1 {
				t.Errorf("IPv4 became direct %d times", n)
			}
			end(t, unix.SIGTERM, d)
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
	w := newDualWorld(t, `{`+dualNetworks+`,"Backend":{"Type":"host-gw"}}`, "kb21", "kb22")
	d := w.start("kb21", "kb22")[0]
	kb21, kb22 := w.Host("kb21"), w.Host("kb22")
	w.dualMesh("kb21", "kb22")
	awaitRoutesV6(t, kb21, routeToV6(kb22))
	awaitRoutes(t, kb21, routeTo(kb22))
	w.dualTransfer(t, "kb21", "kb22", 16<<20)
	if l := w.leaseOf("kb21"); !l.Attrs.Equal(lease.Attrs{PublicIP: kb21.Address, PublicIPv6: kb21.IPv6.Underlay.Addr(), BackendType: lease.TypeHostGW}) {
		t.Errorf("the lease says %+v", l.Attrs)
	}
	end(t, unix.SIGTERM, d)
	awaitRoutesV6(t, kb21, routeToV6(kb22))
	said := command(t, kb21.Node, commandBinary+" cleanup -state-dir "+d.StateDir())
	if !strings.Contains(said, "removed route "+routeToV6(kb22)) {
		t.Errorf("the cleanup says\n%s", said)
	}
	awaitRoutesV6(t, kb21)
}

// What host-gw has left of both families goes when the model changes.
func TestIntegrationDualSwitch(t *testing.T) {
	w := newDualWorld(t, `{`+dualNetworks+`,"Backend":{"Type":"host-gw"}}`, "kb21", "kb22")
	daemons := w.start("kb21", "kb22")
	kb21, kb22 := w.Host("kb21"), w.Host("kb22")
	w.dualMesh("kb21", "kb22")
	end(t, unix.SIGTERM, daemons...)
	awaitRoutesV6(t, kb21, routeToV6(kb22))
	w.configure(dualConfig)
	w.start("kb21", "kb22")
	w.dualMesh("kb21", "kb22")
	awaitRoutesV6(t, kb21, "fd00:7::/56 dev flannel.1 src fd00:7:0:21::")
	awaitRoutes(t, kb21, "172.7.0.0/16 dev flannel.1 scope link src "+kb21.Subnet.Addr().String())
}

// Masquerading, the forward rules and the blackhole route are there for IPv6 as
// for IPv4, and the cleanup removes them.
func TestIntegrationDualFirewall(t *testing.T) {
	w := newDualWorld(t, dualConfig, "kb21", "kb31")
	kb21, kb31 := w.Host("kb21"), w.Host("kb31")
	for _, c := range []struct {
		name, config, policy, left string
		leftover                   []string
	}{
		{
			"iptables", dualConfig, "ip6tables -P FORWARD DROP", "ip6tables -t nat -S FLANNEL-POSTRTG",
			[]string{"removed ip6tables chain FLANNEL-POSTRTG of table nat", "removed ip6tables chain FLANNEL-FWD of table filter"},
		},
		{
			"nftables", strings.Replace(dualConfig, "{", `{"EnableNFTables":true,`, 1), "ip6tables -P FORWARD ACCEPT", "nft list table ip6 flannel-ipv6",
			[]string{"removed nftables table flannel-ipv6"},
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			w.configure(c.config)
			for _, h := range w.Hosts() {
				command(t, h.Node, c.policy)
			}
			w.cluster.Args = []string{"-ip-masq", "-ip-blackhole-route"}
			daemons := w.start("kb21", "kb31")
			w.dualMesh("kb21", "kb31")
			if got := seenFrom(t, kb21.Container.Node, w.Router(), kb21.IPv6.Gateway); got != kb21.IPv6.Underlay.Addr() {
				t.Errorf("the router sees %s, want the host's %s", got, kb21.IPv6.Underlay.Addr())
			}
			if got := seenFrom(t, kb21.Container.Node, kb31.Container.Node, kb31.Container.AddressV6); got != kb21.Container.AddressV6 {
				t.Errorf("a container of the other host sees %s, want the container's own %s", got, kb21.Container.AddressV6)
			}
			blackhole := "blackhole " + kb21.IPv6.Subnet.String()
			if routes := command(t, kb21.Node, "ip -6 route show"); !strings.Contains(routes, blackhole) {
				t.Errorf("no %s in\n%s", blackhole, routes)
			}
			for _, d := range daemons {
				if err := d.Stop(w.context()); err != nil {
					t.Error(err)
				}
				said := command(t, d.Host.Node, commandBinary+" cleanup -state-dir "+d.StateDir())
				for _, line := range c.leftover {
					if !strings.Contains(said, line+"\n") {
						t.Errorf("the cleanup doesn't say %q:\n%s", line, said)
					}
				}
				if _, err := d.Host.Run(t.Context(), "sh", "-c", c.left); err == nil {
					t.Errorf("the cleanup leaves\n%s", command(t, d.Host.Node, c.left))
				}
			}
			if routes := command(t, kb21.Node, "ip -6 route show"); strings.Contains(routes, "blackhole") {
				t.Errorf("after the daemon there is\n%s", routes)
			}
		})
	}
}

// IPv6 comes to a network and goes again: IPv4 stays as it was, and nothing of
// IPv6 is left.
func TestIntegrationIPv6ComesAndGoes(t *testing.T) {
	w := newDualWorld(t, vxlanConfig, "kb21", "kb22")
	kb21 := w.Host("kb21")
	before := settledState(t, kb21)
	command(t, w.Host("kb22").Node, "sysctl -q -w net.ipv6.conf.all.forwarding=0")
	for _, config := range []string{vxlanConfig, dualConfig, vxlanConfig} {
		w.configure(config)
		daemons := w.start("kb21", "kb22")
		w.mesh4("kb21", "kb22")
		if config == dualConfig {
			if _, err := cluster.ReachAt(w.context(), kb21.Node, w.Host("kb22").Node, w.Host("kb22").IPv6.Subnet.Addr(), dualMTU); err != nil {
				t.Error(err) // from one end of the overlay to the other
			}
			awaitLine(t, daemons[1], time.Time{}, "level=WARN", "net.ipv6.conf.all.forwarding=1")
		}
		for _, d := range daemons {
			if l := w.leaseOf(d.Host.Name); l.IPv6Subnet.IsValid() != (config == dualConfig) {
				t.Errorf("%s: the lease is %s", config, l.Key())
			}
		}
		if all, _, err := w.registry().List(w.context()); err != nil || len(all) != 2 {
			t.Errorf("%s: the leases are %v, %v", config, all, err)
		}
		end(t, unix.SIGTERM, daemons...)
	}
	expectState(t, kb21, before, "at the end")
	awaitRoutesV6(t, kb21)
}

// The rules of IPv6 go with it, as the subnet file tells of them.
func TestIntegrationIPv6RulesGo(t *testing.T) {
	w := newDualWorld(t, dualConfig, "kb21")
	kb21 := w.Host("kb21")
	d, err := w.cluster.Start(t.Context(), kb21, "-ip-masq")
	if err != nil {
		t.Fatal(err)
	}
	if err := d.Ready(w.context()); err != nil {
		t.Fatal(err)
	}
	end(t, unix.SIGTERM, d)
	if rules := command(t, kb21.Node, "ip6tables-save"); strings.Count(rules, "fd00:7:0:21::/64") == 0 || !strings.Contains(rules, "FLANNEL-FWD") {
		t.Fatalf("the rules are\n%s", rules)
	}
	w.configure(vxlanConfig)
	c, out := startCommand(t, w, daemonBinary, "-ip-masq", "-subnet-file", d.SubnetFile(), "-state-dir", d.StateDir(),
		"-control-socket", d.ControlSocket(), "-etcd-endpoints", w.cluster.Endpoint)
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	for ctx := w.context(); ; time.Sleep(5 * time.Millisecond) {
		if file, err := subnetfile.Read(d.SubnetFile()); err == nil && !file.NetworkV6.IsValid() && file.Network == overlayNetwork {
			break
		}
		if ctx.Err() != nil {
			t.Fatalf("it isn't ready: %v: %s", c.Stop(ctx), out)
		}
	}
	if err := c.Stop(w.context()); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if rules := command(t, kb21.Node, "ip6tables-save"); strings.Contains(rules, "FLANNEL") || strings.Contains(rules, "fd00:") {
		t.Errorf("without IPv6 the rules are\n%s", rules)
	}
	if rules := command(t, kb21.Node, "iptables-save"); !strings.Contains(rules, "172.7.21.0/24") {
		t.Errorf("the IPv4 rules are\n%s", rules)
	}
}

// mesh4 is dualMesh for IPv4 alone.
func (w *world) mesh4(a, b string) {
	w.t.Helper()
	for _, ends := range [][2]string{{a, b}, {b, a}} {
		if _, err := cluster.Reach(w.context(), w.container(ends[0]).Node, w.container(ends[1]), dualMTU); err != nil {
			w.t.Fatal(err)
		}
	}
}

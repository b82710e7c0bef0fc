package main

import (
	"encoding/json"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"uvxlan/bench/iperf"
	"uvxlan/bench/lab"
	"uvxlan/encap"
	"uvxlan/lease"
	"uvxlan/tunnel"
)

// kernelPeer is a host whose kernel speaks VXLAN, set up as flannel does it:
// no learning, and for each peer a permanent neighbour, a permanent forwarding
// entry and a route.
type kernelPeer struct {
	t    *testing.T
	host *lab.Host
	link netlink.Link
	mac  encap.MAC
	// v6 is the second device, of a host with IPv6.
	v6    netlink.Link
	macV6 encap.MAC
}

func newKernelPeer(t *testing.T, h *lab.Host) *kernelPeer {
	t.Helper()
	p := &kernelPeer{t: t, host: h, mac: encap.MAC{0x0e, 1, 2, 3, 4, 5}}
	nl := h.Netlink()
	parent, err := nl.LinkByName("eth0")
	if err != nil {
		t.Fatal(err)
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU, attrs.HardwareAddr = "flannel.1", parent.Attrs().MTU-encap.OverheadIPv4, p.mac[:]
	p.link = &netlink.Vxlan{
		LinkAttrs: attrs, VxlanId: 1, VtepDevIndex: parent.Attrs().Index, SrcAddr: h.Address.AsSlice(), Port: lease.DefaultPort,
	}
	p.must("add kernel VXLAN device", nl.LinkAdd(p.link))
	p.must("add its address", nl.AddrAdd(p.link, &netlink.Addr{IPNet: ipNet(netip.PrefixFrom(h.Subnet.Addr(), 32))}))
	p.must("bring it up", nl.LinkSetUp(p.link))
	return p
}

// addV6 makes the device for IPv6: with a MAC of its own, of the same segment and
// port, over the IPv6 underlay.
func (p *kernelPeer) addV6() {
	p.t.Helper()
	p.macV6 = encap.MAC{0x0e, 6, 6, 6, 6, 6}
	nl := p.host.Netlink()
	parent, err := nl.LinkByName("eth0")
	p.must("look for eth0", err)
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.HardwareAddr = "flannel-v6.1", p.macV6[:]
	p.v6 = &netlink.Vxlan{
		LinkAttrs: attrs, VxlanId: 1, VtepDevIndex: parent.Attrs().Index, SrcAddr: p.host.IPv6.Underlay.Addr().AsSlice(), Port: lease.DefaultPort,
	}
	p.must("add kernel VXLAN device", nl.LinkAdd(p.v6))
	address := &netlink.Addr{IPNet: ipNet(netip.PrefixFrom(p.host.IPv6.Subnet.Addr(), 128)), Flags: unix.IFA_F_NODAD}
	p.must("add its address", nl.AddrAdd(p.v6, address))
	p.must("bring it up", nl.LinkSetUp(p.v6))
}

// remove removes the devices.
func (p *kernelPeer) remove() {
	p.t.Helper()
	p.must("remove device", p.host.Netlink().LinkDel(p.link))
	if p.v6 != nil {
		p.must("remove device", p.host.Netlink().LinkDel(p.v6))
	}
}

func (p *kernelPeer) must(what string, err error) {
	p.t.Helper()
	if err != nil {
		p.t.Fatalf("%s: %s: %v", p.host.Name, what, err)
	}
}

func ipNet(n netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: n.Addr().AsSlice(), Mask: net.CIDRMask(n.Bits(), n.Addr().BitLen())}
}

// lease is what this host would have in etcd.
func (p *kernelPeer) lease() lease.Lease {
	data, err := json.Marshal(lease.VXLANData{VNI: 1, VtepMAC: p.mac.String()})
	p.must("write lease", err)
	l := lease.Lease{Subnet: p.host.Subnet, Attrs: lease.Attrs{
		PublicIP: p.host.Address, BackendType: lease.TypeVXLAN, BackendData: data,
	}}
	if p.v6 == nil {
		return l
	}
	l.IPv6Subnet, l.Attrs.PublicIPv6 = p.host.IPv6.Subnet, p.host.IPv6.Underlay.Addr()
	l.Attrs.BackendV6Data, err = json.Marshal(lease.VXLANData{VNI: 1, VtepMAC: p.macV6.String()})
	p.must("write lease", err)
	return l
}

// learn programs another host's lease.
func (p *kernelPeer) learn(l lease.Lease) {
	p.t.Helper()
	peer, err := tunnel.PeerFromLease(l)
	p.must("read lease", err)
	p.program(p.link, peer)
	if p.v6 == nil {
		return
	}
	peer, err = tunnel.PeerV6FromLease(l)
	p.must("read lease", err)
	p.program(p.v6, peer)
}

func (p *kernelPeer) program(link netlink.Link, peer tunnel.Peer) {
	p.t.Helper()
	nl, vtep, index := p.host.Netlink(), peer.Subnet.Addr().AsSlice(), link.Attrs().Index
	p.must("add neighbour", nl.NeighSet(&netlink.Neigh{
		LinkIndex: index, State: netlink.NUD_PERMANENT, IP: vtep, HardwareAddr: peer.MAC[:],
	}))
	p.must("add forwarding entry", nl.NeighSet(&netlink.Neigh{
		LinkIndex: index, State: netlink.NUD_PERMANENT, Family: unix.AF_BRIDGE,
		Flags: netlink.NTF_SELF, IP: peer.Underlay.AsSlice(), HardwareAddr: peer.MAC[:],
	}))
	p.must("add route", nl.RouteReplace(&netlink.Route{
		LinkIndex: index, Dst: ipNet(peer.Subnet), Gw: vtep, Flags: int(netlink.FLAG_ONLINK),
	}))
}

// forgetNeighbour removes the permanent neighbour, so that the kernel asks by
// ARP, and gives broadcasts a way.
func (p *kernelPeer) forgetNeighbour(l lease.Lease) {
	p.t.Helper()
	nl := p.host.Netlink()
	p.must("remove neighbour", nl.NeighDel(&netlink.Neigh{LinkIndex: p.link.Attrs().Index, IP: l.Subnet.Addr().AsSlice()}))
	p.must("add broadcast entry", nl.NeighAppend(&netlink.Neigh{
		LinkIndex: p.link.Attrs().Index, State: netlink.NUD_PERMANENT, Family: unix.AF_BRIDGE,
		Flags: netlink.NTF_SELF, IP: l.Attrs.PublicIP.AsSlice(), HardwareAddr: make([]byte, 6),
	}))
}

// leaseOf waits for a host's lease.
func (w *world) leaseOf(host string) lease.Lease {
	w.t.Helper()
	registry, ctx := w.registry(), w.context()
	for {
		leases, _, err := registry.List(ctx)
		if err != nil {
			w.t.Fatal(err)
		}
		for _, l := range leases {
			if l.Subnet == w.Host(host).Subnet {
				return l
			}
		}
	}
}

// A host with uvxlan and a host with kernel VXLAN share a network. On veth the
// kernel's packets come with unfilled checksums and as superpackets, on a NIC
// without tunnel offloads as many small ones.
func TestIntegrationKernelPeer(t *testing.T) {
	w := newWorld(t)
	w.start("kb21")
	for _, kind := range []lab.Offload{lab.Veth, lab.NIC, lab.NICPlain} {
		t.Run(kind.String(), func(t *testing.T) {
			if err := w.SetOffloads(kind); err != nil {
				t.Fatal(err)
			}
			for _, host := range []string{"kb22", "kb31"} {
				w.withKernelPeer(t, host)
			}
		})
	}
}

func (w *world) withKernelPeer(t *testing.T, host string) {
	h := w.Host(host)
	registry := w.registry()
	peer := newKernelPeer(t, h)
	ours := w.leaseOf("kb21")
	peer.learn(ours)
	l, err := registry.Create(w.context(), peer.lease(), time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := registry.Delete(w.context(), l); err != nil {
			t.Error(err)
		}
		peer.remove()
	}()
	w.mesh("kb21", host)
	uv, kernel := w.container("kb21"), h.Container
	transfer(t, uv.Node, kernel, 256<<20)
	transfer(t, kernel.Node, uv, 256<<20)
	for _, ends := range [][2]*lab.Container{{uv, kernel}, {kernel, uv}} {
		from, to := ends[0], ends[1]
		tcp := iperfRun(t, iperf.Test{Server: to.Node, Client: from.Node, To: to.Address, Duration: time.Second})
		udp := iperfRun(t, iperf.Test{
			Server: to.Node, Client: from.Node, To: to.Address, Duration: time.Second, UDP: true, Bandwidth: 50e6,
		})
		t.Logf("%s -> %s: TCP %.2f Gbit/s; UDP %d datagrams, %d lost", from.Name, to.Name, tcp.BitsPerSecond/1e9, udp.Packets, udp.Lost)
		if tcp.Bytes == 0 || udp.Packets == 0 || udp.Lost*1000 > udp.Packets {
			t.Errorf("%s -> %s: TCP %+v, UDP %+v", from.Name, to.Name, tcp, udp)
		}
	}
}

// A kernel that has no permanent neighbour entry asks for our VTEP by ARP and
// is answered.
func TestIntegrationKernelPeerAsksByARP(t *testing.T) {
	w := newWorld(t, "kb21", "kb22")
	w.start("kb21")
	peer := newKernelPeer(t, w.Host("kb22"))
	ours := w.leaseOf("kb21")
	peer.learn(ours)
	if _, err := w.registry().Create(w.context(), peer.lease(), time.Hour); err != nil {
		t.Fatal(err)
	}
	w.mesh("kb21", "kb22")
	peer.forgetNeighbour(ours)
	w.mesh("kb21", "kb22")
	neighbours, err := w.Host("kb22").Netlink().NeighList(peer.link.Attrs().Index, netlink.FAMILY_V4)
	if err != nil {
		t.Fatal(err)
	}
	want, err := tunnel.PeerFromLease(ours)
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range neighbours {
		if n.IP.Equal(ours.Subnet.Addr().AsSlice()) && strings.EqualFold(n.HardwareAddr.String(), want.MAC.String()) &&
			n.State&netlink.NUD_PERMANENT == 0 {
			return
		}
	}
	t.Errorf("the kernel's neighbours are %v, want %s at %s", neighbours, ours.Subnet.Addr(), want.MAC)
}

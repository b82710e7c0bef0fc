package e2e

import (
	"encoding/json"
	"net"
	"net/netip"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"uvxlan/bench/lab"
	"uvxlan/encap"
	"uvxlan/lease"
	"uvxlan/tunnel"
)

// KernelPeer is a host whose kernel speaks VXLAN, set up as flannel does it:
// no learning, and for each peer a permanent neighbour, a permanent forwarding
// entry and a route.
type KernelPeer struct {
	T    *testing.T
	Host *lab.Host
	Link netlink.Link
	Mac  encap.MAC
	// v6 is the second device, of a host with IPv6.
	V6    netlink.Link
	macV6 encap.MAC
}

// NewKernelPeer makes the device.
func NewKernelPeer(t *testing.T, h *lab.Host) *KernelPeer {
	t.Helper()
	return NewKernelPeerAt(t, h, lease.DefaultPort)
}

// NewKernelPeerAt makes a device that takes frames at a UDP port.
func NewKernelPeerAt(t *testing.T, h *lab.Host, port int) *KernelPeer {
	t.Helper()
	address := h.Address.As4()
	p := &KernelPeer{T: t, Host: h, Mac: encap.MAC{0x0e, 1, address[0], address[1], address[2], address[3]}}
	nl := h.Netlink()
	parent, err := nl.LinkByName("eth0")
	if err != nil {
		t.Fatal(err)
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU, attrs.HardwareAddr = "flannel.1", parent.Attrs().MTU-encap.OverheadIPv4, p.Mac[:]
	p.Link = &netlink.Vxlan{
		LinkAttrs: attrs, VxlanId: 1, VtepDevIndex: parent.Attrs().Index, SrcAddr: h.Address.AsSlice(), Port: port,
	}
	p.Must("add kernel VXLAN device", nl.LinkAdd(p.Link))
	p.Must("add its address", nl.AddrAdd(p.Link, &netlink.Addr{IPNet: IPNet(netip.PrefixFrom(h.Subnet.Addr(), 32))}))
	p.Must("bring it up", nl.LinkSetUp(p.Link))
	return p
}

// AddV6 makes the device for IPv6: with a MAC of its own, of the same segment and
// port, over the IPv6 underlay.
func (p *KernelPeer) AddV6() {
	p.T.Helper()
	p.macV6 = encap.MAC{0x0e, 6, 6, 6, 6, 6}
	nl := p.Host.Netlink()
	parent, err := nl.LinkByName("eth0")
	p.Must("look for eth0", err)
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.HardwareAddr = "flannel-v6.1", p.macV6[:]
	p.V6 = &netlink.Vxlan{
		LinkAttrs: attrs, VxlanId: 1, VtepDevIndex: parent.Attrs().Index, SrcAddr: p.Host.IPv6.Underlay.Addr().AsSlice(), Port: lease.DefaultPort,
	}
	p.Must("add kernel VXLAN device", nl.LinkAdd(p.V6))
	address := &netlink.Addr{IPNet: IPNet(netip.PrefixFrom(p.Host.IPv6.Subnet.Addr(), 128)), Flags: unix.IFA_F_NODAD}
	p.Must("add its address", nl.AddrAdd(p.V6, address))
	p.Must("bring it up", nl.LinkSetUp(p.V6))
}

// Remove removes the devices.
func (p *KernelPeer) Remove() {
	p.T.Helper()
	p.Must("remove device", p.Host.Netlink().LinkDel(p.Link))
	if p.V6 != nil {
		p.Must("remove device", p.Host.Netlink().LinkDel(p.V6))
	}
}

// Must ends the test if a step failed.
func (p *KernelPeer) Must(what string, err error) {
	p.T.Helper()
	if err != nil {
		p.T.Fatalf("%s: %s: %v", p.Host.Name, what, err)
	}
}

// IPNet is a prefix as package netlink has it.
func IPNet(n netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: n.Addr().AsSlice(), Mask: net.CIDRMask(n.Bits(), n.Addr().BitLen())}
}

// Lease is what this host would have in etcd.
func (p *KernelPeer) Lease() lease.Lease {
	data, err := json.Marshal(lease.VXLANData{VNI: 1, VtepMAC: p.Mac.String()})
	p.Must("write lease", err)
	l := lease.Lease{Subnet: p.Host.Subnet, Attrs: lease.Attrs{
		PublicIP: p.Host.Address, BackendType: lease.TypeVXLAN, BackendData: data,
	}}
	if p.V6 == nil {
		return l
	}
	l.IPv6Subnet, l.Attrs.PublicIPv6 = p.Host.IPv6.Subnet, p.Host.IPv6.Underlay.Addr()
	l.Attrs.BackendV6Data, err = json.Marshal(lease.VXLANData{VNI: 1, VtepMAC: p.macV6.String()})
	p.Must("write lease", err)
	return l
}

// Learn programs another host's lease.
func (p *KernelPeer) Learn(l lease.Lease) {
	p.T.Helper()
	peer, err := tunnel.PeerFromLease(l)
	p.Must("read lease", err)
	p.program(p.Link, peer)
	if p.V6 == nil {
		return
	}
	peer, err = tunnel.PeerV6FromLease(l)
	p.Must("read lease", err)
	p.program(p.V6, peer)
}

func (p *KernelPeer) program(link netlink.Link, peer tunnel.Peer) {
	p.T.Helper()
	nl, vtep, index := p.Host.Netlink(), peer.Subnet.Addr().AsSlice(), link.Attrs().Index
	p.Must("add neighbour", nl.NeighSet(&netlink.Neigh{
		LinkIndex: index, State: netlink.NUD_PERMANENT, IP: vtep, HardwareAddr: peer.MAC[:],
	}))
	p.Must("add forwarding entry", nl.NeighSet(&netlink.Neigh{
		LinkIndex: index, State: netlink.NUD_PERMANENT, Family: unix.AF_BRIDGE,
		Flags: netlink.NTF_SELF, IP: peer.Underlay.AsSlice(), HardwareAddr: peer.MAC[:],
	}))
	p.Must("add route", nl.RouteReplace(&netlink.Route{
		LinkIndex: index, Dst: IPNet(peer.Subnet), Gw: vtep, Flags: int(netlink.FLAG_ONLINK),
	}))
}

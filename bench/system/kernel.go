package system

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"uvxlan/bench/lab"
	"uvxlan/lease"
)

func init() {
	register(func(context.Context, Env) []System {
		return []System{{Name: Kernel, About: "kernel VXLAN, set up as flannel does", rank: baseline, Three: true, Start: startKernel}}
	})
}

func startKernel(_ context.Context, s *Site) error {
	for _, h := range s.Hosts() {
		v, err := addVTEP(h)
		if err != nil {
			return err
		}
		for _, far := range s.others(h) {
			if err := v.learn(far.Subnet, far.Address, vtepMAC(far)); err != nil {
				return err
			}
		}
	}
	return nil
}

// vtep is the kernel's end of a VXLAN, without learning: each peer has a
// permanent neighbour, a permanent forwarding entry and a route.
type vtep struct {
	host *lab.Host
	link *netlink.Vxlan
}

const (
	vni = 1
	// vxlanOverhead is the outer IPv4, UDP and VXLAN headers and the inner
	// Ethernet header.
	vxlanOverhead = 50
)

// vtepMAC is the address of the host's VTEP.
func vtepMAC(h *lab.Host) net.HardwareAddr {
	a := h.Address.As4()
	return net.HardwareAddr{0x0e, 0, a[0], a[1], a[2], a[3]}
}

func addVTEP(h *lab.Host) (*vtep, error) {
	nl := h.Netlink()
	parent, err := nl.LinkByName("eth0")
	if err != nil {
		return nil, fmt.Errorf("add VTEP on %s: %w", h.Name, err)
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU, attrs.HardwareAddr = "flannel.1", parent.Attrs().MTU-vxlanOverhead, vtepMAC(h)
	v := &vtep{host: h, link: &netlink.Vxlan{
		LinkAttrs: attrs, VxlanId: vni, VtepDevIndex: parent.Attrs().Index, SrcAddr: h.Address.AsSlice(), Port: lease.DefaultPort,
	}}
	if err := nl.LinkAdd(v.link); err != nil {
		return nil, fmt.Errorf("add VXLAN device on %s: %w", h.Name, err)
	}
	if err := nl.AddrAdd(v.link, &netlink.Addr{IPNet: ipNet(netip.PrefixFrom(h.Subnet.Addr(), 32))}); err != nil {
		return nil, fmt.Errorf("add VTEP's address on %s: %w", h.Name, err)
	}
	if err := nl.LinkSetUp(v.link); err != nil {
		return nil, fmt.Errorf("bring VTEP up on %s: %w", h.Name, err)
	}
	return v, nil
}

// learn makes a host a peer.
func (v *vtep) learn(subnet netip.Prefix, underlay netip.Addr, mac net.HardwareAddr) error {
	nl, index, gateway := v.host.Netlink(), v.link.Index, subnet.Addr().AsSlice()
	err := nl.NeighSet(&netlink.Neigh{LinkIndex: index, State: netlink.NUD_PERMANENT, IP: gateway, HardwareAddr: mac})
	if err != nil {
		return fmt.Errorf("add neighbour on %s: %w", v.host.Name, err)
	}
	err = nl.NeighSet(&netlink.Neigh{
		LinkIndex: index, State: netlink.NUD_PERMANENT, Family: unix.AF_BRIDGE, Flags: netlink.NTF_SELF,
		IP: underlay.AsSlice(), HardwareAddr: mac,
	})
	if err != nil {
		return fmt.Errorf("add forwarding entry on %s: %w", v.host.Name, err)
	}
	err = nl.RouteReplace(&netlink.Route{LinkIndex: index, Dst: ipNet(subnet), Gw: gateway, Flags: int(netlink.FLAG_ONLINK)})
	if err != nil {
		return fmt.Errorf("add route on %s: %w", v.host.Name, err)
	}
	return nil
}

// learnLease makes the holder of a lease a peer.
func (v *vtep) learnLease(l lease.Lease) error {
	var data lease.VXLANData
	if err := json.Unmarshal(l.Attrs.BackendData, &data); err != nil {
		return fmt.Errorf("read lease of %s: %w", l.Subnet, err)
	}
	mac, err := net.ParseMAC(data.VtepMAC)
	if err != nil {
		return fmt.Errorf("read lease of %s: %w", l.Subnet, err)
	}
	return v.learn(l.Subnet, l.Attrs.PublicIP, mac)
}

// lease is what flannel would write to etcd for this host.
func (v *vtep) lease() (lease.Lease, error) {
	data, err := json.Marshal(lease.VXLANData{VNI: vni, VtepMAC: v.link.HardwareAddr.String()})
	if err != nil {
		return lease.Lease{}, fmt.Errorf("write lease: %w", err)
	}
	return lease.Lease{Subnet: v.host.Subnet, Attrs: lease.Attrs{
		PublicIP: v.host.Address, BackendType: lease.TypeVXLAN, BackendData: data,
	}}, nil
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

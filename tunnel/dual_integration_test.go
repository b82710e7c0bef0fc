package tunnel

import (
	"bytes"
	"errors"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"uvxlan/encap"
	"uvxlan/lease"
	"uvxlan/tunnel/device"
	"uvxlan/tunnel/internal/family"
	"uvxlan/tunnel/internal/testhost"
	"uvxlan/tunnel/link"
	"uvxlan/tunnel/offload"
	"uvxlan/tunnel/underlay"
)

// dualHost makes hosts of both families that share one namespace: host n is
// 10.66.0.n and fd66::n, and owns 10.0.n.0/24 and fd00:0:0:n::/64.
type dualHost struct {
	*testhost.Host
	port uint16
}

func newDualHost(t *testing.T) *dualHost {
	h := &dualHost{testhost.New(t), testhost.Port}
	for _, a := range []string{"10.66.0.1/32", "10.66.0.2/32", "10.66.0.9/32", "fd66::1/128", "fd66::2/128", "fd66::9/128"} {
		h.Address("lo", a)
	}
	for n := range dualPeers(0) {
		for _, host := range []byte{1, 2, 9} {
			h.awaitAddress(dualPeers(host)[n].Underlay)
		}
	}
	return h
}

// awaitAddress waits until datagrams arrive at an address: the kernel makes the route
// to an IPv6 address after it has taken the address, and discards until then.
func (h *dualHost) awaitAddress(a netip.Addr) {
	h.T.Helper()
	in := testhost.Inside(h.Host, func() (*net.UDPConn, error) {
		return net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(a, 0)))
	})
	defer in.Close()
	for late := time.Now().Add(testhost.Patience); ; {
		// A connected socket keeps the route that it found first.
		out := testhost.Inside(h.Host, func() (net.Conn, error) { return net.Dial("udp", in.LocalAddr().String()) })
		_, err := out.Write([]byte{1})
		out.Close()
		if err == nil {
			testhost.Must(h.T, in.SetReadDeadline(time.Now().Add(50*time.Millisecond)))
			_, err = in.Read(make([]byte, 1))
		}
		if err == nil {
			return
		}
		if time.Now().After(late) {
			h.T.Fatalf("nothing arrives at %s: %v", a, err)
		}
	}
}

func dualAddress(n byte) netip.Addr {
	return netip.AddrFrom16([16]byte{0: 0xfd, 1: 0x66, 15: n})
}

// dualPeers are host n's two.
func dualPeers(n byte) []Peer {
	subnet6 := netip.AddrFrom16([16]byte{0: 0xfd, 7: n})
	return []Peer{
		{netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 0, n, 0}), 24), netip.AddrFrom4([4]byte{10, 66, 0, n}), testMAC(n)},
		{netip.PrefixFrom(subnet6, 64), dualAddress(n), testMAC(n)},
	}
}

func (h *dualHost) start(t *testing.T, n byte) *node {
	t.Helper()
	peers := dualPeers(n)
	underlay := testhost.Inside(h.Host, func() (*underlay.UDP, error) {
		return underlay.Listen(underlay.Config{Address: peers[0].Underlay, AddressV6: peers[1].Underlay, Port: h.port, Offloads: offload.All})
	})
	device := testhost.NewMemoryDevice(t, 1, 0)
	c := Config{
		VNI: testVNI, MAC: testMAC(n), Link: link.Config{
			MTU:       1430,
			Addresses: []netip.Addr{peers[0].Subnet.Addr(), peers[1].Subnet.Addr()},
			Networks:  []netip.Prefix{netip.MustParsePrefix("10.0.0.0/16"), netip.MustParsePrefix("fd00::/48")},
		},
	}
	r, err := New(device, underlay, c)
	testhost.Must(t, err)
	nd := &node{r, device.Far[0], peers[0], c}
	nd.run(t)
	return nd
}

// wire is a socket of host 9 that sends to host 1, by the family of its address.
func (h *dualHost) wire(t *testing.T, to netip.Addr) *wire {
	t.Helper()
	from := dualPeers(9)[family.Of(to)].Underlay
	c := testhost.Inside(h.Host, func() (*net.UDPConn, error) {
		return net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(from, h.port)))
	})
	t.Cleanup(func() { c.Close() })
	return &wire{c, net.UDPAddrFromAddrPort(netip.AddrPortFrom(to, h.port))}
}

// Each family travels by its own underlay.
func TestIntegrationDualStack(t *testing.T) {
	h := newDualHost(t)
	a, b := h.start(t, 1), h.start(t, 2)
	addPeers(t, a, dualPeers(2)...)
	addPeers(t, b, dualPeers(1)...)
	for _, size := range []int{0, 1400, 9000, 60000} {
		for _, ends := range []struct {
			from, to *node
			packet   []byte
		}{
			{a, b, testhost.UDPPacket("10.0.1.9", "10.0.2.9", size)},
			{a, b, udp6("fd00:0:0:1::9", "fd00:0:0:2::9", size)},
			{b, a, udp6("fd00:0:0:2::9", "fd00:0:0:1::9", size)},
			{b, a, testhost.UDPPacket("10.0.2.9", "10.0.1.9", size)},
		} {
			ends.from.queue.Send(t, ends.packet)
			if got, _ := ends.to.queue.Receive(t); !bytes.Equal(got, ends.packet) {
				t.Fatalf("%d bytes of payload: the packet of version %d changed on its way", size, ends.packet[0]>>4)
			}
		}
	}
	for _, n := range []*node{a, b} {
		waitStats(t, n, func(s Stats) bool { return s.TxPackets == 8 && s.RxPackets == 8 && s.Dropped() == 0 })
	}
}

// What comes over one family isn't taken for the other's, whoever sent it.
func TestIntegrationDualStackSourceCheck(t *testing.T) {
	h := newDualHost(t)
	a := h.start(t, 1)
	addPeers(t, a, dualPeers(9)...)
	four, six := h.wire(t, a.peer.Underlay), h.wire(t, dualAddress(1))
	header4 := encap.MakeFrameHeader(testVNI, testMAC(1), testMAC(9), encap.EtherTypeIPv4)
	header6 := encap.MakeFrameHeader(testVNI, testMAC(1), testMAC(9), encap.EtherTypeIPv6)
	drops := uint64(0)
	for _, c := range []struct {
		name   string
		wire   *wire
		header encap.FrameHeader
		packet []byte
		taken  bool
	}{
		{"IPv4 over IPv4", four, header4, testhost.UDPPacket("10.0.9.1", "10.0.1.9", 8), true},
		{"IPv6 over IPv6", six, header6, udp6("fd00:0:0:9::1", "fd00:0:0:1::9", 8), true},
		{"IPv4 over IPv6", six, header4, testhost.UDPPacket("10.0.9.1", "10.0.1.9", 8), false},
		{"IPv6 over IPv4", four, header6, udp6("fd00:0:0:9::1", "fd00:0:0:1::9", 8), false},
		{"the peer's own address", six, header6, udp6("fd66::9", "fd00:0:0:1::9", 8), true},
		{"another subnet", six, header6, udp6("fd00:0:0:8::1", "fd00:0:0:1::9", 8), false},
		{"our own subnet", six, header6, udp6("fd00:0:0:1::5", "fd00:0:0:1::9", 8), false},
	} {
		c.wire.send(t, c.header, c.packet)
		if c.taken {
			if got, _ := a.queue.Receive(t); !bytes.Equal(got, c.packet) {
				t.Errorf("%s: the packet changed on its way", c.name)
			}
			continue
		}
		drops++
		waitStats(t, a, func(s Stats) bool { return s.Drop(DropInnerSource) == drops })
	}
}

// The ECN field goes out with the packet and comes in with it (RFC 6040), and
// the outer hop limit is 64.
func TestIntegrationDualStackHeader(t *testing.T) {
	h := newDualHost(t)
	a := h.start(t, 1)
	addPeers(t, a, dualPeers(9)...)
	w := h.wire(t, dualAddress(1))
	raw, err := w.SyscallConn()
	testhost.Must(t, err)
	testhost.Must(t, raw.Control(func(fd uintptr) {
		testhost.Must(t, unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_RECVTCLASS, 1))
		testhost.Must(t, unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_RECVHOPLIMIT, 1))
		testhost.Must(t, unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_TCLASS, int(encap.ECNCE)))
	}))
	out := udp6("fd00:0:0:1::9", "fd00:0:0:9::9", 8)
	out.SetECN(encap.ECNECT0)
	a.queue.Send(t, out)
	buf, control := make([]byte, device.MaxPacket), make([]byte, 128)
	_, n, _, _, err := w.ReadMsgUDP(buf, control)
	testhost.Must(t, err)
	messages, err := unix.ParseSocketControlMessage(control[:n])
	testhost.Must(t, err)
	seen := map[int32]byte{}
	for _, m := range messages {
		seen[m.Header.Type] = m.Data[0]
	}
	if seen[unix.IPV6_TCLASS] != encap.ECNECT0 || seen[unix.IPV6_HOPLIMIT] != 64 {
		t.Errorf("traffic class and hop limit are %v", seen)
	}
	in := udp6("fd00:0:0:9::1", "fd00:0:0:1::9", 8)
	in.SetECN(encap.ECNECT0)
	w.send(t, encap.MakeFrameHeader(testVNI, testMAC(1), testMAC(9), encap.EtherTypeIPv6), in)
	got, _ := a.queue.Receive(t)
	if p, err := encap.ParseIPv6(got); err != nil || p.ECN() != encap.ECNCE {
		t.Errorf("congestion was marked outside, inside is ECN %d, %v", p.ECN(), err)
	}
}

// A question about our IPv6 address is answered where it came from, and a packet
// to nobody has an ICMPv6 error in return.
func TestIntegrationDualStackAnswers(t *testing.T) {
	h := newDualHost(t)
	a := h.start(t, 1)
	addPeers(t, a, dualPeers(9)...)
	w := h.wire(t, dualAddress(1))
	target := a.config.Link.Addresses[1].As16()
	solicitation := udp6("fd00:0:0:9::", "ff02::1:ff00:0", 24) // as long as one with an option
	solicitation[6], solicitation[7] = encap.ProtoICMPv6, 255
	icmp := solicitation.Payload()
	clear(icmp)
	icmp[0], icmp[24], icmp[25] = 135, 1, 1
	copy(icmp[8:], target[:])
	sum := encap.Checksum(icmp, solicitation.PseudoHeaderSum(encap.ProtoICMPv6, len(icmp)))
	icmp[2], icmp[3] = byte(sum>>8), byte(sum)
	w.send(t, encap.MakeFrameHeader(testVNI, encap.MAC{0x33, 0x33, 0xff}, testMAC(9), encap.EtherTypeIPv6), solicitation)
	f := w.receive(t)
	p, err := encap.ParseIPv6(f.Payload)
	if err != nil || f.Dst != testMAC(9) || f.Src != testMAC(1) || p.Src() != a.config.Link.Addresses[1] || p.Payload()[0] != 136 {
		t.Errorf("not the advertisement: % x, %v", f.Payload, err)
	}
	lost := udp6("fd00:0:0:1::9", "fd00:0:0:77::9", 8)
	a.queue.Send(t, lost)
	got, _ := a.queue.Receive(t)
	if p, err = encap.ParseIPv6(got); err != nil || p.Src() != a.config.Link.Addresses[1] || p.Dst() != lost.Src() ||
		p.Payload()[0] != 1 || !bytes.HasSuffix(got, lost) {
		t.Errorf("not the ICMPv6 error: % x, %v", got, err)
	}
}

// A lease of both families is two peers, each of which may be refused by itself.
func TestIntegrationDualStackFollowsLeases(t *testing.T) {
	h := newDualHost(t)
	a := h.start(t, 1)
	of := func(n byte, v6 string) lease.Lease {
		p := dualPeers(n)
		return lease.Lease{Subnet: p[0].Subnet, IPv6Subnet: p[1].Subnet, Attrs: lease.Attrs{
			PublicIP: p[0].Underlay, PublicIPv6: p[1].Underlay, BackendType: lease.TypeVXLAN,
			BackendData: []byte(`{"VNI":1,"VtepMAC":"` + p[0].MAC.String() + `"}`), BackendV6Data: []byte(v6),
		}}
	}
	good := `{"VNI":1,"VtepMAC":"02:00:00:00:00:66"}`
	noAddress, looped := of(4, good), of(5, good)
	noAddress.Attrs.PublicIPv6 = netip.Addr{}
	looped.Attrs.PublicIPv6 = netip.MustParseAddr("fd00:0:0:7::1")
	err := a.Apply(lease.Update{Reset: true, Leases: []lease.Lease{of(2, good), of(3, `{}`), noAddress, looped}})
	for _, subnet := range []string{"fd00:0:0:3::/64", "fd00:0:0:4::/64", "fd00:0:0:5::/64"} {
		if err == nil || !strings.Contains(err.Error(), subnet) {
			t.Errorf("the error doesn't name %s: %v", subnet, err)
		}
	}
	if got := a.Peers(); len(got) != 5 || got[4] != (Peer{dualPeers(2)[1].Subnet, dualAddress(2), testMAC(0x66)}) {
		t.Fatalf("peers after the snapshot: %v", got)
	}
	testhost.Must(t, a.Apply(lease.Update{Leases: []lease.Lease{of(3, good)}}))
	if got := a.Peers(); len(got) != 6 {
		t.Fatalf("peers after one was put right: %v", got)
	}
	testhost.Must(t, a.Apply(lease.Update{Deleted: []lease.Lease{of(2, good), of(3, good), of(4, good), of(5, good)}}))
	if got := a.Peers(); len(got) != 0 || a.peers.load().knows(dualAddress(2)) {
		t.Fatalf("peers after the deletion: %v", got)
	}
}

// A router of one family takes no peer of the other, and passes over what leases
// say of IPv6.
func TestIntegrationSingleStack(t *testing.T) {
	h := newDualHost(t)
	a := newNodeIn(t, h.Host)
	six := dualPeers(2)[1]
	if err := a.UpdatePeers([]Peer{six}, nil); err == nil || !strings.Contains(err.Error(), "the underlay has no address of") {
		t.Errorf("a peer of another family: %v", err)
	}
	p := dualPeers(2)
	testhost.Must(t, a.Apply(lease.Update{Leases: []lease.Lease{{Subnet: p[0].Subnet, IPv6Subnet: p[1].Subnet, Attrs: lease.Attrs{
		PublicIP: p[0].Underlay, BackendType: lease.TypeVXLAN, BackendData: []byte(`{"VNI":1,"VtepMAC":"02:00:00:00:00:02"}`),
	}}}}))
	if got := a.Peers(); len(got) != 1 || got[0] != p[0] {
		t.Errorf("the peers are %v", got)
	}
	for _, c := range []underlay.Config{
		{Address: dualAddress(1), AddressV6: dualAddress(2), Port: testhost.Port},
		{Address: p[0].Underlay, AddressV6: p[0].Underlay, Port: testhost.Port},
	} {
		if u, err := underlay.Listen(c); err == nil {
			testhost.Must(t, u.Close())
			t.Errorf("%s and %s were taken for two families", c.Address, c.AddressV6)
		}
	}
}

func newNodeIn(t *testing.T, m *testhost.Host) *Router {
	t.Helper()
	underlay := testhost.Inside(m, func() (*underlay.UDP, error) {
		return underlay.Listen(underlay.Config{Address: netip.MustParseAddr("10.66.0.1"), Port: testhost.Port})
	})
	r, err := New(testhost.NewMemoryDevice(t, 1, 0), underlay, Config{VNI: testVNI, MAC: testMAC(1), Link: link.Config{MTU: 1450}})
	testhost.Must(t, err)
	t.Cleanup(func() { testhost.Must(t, r.Close()) })
	return r
}

// The interface carries IPv6 even where the host leaves that off.
func TestIntegrationConfigureLinkIPv6(t *testing.T) {
	m := testhost.New(t)
	c := link.Config{
		Addresses: []netip.Addr{netip.MustParseAddr("10.0.1.0"), netip.MustParseAddr("fd00:0:0:1::")},
		Networks:  []netip.Prefix{netip.MustParsePrefix("10.0.0.0/16"), netip.MustParsePrefix("fd00::/48")},
		MTU:       1430,
	}
	configure := func() error {
		return testhost.Inside(m, func() (error, error) {
			if err := os.WriteFile("/proc/sys/net/ipv6/conf/default/disable_ipv6", []byte("1"), 0); err != nil {
				return nil, err
			}
			d, err := device.Open("flannel.1", device.Config{})
			if err != nil {
				return nil, err
			}
			t.Cleanup(func() { d.Close() })
			return link.Configure("flannel.1", c), nil
		})
	}
	testhost.Must(t, configure())
	route, err := m.RouteGet(net.ParseIP("fd00:0:0:2::9"))
	if err != nil || len(route) != 1 || route[0].LinkIndex != m.Index("flannel.1") || !route[0].Src.Equal(net.ParseIP("fd00:0:0:1::")) {
		t.Errorf("the kernel's way to a peer's container is %v, %v", route, err)
	}
	testhost.Must(t, m.LinkDel(m.Link("flannel.1")))
	testhost.Must(t, m.RouteAdd(&netlink.Route{LinkIndex: m.Index("lo"), Dst: testhost.IPNet(c.Networks[1])}))
	if err := configure(); !errors.Is(err, link.ErrRouteExists) || !strings.Contains(err.Error(), "fd00::/48") {
		t.Errorf("with somebody else's route in the way: %v", err)
	}
}

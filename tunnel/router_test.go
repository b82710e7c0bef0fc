package tunnel

import (
	"bytes"
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"uvxlan/encap"
	"uvxlan/lease"
	"uvxlan/tunnel/device"
	"uvxlan/tunnel/internal/descriptor"
	"uvxlan/tunnel/internal/testhost"
	"uvxlan/tunnel/link"
	"uvxlan/tunnel/offload"
	"uvxlan/tunnel/onlink"
	"uvxlan/tunnel/underlay"
)

func TestMain(m *testing.M) {
	if role := os.Getenv(roleVariable); role != "" {
		os.Exit(play(role))
	}
	goleak.VerifyTestMain(m)
}

const testVNI = 7

// node is a router between a memory device and real sockets on an address of
// its own in 127.0.0.0/8.
type node struct {
	*Router
	queue  *testhost.MemoryQueue
	peer   Peer
	config Config
}

func testMAC(n byte) encap.MAC { return encap.MAC{2, 0, 0, 0, 0, n} }

// startNode runs a router as 127.0.0.n that owns 10.0.n.0/24.
func startNode(t *testing.T, n byte, port uint16, change func(*Config)) *node {
	t.Helper()
	nd := newNode(t, n, port, change)
	nd.run(t)
	return nd
}

// run runs the router until the test ends.
func (n *node) run(t *testing.T) {
	done := make(chan error, 1)
	go func() { done <- n.Run(context.Background()) }()
	t.Cleanup(func() {
		err := n.Close()
		if run := <-done; err != nil || run != nil && !errors.Is(run, ErrClosed) {
			t.Error("closing the router:", err, run)
		}
	})
}

func newNode(t testing.TB, n byte, port uint16, change func(*Config)) *node {
	t.Helper()
	return newNodeOn(t, testhost.NewMemoryDevice(t, 1, 0), n, port, 0, change)
}

func newNodeOn(t testing.TB, device *testhost.MemoryDevice, n byte, port uint16, o offload.Set, change func(*Config)) *node {
	t.Helper()
	address := netip.AddrFrom4([4]byte{127, 0, 0, n})
	underlay, err := underlay.Listen(underlay.Config{Address: address, Port: port, Offloads: o})
	if err != nil {
		t.Fatal(err)
	}
	c := Config{
		VNI: testVNI, MAC: testMAC(n),
		Link: link.Config{
			MTU:       1450,
			Addresses: []netip.Addr{netip.AddrFrom4([4]byte{10, 0, n, 0}), netip.MustParseAddr("fd00::1")},
			Networks:  []netip.Prefix{netip.MustParsePrefix("10.0.0.0/16")},
		},
	}
	if change != nil {
		change(&c)
	}
	r, err := New(device, underlay, c)
	if err != nil {
		t.Fatal(err)
	}
	subnet := netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 0, n, 0}), 24)
	return &node{r, device.Far[0], Peer{Subnet: subnet, Underlay: address, MAC: c.MAC}, c}
}

// testPeer9 is played by a wire from 127.0.0.9.
var testPeer9 = Peer{netip.MustParsePrefix("10.0.9.0/24"), netip.MustParseAddr("127.0.0.9"), testMAC(9)}

func addPeers(t testing.TB, n *node, peers ...Peer) {
	t.Helper()
	if err := n.UpdatePeers(peers, nil); err != nil {
		t.Fatal(err)
	}
}

func TestRouterCarriesPackets(t *testing.T) {
	port := testhost.FreePort(t)
	a, b := startNode(t, 1, port, nil), startNode(t, 2, port, nil)
	addPeers(t, a, b.peer)
	addPeers(t, b, a.peer)

	for _, size := range []int{0, 1, 100, 1422, 9000, 60000} {
		sent := testhost.UDPPacket("10.0.1.9", "10.0.2.9", size)
		a.queue.Send(t, sent)
		got, offload := b.queue.Receive(t)
		if !bytes.Equal(got, sent) || offload != (encap.Offload{}) {
			t.Fatalf("%d bytes of payload: the packet changed on its way, offload %+v", size, offload)
		}
	}
	answer := testhost.UDPPacket("10.0.2.9", "10.0.1.9", 64)
	b.queue.Send(t, answer)
	if got, _ := a.queue.Receive(t); !bytes.Equal(got, answer) {
		t.Fatal("the answer changed on its way")
	}
	const there, back = 6*28 + 1 + 100 + 1422 + 9000 + 60000, 28 + 64
	expect := func(n *node, tx, txBytes, rx, rxBytes uint64) {
		t.Helper()
		waitStats(t, n, func(s Stats) bool {
			return s.TxPackets == tx && s.TxBytes == txBytes && s.RxPackets == rx && s.RxBytes == rxBytes && s.Dropped() == 0
		})
	}
	expect(a, 6, there, 1, back)
	expect(b, 1, back, 6, there)
}

// waitStats waits until the counters are as wanted: they follow each batch, one after
// the other, so that those of a batch may be there in part.
func waitStats(t testing.TB, n interface{ Stats() Stats }, want func(Stats) bool) Stats {
	t.Helper()
	for deadline := time.Now().Add(testhost.Patience); ; time.Sleep(time.Millisecond) {
		s := n.Stats()
		if want(s) {
			return s
		}
		if time.Now().After(deadline) {
			t.Fatalf("counters stay at %+v", s)
		}
	}
}

func TestRouterTellsSenderOfUnknownDestination(t *testing.T) {
	a := startNode(t, 1, testhost.FreePort(t), nil)
	sent := testhost.UDPPacket("10.0.1.9", "10.0.99.1", 32)
	a.queue.Send(t, sent)
	got, _ := a.queue.Receive(t)
	p, err := encap.ParseIPv4(got)
	if err != nil {
		t.Fatal(err)
	}
	icmp := p.Payload()
	if p.Src() != a.config.Link.Addresses[0] || p.Dst() != sent.Src() || p.Protocol() != encap.ProtoICMP ||
		icmp[0] != 3 || icmp[1] != encap.ICMPNetUnreachable || !bytes.HasPrefix(icmp[8:], sent[:28]) {
		t.Fatalf("not the ICMP error for it: % x", got)
	}
	waitStats(t, a, func(s Stats) bool { return s.Drop(DropNoRoute) == 1 && s.Answers == 1 })
	a.queue.Send(t, testhost.UDPPacket("10.0.1.9", "224.0.0.1", 1))
	waitStats(t, a, func(s Stats) bool { return s.Drop(DropMulticast) == 1 })
	a.queue.Send(t, []byte{0x45, 0})
	waitStats(t, a, func(s Stats) bool { return s.Drop(DropMalformedOut) == 1 })
}

// wire sends bytes to a node's VXLAN port from an address of 127.0.0.0/8.
type wire struct {
	*net.UDPConn
	to *net.UDPAddr
}

func newWire(t testing.TB, from byte, to *node) *wire {
	t.Helper()
	address := netip.AddrFrom4([4]byte{127, 0, 0, from})
	c, err := net.ListenUDP("udp4", net.UDPAddrFromAddrPort(netip.AddrPortFrom(address, to.locals[0].Port())))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return &wire{c, net.UDPAddrFromAddrPort(netip.AddrPortFrom(to.peer.Underlay, to.locals[0].Port()))}
}

func (w *wire) send(t testing.TB, header encap.FrameHeader, payload []byte) {
	t.Helper()
	if _, err := w.WriteTo(append(header[:], payload...), w.to); err != nil {
		t.Fatal(err)
	}
}

func (w *wire) receive(t testing.TB) (f encap.Frame) {
	t.Helper()
	buf := make([]byte, device.MaxPacket)
	if err := w.SetReadDeadline(time.Now().Add(testhost.Patience)); err != nil {
		t.Fatal(err)
	}
	n, err := w.Read(buf)
	if err == nil {
		err = f.Decode(buf[:n])
	}
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// lateConn has something happen while the worker is about to receive.
type lateConn struct {
	underlay.Conn
	before func()
}

func (c *lateConn) Receive(keep bool) ([]underlay.Message, bool, error) {
	if c.before != nil {
		c.before()
		c.before = nil
	}
	return c.Conn.Receive(keep)
}

// A peer is added while the worker is about to receive, here within the call, and
// then the peer's packet comes: UpdatePeers has returned, so it belongs.
func TestInboundKnowsPeersAddedBefore(t *testing.T) {
	a := newNode(t, 1, testhost.FreePort(t), nil)
	defer a.Close()
	w := newWire(t, 9, a)
	in := a.workers[0].in
	sent := testhost.UDPPacket("10.0.9.1", "10.0.1.9", 8)
	in.conn = &lateConn{in.conn, func() {
		addPeers(t, a, testPeer9)
		w.send(t, encap.MakeFrameHeader(testVNI, testMAC(1), testMAC(9), encap.EtherTypeIPv4), sent)
		fds := []unix.PollFd{{Fd: int32(in.conn.FDs()[0]), Events: unix.POLLIN}}
		if n, err := descriptor.Poll(fds, nil); n != 1 || err != nil {
			t.Errorf("no datagram came: %v", err)
		}
	}}
	if _, err := in.drain(); err != nil {
		t.Fatal(err)
	}
	if s := a.Stats(); s.RxPackets != 1 || s.Dropped() != 0 {
		t.Fatalf("the packet did not arrive: %+v", s)
	}
	if got, _ := a.queue.Receive(t); !bytes.Equal(got, sent) {
		t.Fatal("the packet changed on its way")
	}
}

func TestRouterDropsWhatDoesNotBelong(t *testing.T) {
	good := testhost.UDPPacket("10.0.9.1", "10.0.1.9", 8)
	header := encap.MakeFrameHeader(testVNI, testMAC(1), testMAC(9), encap.EtherTypeIPv4)
	with := func(change func(h *encap.FrameHeader)) encap.FrameHeader {
		h := header
		change(&h)
		return h
	}
	for _, c := range []struct {
		name    string
		from    byte
		header  encap.FrameHeader
		payload []byte
		want    DropReason
	}{
		{"unknown outer source", 8, header, good, DropUnknownPeer},
		{"foreign VNI", 9, with(func(h *encap.FrameHeader) { h[6]++ }), good, DropForeignVNI},
		{"no I flag", 9, with(func(h *encap.FrameHeader) { h[0] = 0 }), good, DropNoVNI},
		{"wrong inner MAC", 9, with(func(h *encap.FrameHeader) { h[13]++ }), good, DropInnerMAC},
		{"IPv4 to a group MAC", 9, with(func(h *encap.FrameHeader) { h[8] |= 1 }), good, DropInnerMAC},
		{"inner source of nobody", 9, header, testhost.UDPPacket("10.9.9.1", "10.0.1.9", 8), DropInnerSource},
		{"inner source of us", 9, header, testhost.UDPPacket("10.0.1.5", "10.0.1.9", 8), DropInnerSource},
		{"truncated inner packet", 9, header, good[:30], DropMalformed},
		{"no IP packet", 9, header, make([]byte, 64), DropMalformed},
		{"other EtherType", 9, with(func(h *encap.FrameHeader) { h[20], h[21] = 0x88, 0xcc }), good, DropEtherType},
	} {
		t.Run(c.name, func(t *testing.T) {
			a := startNode(t, 1, testhost.FreePort(t), nil)
			addPeers(t, a, testPeer9)
			newWire(t, c.from, a).send(t, c.header, c.payload)
			s := waitStats(t, a, func(s Stats) bool { return s.Dropped() == 1 })
			if s.Drop(c.want) != 1 || s.RxPackets != 0 {
				t.Fatalf("want one drop for %s, counted %+v", c.want, s)
			}
		})
	}
	t.Run("short", func(t *testing.T) {
		a := startNode(t, 1, testhost.FreePort(t), nil)
		w := newWire(t, 9, a)
		if _, err := w.WriteTo(header[:21], w.to); err != nil {
			t.Fatal(err)
		}
		waitStats(t, a, func(s Stats) bool { return s.Drop(DropShort) == 1 })
	})
	t.Run("any source", func(t *testing.T) {
		a := startNode(t, 1, testhost.FreePort(t), func(c *Config) { c.AnySource = true })
		newWire(t, 8, a).send(t, header, good)
		if got, _ := a.queue.Receive(t); !bytes.Equal(got, good) {
			t.Fatal("the packet changed on its way")
		}
	})
	t.Run("peer's own address", func(t *testing.T) {
		a := startNode(t, 1, testhost.FreePort(t), nil)
		addPeers(t, a, testPeer9)
		fromHost := testhost.UDPPacket("127.0.0.9", "10.0.1.9", 8)
		newWire(t, 9, a).send(t, header, fromHost)
		if got, _ := a.queue.Receive(t); !bytes.Equal(got, fromHost) {
			t.Fatal("the packet changed on its way")
		}
	})
}

func TestRouterAnswersARP(t *testing.T) {
	a := startNode(t, 1, testhost.FreePort(t), nil)
	addPeers(t, a, testPeer9)
	w := newWire(t, 9, a)
	request := []byte{
		0, 1, 8, 0, 6, 4, 0, 1, // Ethernet, IPv4, request
		2, 0, 0, 0, 0, 9, 10, 0, 9, 0, // sender
		0, 0, 0, 0, 0, 0, 10, 0, 1, 0, // target: our VTEP's address
	}
	group := encap.MAC{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}
	w.send(t, encap.MakeFrameHeader(testVNI, group, testMAC(9), encap.EtherTypeARP), request)
	f := w.receive(t)
	if f.Dst != testMAC(9) || f.Src != testMAC(1) || f.EtherType != encap.EtherTypeARP || f.VNI != testVNI {
		t.Fatalf("the reply's frame is %+v", f)
	}
	want := append([]byte{0, 1, 8, 0, 6, 4, 0, 2, 2, 0, 0, 0, 0, 1, 10, 0, 1, 0}, request[8:18]...)
	if !bytes.Equal(f.Payload, want) {
		t.Fatalf("the reply is % x", f.Payload)
	}
	request[27] = 77 // somebody else's address
	w.send(t, encap.MakeFrameHeader(testVNI, group, testMAC(9), encap.EtherTypeARP), request)
	s := waitStats(t, a, func(s Stats) bool { return s.Drop(DropEtherType) == 1 && s.Answers == 1 })
	// The reply is a frame that was sent, of no packet of the device's.
	if s.TxDatagrams != 1 || s.TxMessages != 1 || s.TxBytes != encap.ARPLen || s.TxPackets != 0 {
		t.Errorf("the reply counts as sent: %d datagrams, %d messages, %d bytes, %d packets", s.TxDatagrams, s.TxMessages, s.TxBytes, s.TxPackets)
	}
	if s.RxDatagrams != 2 || s.RxMessages != 2 || s.RxBytes != 0 || s.RxPackets != 0 {
		t.Errorf("two questions count as received: %d datagrams, %d messages, %d bytes, %d packets", s.RxDatagrams, s.RxMessages, s.RxBytes, s.RxPackets)
	}
}

func TestRouterAnswersNeighborSolicitation(t *testing.T) {
	a := startNode(t, 1, testhost.FreePort(t), nil)
	addPeers(t, a, testPeer9)
	w := newWire(t, 9, a)
	solicitation := []byte{
		0x60, 0, 0, 0, 0, 32, 58, 255, // IPv6: 32 bytes of ICMPv6, hop limit 255
		0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 9, // from fd00::9
		0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff, 0, 0, 1, // to the solicited-node group
		135, 0, 0, 0, 0, 0, 0, 0, // neighbour solicitation
		0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, // for fd00::1, our VTEP's
		1, 1, 2, 0, 0, 0, 0, 9, // from this MAC
	}
	sum := encap.Checksum(solicitation[40:], encap.IPv6(solicitation).PseudoHeaderSum(encap.ProtoICMPv6, 32))
	solicitation[42], solicitation[43] = byte(sum>>8), byte(sum)
	group := encap.MAC{0x33, 0x33, 0xff, 0, 0, 1}
	w.send(t, encap.MakeFrameHeader(testVNI, group, testMAC(9), encap.EtherTypeIPv6), solicitation)
	f := w.receive(t)
	p, err := encap.ParseIPv6(f.Payload)
	if err != nil {
		t.Fatal(err)
	}
	icmp := p.Payload()
	if f.Dst != testMAC(9) || p.Src() != a.config.Link.Addresses[1] || icmp[0] != 136 || !bytes.Equal(icmp[26:32], a.config.MAC[:]) {
		t.Fatalf("not the advertisement: % x", f.Payload)
	}
}

func TestRouterFollowsLeases(t *testing.T) {
	a := startNode(t, 1, testhost.FreePort(t), nil)
	leaseOf := func(subnet, ip, backend, mac string) lease.Lease {
		return lease.Lease{Subnet: netip.MustParsePrefix(subnet), Attrs: lease.Attrs{
			PublicIP: netip.MustParseAddr(ip), BackendType: backend, BackendData: []byte(`{"VNI":1,"VtepMAC":"` + mac + `"}`),
		}}
	}
	two := leaseOf("10.0.2.0/24", "127.0.0.2", "vxlan", "02:00:00:00:00:02")
	err := a.Apply(lease.Update{Reset: true, Leases: []lease.Lease{
		two,
		leaseOf("10.0.3.0/24", "127.0.0.3", "host-gw", "02:00:00:00:00:03"),
		leaseOf("10.0.4.0/24", "127.0.0.4", "vxlan", "nonsense"),
		leaseOf("10.0.5.0/24", "10.0.5.5", "vxlan", "02:00:00:00:00:05"),
	}})
	for _, subnet := range []string{"10.0.3.0/24", "10.0.4.0/24", "10.0.5.0/24"} {
		if err == nil || !strings.Contains(err.Error(), subnet) {
			t.Errorf("the error doesn't name %s: %v", subnet, err)
		}
	}
	if p := a.Peers(); len(p) != 1 || p[0].Underlay != two.Attrs.PublicIP {
		t.Fatalf("peers after the snapshot: %v", p)
	}
	moved := leaseOf("10.0.2.0/24", "127.0.0.6", "vxlan", "02:00:00:00:00:06")
	if err := a.Apply(lease.Update{Leases: []lease.Lease{moved}}); err != nil {
		t.Fatal(err)
	}
	if p := a.Peers(); len(p) != 1 || p[0] != (Peer{moved.Subnet, moved.Attrs.PublicIP, testMAC(6)}) {
		t.Fatalf("peers after the change: %v", p)
	}
	if err := a.Apply(lease.Update{Deleted: []lease.Lease{{Subnet: moved.Subnet}}}); err != nil {
		t.Fatal(err)
	}
	if p := a.Peers(); len(p) != 0 || a.peers.load().knows(moved.Attrs.PublicIP) {
		t.Fatalf("peers after the deletion: %v", p)
	}
}

func TestRouterClose(t *testing.T) {
	port := testhost.FreePort(t)
	a := newNode(t, 1, port, nil)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- a.Run(ctx) }()
	cancel()
	if err := <-done; err != nil {
		t.Fatalf("Run after its context ended: %v", err)
	}
	for range 2 {
		if err := a.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if err := a.Run(context.Background()); !errors.Is(err, ErrClosed) {
		t.Fatalf("Run after Close: %v", err)
	}
	b := newNode(t, 1, port, nil) // the port is free again
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestRouterReportsLostDevice(t *testing.T) {
	a := newNode(t, 1, testhost.FreePort(t), nil)
	defer a.Close()
	if err := unix.Shutdown(a.queue.FD(), unix.SHUT_RDWR); err != nil {
		t.Fatal(err)
	}
	if err := a.Run(context.Background()); !errors.Is(err, device.ErrGone) {
		t.Fatalf("Run: %v", err)
	}
}

func TestRouterReportsLostUnderlay(t *testing.T) {
	a := newNode(t, 1, testhost.FreePort(t), nil)
	defer a.Close()
	notSocket, err := unix.Open("/dev/null", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(notSocket)
	if err := unix.Dup3(notSocket, a.workers[0].conn.FDs()[0], unix.O_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	if err := a.Run(context.Background()); !errors.Is(err, underlay.ErrGone) {
		t.Fatalf("Run: %v", err)
	}
}

func TestNewRefusesBadConfig(t *testing.T) {
	device := testhost.NewMemoryDevice(t, 2, 0)
	defer device.Close()
	underlay, err := underlay.Listen(underlay.Config{Address: netip.MustParseAddr("127.0.0.1"), Port: testhost.FreePort(t)})
	if err != nil {
		t.Fatal(err)
	}
	defer underlay.Close()
	_, err = New(device, underlay, Config{VNI: 1 << 24, Link: link.Config{MTU: 20}})
	for _, want := range []string{"VNI", "MAC", "MTU", "queues"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("the error doesn't name %s: %v", want, err)
		}
	}
}

// A list of no packet sockets is too short a list, not none.
func TestNewRefusesNoPacketSockets(t *testing.T) {
	paths, err := onlink.Open(onlink.Config{Mode: onlink.Socket, Sockets: []int{}})
	testhost.Must(t, err)
	defer paths.Close()
	dev := testhost.NewMemoryDevice(t, 1, 0)
	defer dev.Close()
	u, err := underlay.NewMemory().Listen(1, netip.MustParseAddrPort("192.0.2.1:4789"))
	testhost.Must(t, err)
	defer u.Close()
	r, err := New(dev, u, Config{MAC: testMAC(1), Link: link.Config{MTU: 1450}, OnLink: paths})
	if err == nil || !strings.Contains(err.Error(), "0 packet sockets") {
		t.Errorf("New returned %v, %v", r, err)
	}
}

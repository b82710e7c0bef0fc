package tunnel

import (
	"bytes"
	"context"
	"encoding/binary"
	"net/netip"
	"slices"
	"sync"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"uvxlan/encap"
	"uvxlan/tunnel/internal/testhost"
	"uvxlan/tunnel/internal/vnet"
	"uvxlan/tunnel/link"
	"uvxlan/tunnel/nexthop"
	"uvxlan/tunnel/offload"
	"uvxlan/tunnel/onlink"
	"uvxlan/tunnel/underlay"
)

// neighbours is a router of 10.66.0.1 whose peer 10.66.0.2 is on the link eth0,
// and can be reached by the link back as well.
type neighbours struct {
	*Router
	t     *testing.T
	a, b  *testhost.Host
	queue *testhost.MemoryQueue
	eth0  *testhost.Wiretap
	back  *testhost.Wiretap
	peer  Peer
}

func newNeighbours(t *testing.T, mode onlink.Mode, workers int) *neighbours {
	t.Helper()
	n := &neighbours{t: t, a: testhost.New(t), b: testhost.New(t)}
	testhost.Join(n.a, n.b, "eth0", "10.66.0")
	testhost.Join(n.a, n.b, "back", "10.77.0")
	n.a.Address("lo", "10.66.0.1/32") // so that it outlives eth0
	testhost.Must(t, n.a.RouteAdd(&netlink.Route{
		Dst: testhost.IPNet(netip.MustParsePrefix("10.66.0.0/24")), Gw: []byte{10, 77, 0, 2}, Priority: 1000,
	}))
	n.eth0, n.back = testhost.Tap(n.b, "eth0"), testhost.Tap(n.b, "back")
	underlay := testhost.Inside(n.a, func() (*underlay.UDP, error) {
		return underlay.Listen(underlay.Config{Address: netip.MustParseAddr("10.66.0.1"), Port: testhost.Port, Workers: workers})
	})
	paths := testhost.Inside(n.a, func() (*onlink.Paths, error) {
		return onlink.Open(onlink.Config{Mode: mode, Workers: workers})
	})
	device := testhost.NewMemoryDevice(t, workers, offload.All)
	n.queue = device.Far[0]
	var err error
	n.Router, err = New(device, underlay, Config{
		VNI: testVNI, MAC: testMAC(1), Link: link.Config{
			MTU:       1450,
			Addresses: []netip.Addr{netip.MustParseAddr("10.0.1.0")},
			Networks:  []netip.Prefix{netip.MustParsePrefix("10.0.0.0/16")},
		},
		OnLink: paths,
	})
	testhost.Must(t, err)
	t.Cleanup(func() { testhost.Must(t, n.Close()) })
	n.peer = Peer{netip.MustParsePrefix("10.0.2.0/24"), netip.MustParseAddr("10.66.0.2"), testMAC(2)}
	testhost.Must(t, n.ReplacePeers([]Peer{n.peer, n.peer6()}))
	return n
}

func (n *neighbours) peer6() Peer {
	return Peer{netip.MustParsePrefix("fd00:0:0:2::/64"), n.peer.Underlay, n.peer.MAC}
}

// start runs the router.
func (n *neighbours) start() {
	var running sync.WaitGroup
	running.Go(func() {
		if err := n.Run(context.Background()); err != nil {
			n.t.Error(err)
		}
	})
	n.t.Cleanup(func() {
		testhost.Must(n.t, n.Close())
		running.Wait()
	})
}

func (n *neighbours) awaitPath(want string) {
	n.t.Helper()
	var got string
	defer func() {
		if got != want {
			n.t.Logf("the path is %q", got)
		}
	}()
	testhost.Await(n.t, want, func() bool {
		got = n.Path(n.peer.Subnet).String()
		return got == want
	})
}

func (n *neighbours) direct() string { return "direct via eth0 " + n.b.MAC("eth0").String() }

// found takes the place of the watcher, which doesn't run.
func (n *neighbours) found() {
	n.t.Helper()
	n.paths.Found([]nexthop.Change{{Addr: n.peer.Underlay, Hop: nexthop.Hop{
		OnLink: true, Link: "eth0", Index: n.a.Index("eth0"), MTU: 1500, Source: n.a.MAC("eth0"), MAC: n.b.MAC("eth0"),
	}}})
	if got := n.Path(n.peer.Subnet).String(); got != n.direct() {
		n.t.Fatalf("the path is %q", got)
	}
}

// batch sends packets in one.
func (n *neighbours) batch(packets ...[]byte) {
	n.t.Helper()
	for _, p := range packets {
		n.queue.Send(n.t, p)
	}
	if _, err := n.workers[0].out.drain(); err != nil {
		n.t.Fatal(err)
	}
}

func (n *neighbours) expect(w *testhost.Wiretap, vxlan bool, want ...[]byte) {
	n.t.Helper()
	for i, p := range want {
		got := w.Next()
		if got.VXLAN != vxlan || !bytes.Equal(got.Packet, p) {
			n.t.Errorf("packet %d: in VXLAN: %t, %d bytes, want %t, %d", i, got.VXLAN, len(got.Packet), vxlan, len(p))
		}
	}
}

// udp6 is an IPv6 UDP packet with the right checksum.
func udp6(src, dst string, payload int) encap.IPv6 {
	s, d := netip.MustParseAddr(src).As16(), netip.MustParseAddr(dst).As16()
	p := encap.IPv6(make([]byte, 48+payload))
	p[0], p[6], p[7] = 0x60, encap.ProtoUDP, 64
	copy(p[8:], s[:])
	copy(p[24:], d[:])
	p.SetPayloadLen(8 + payload)
	p[41], p[43] = 53, 54
	binary.BigEndian.PutUint16(p[44:], uint16(8+payload))
	binary.BigEndian.PutUint16(p[46:], encap.Checksum(p[40:], p.PseudoHeaderSum(encap.ProtoUDP, 8+payload)))
	return p
}

func TestIntegrationDirect(t *testing.T) {
	n := newNeighbours(t, onlink.Socket, 1)
	n.start()
	n.awaitPath(n.direct())

	unfilled := testhost.TCPPacket("10.0.1.9", "10.0.2.9", 1, 500)
	super := testhost.TCPPacket("10.0.1.9", "10.0.2.9", 1000, 60000-52)
	udpSuper := testhost.UDPPacket("10.0.1.9", "10.0.2.9", 10*1000+7)
	partial := encap.Offload{NeedsChecksum: true, ChecksumStart: 20, ChecksumOffset: 16}
	udp := encap.Offload{NeedsChecksum: true, ChecksumStart: 20, ChecksumOffset: 6, GSO: encap.GSOUDP, SegmentSize: 1000, HeaderLen: 28}
	for _, c := range []struct {
		name    string
		packet  []byte
		offload encap.Offload
	}{
		{"UDP", testhost.UDPPacket("10.0.1.9", "10.0.2.9", 100), encap.Offload{}},
		{"UDP of the MTU", testhost.UDPPacket("10.0.1.9", "10.0.2.9", 1422), encap.Offload{}},
		{"UDP over IPv6", udp6("fd00:0:0:1::9", "fd00:0:0:2::9", 100), encap.Offload{}},
		{"TCP without checksum", unfilled, partial},
		{"TCP superpacket", super, testhost.Superpacket(1398)},
		{"UDP superpacket", udpSuper, udp},
	} {
		t.Run(c.name, func(t *testing.T) {
			testhost.Must(t, n.queue.Write(c.offload, [][]byte{c.packet}))
			got := n.eth0.Next()
			want := c.offload
			want.HeaderLen = 0
			if got.VXLAN || got.Source != n.a.MAC("eth0") || got.Target != n.b.MAC("eth0") ||
				!bytes.Equal(got.Packet, c.packet) || got.Offload != want {
				t.Errorf("in VXLAN: %t, from %s to %s, %d bytes of %d, offload %+v", got.VXLAN, got.Source, got.Target, len(got.Packet), len(c.packet), got.Offload)
			}
		})
	}
	waitStats(t, n, func(s Stats) bool {
		return s.TxPackets == 6 && s.TxDirect == 6 && s.TxDatagrams == 0 && s.Dropped() == 0
	})
}

// The path follows the neighbour entry, the link, and the peer.
func TestIntegrationDirectFollows(t *testing.T) {
	n := newNeighbours(t, onlink.Socket, 2)
	n.start()
	n.awaitPath(n.direct())
	packet := testhost.UDPPacket("10.0.1.9", "10.0.2.9", 100)

	testhost.Must(t, n.a.LinkSetDown(n.a.Link("eth0")))
	n.queue.Send(t, packet) // before the watcher knows, or after
	n.expect(n.back, true, packet)
	n.awaitPath("vxlan: via gateway 10.77.0.2")

	testhost.Must(t, n.a.LinkSetUp(n.a.Link("eth0")))
	n.awaitPath(n.direct())
	n.queue.Send(t, packet)
	n.expect(n.eth0, false, packet)

	testhost.Must(t, n.UpdatePeers(nil, []netip.Prefix{netip.MustParsePrefix("10.0.2.9/24"), n.peer6().Subnet}))
	if p := n.Path(n.peer.Subnet); p != (onlink.Path{}) {
		t.Errorf("a removed peer has the path %v", p)
	}
	testhost.Must(t, n.UpdatePeers([]Peer{n.peer}, nil))
	n.awaitPath(n.direct())

	testhost.Must(t, n.a.LinkDel(n.a.Link("eth0")))
	n.queue.Send(t, packet)
	n.expect(n.back, true, packet)
	n.awaitPath("vxlan: via gateway 10.77.0.2")
}

// A link that is down or gone: the batch that meets it goes by VXLAN, whole and
// in order, and the path says so.
func TestIntegrationDirectLinkGoes(t *testing.T) {
	for name, c := range map[string]struct {
		take  func(*testhost.Host) error
		words string
	}{
		"down":    {func(h *testhost.Host) error { return h.LinkSetDown(h.Link("eth0")) }, "vxlan: eth0 takes no frames: network is down"},
		"deleted": {func(h *testhost.Host) error { return h.LinkDel(h.Link("eth0")) }, "vxlan: eth0 takes no frames: no such device or address"},
	} {
		t.Run(name, func(t *testing.T) {
			n := newNeighbours(t, onlink.Socket, 1)
			n.found()
			var batch [][]byte
			for i := range 40 {
				batch = append(batch, testhost.UDPPacket("10.0.1.9", "10.0.2.9", 100+i))
			}
			n.batch(batch...)
			n.expect(n.eth0, false, batch...)
			testhost.Must(t, c.take(n.a))
			n.batch(batch...)
			n.expect(n.back, true, batch...)
			if got := n.Path(n.peer.Subnet).String(); got != c.words {
				t.Errorf("the path is %q, want %q", got, c.words)
			}
			if s := n.Stats(); s.TxDirect != 40 || s.TxDatagrams != 40 || s.Dropped() != 0 {
				t.Errorf("counted %+v", s)
			}
			if got := n.Traffic(n.peer.Subnet); got.TxPackets != 80 || got.TxDropped != 0 {
				t.Errorf("of the peer there is %+v", got)
			}
		})
	}
}

// What precedes a refused packet is not sent twice, and what follows on its link
// takes the same way; other links go on.
func TestIntegrationDirectRefusal(t *testing.T) {
	n := newNeighbours(t, onlink.Socket, 1)
	other := Peer{netip.MustParsePrefix("10.0.3.0/24"), netip.MustParseAddr("10.77.0.2"), testMAC(3)}
	testhost.Must(t, n.UpdatePeers([]Peer{other}, nil))
	n.found()
	n.paths.Found([]nexthop.Change{{Addr: other.Underlay, Hop: nexthop.Hop{
		OnLink: true, Link: "back", Index: n.a.Index("back"), MTU: 1500, Source: n.a.MAC("back"), MAC: n.b.MAC("back"),
	}}})
	packet := func(size int) []byte { return testhost.UDPPacket("10.0.1.9", "10.0.2.9", size) }
	elsewhere := testhost.UDPPacket("10.0.1.9", "10.0.3.9", 10)
	n.batch(packet(1), packet(2), packet(2000), elsewhere, packet(3), packet(4), elsewhere)
	n.expect(n.eth0, false, packet(1), packet(2))
	n.expect(n.back, false, elsewhere, elsewhere)
	whole := n.fragments()
	if !bytes.Equal(whole, packet(2000)) {
		t.Errorf("%d bytes of the packet that was refused", len(whole))
	}
	n.expect(n.eth0, true, packet(3), packet(4))
	if s := n.Stats(); s.TxDirect != 4 || s.TxDatagrams != 3 || s.TxPackets != 7 || s.Dropped() != 0 {
		t.Errorf("counted %+v", s)
	}
	if got := n.Traffic(n.peer.Subnet); got.TxPackets != 5 || got.TxDropped != 0 {
		t.Errorf("of the peer there is %+v", got)
	}
	if got := n.Traffic(other.Subnet); got.TxPackets != 2 || got.TxDropped != 0 {
		t.Errorf("of the other peer there is %+v", got)
	}
	n.batch(packet(5))
	n.expect(n.eth0, true, packet(5))
	n.found()
	n.batch(packet(6))
	n.expect(n.eth0, false, packet(6))
}

// fragments is the inner packet of the next datagram that is longer than the
// link's MTU.
func (n *neighbours) fragments() (inner []byte) {
	n.t.Helper()
	var buf [4096]byte
	for at := 0; ; {
		testhost.Await(n.t, "a fragment", func() bool {
			var err error
			at, err = unix.Read(n.eth0.FD, buf[:])
			return err == nil
		})
		p := encap.IPv4(buf[vnet.HeaderLen+encap.EthernetHeaderLen : at])
		if binary.BigEndian.Uint16(buf[vnet.HeaderLen+12:]) != encap.EtherTypeIPv4 || !p.IsFragment() {
			continue
		}
		inner = append(inner, p[20:p.TotalLen()]...)
		if p[6]&0x20 == 0 {
			return inner[8+encap.FrameHeaderLen:]
		}
	}
}

// A batch of the direct route costs no allocation, with joined datagrams and
// superpackets in it, and with a host that has no direct path.
func TestIntegrationDirectDoesNotAllocate(t *testing.T) {
	n := newNeighbours(t, onlink.Socket, 1)
	testhost.Must(t, n.UpdatePeers([]Peer{{netip.MustParsePrefix("10.0.4.0/24"), netip.MustParseAddr("10.77.0.2"), testMAC(4)}}, nil))
	n.found()
	w := n.workers[0]
	for name, q := range map[string]*loopQueue{
		"UDP":         {packets: slices.Repeat([][]byte{testhost.UDPPacket("10.0.1.9", "10.0.2.9", 64)}, 32)},
		"TCP":         {packets: slices.Repeat([][]byte{testhost.TCPPacket("10.0.1.9", "10.0.2.9", 1, 60000)}, 4), offload: testhost.Superpacket(1398)},
		"both routes": {packets: [][]byte{testhost.UDPPacket("10.0.1.9", "10.0.2.9", 64), testhost.UDPPacket("10.0.1.9", "10.0.4.9", 64)}},
	} {
		w.out.queue = q
		before := n.Stats()
		allocations := testing.AllocsPerRun(100, func() {
			if _, err := w.out.drain(); err != nil {
				t.Fatal(err)
			}
		})
		if s := n.Stats(); allocations != 0 || s.TxDirect == before.TxDirect || s.Dropped() != before.Dropped() {
			t.Errorf("%s: %v allocations a batch, %d sent, %d dropped", name, allocations, s.TxDirect-before.TxDirect, s.Dropped()-before.Dropped())
		}
	}
}

// Peers may change, be asked for, and end at any moment.
func TestIntegrationDirectConcurrently(t *testing.T) {
	for name, mode := range map[string]onlink.Mode{"socket": onlink.Socket, "route": onlink.Route} {
		t.Run(name, func(t *testing.T) {
			n := newNeighbours(t, mode, 1)
			n.start()
			stop := make(chan struct{})
			var busy sync.WaitGroup
			again := func(do func(i int)) {
				busy.Go(func() {
					for i := 0; ; i++ {
						select {
						case <-stop:
							return
						default:
							do(i)
						}
					}
				})
			}
			other := Peer{netip.MustParsePrefix("10.0.3.0/24"), netip.MustParseAddr("10.66.0.3"), testMAC(3)}
			again(func(i int) {
				moving := n.peer
				if i%2 == 0 {
					moving.Underlay = other.Underlay
				}
				_ = n.UpdatePeers([]Peer{moving, other}, nil)
			})
			again(func(int) { _ = n.UpdatePeers(nil, []netip.Prefix{other.Subnet}) })
			again(func(int) { _ = n.ReplacePeers([]Peer{n.peer, other}) })
			again(func(int) { _, _ = n.Path(n.peer.Subnet), n.Stats() })
			again(func(int) {
				_ = n.a.LinkSetDown(n.a.Link("eth0"))
				_ = n.a.LinkSetUp(n.a.Link("eth0"))
			})
			before := n.Stats().TxPackets
			packet := testhost.UDPPacket("10.0.1.9", "10.0.2.9", 100)
			if mode == onlink.Socket {
				testhost.Await(t, "1000 packets", func() bool {
					for range 20 {
						_ = n.queue.Write(encap.Offload{}, [][]byte{packet})
					}
					return n.Stats().TxPackets > before+1000
				})
			} else {
				testhost.Await(t, "a route", func() bool { return len(n.a.Routes()) > 0 })
			}
			testhost.Must(t, n.Close()) // while all that goes on
			close(stop)
			busy.Wait()
			_ = n.UpdatePeers([]Peer{n.peer}, nil)
			n.a.ExpectRoutes()
		})
	}
}

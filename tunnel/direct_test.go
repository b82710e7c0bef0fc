package tunnel

import (
	"bytes"
	"errors"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"uvxlan/encap"
	"uvxlan/tunnel/batch"
	"uvxlan/tunnel/device"
	"uvxlan/tunnel/internal/flowlimit"
	"uvxlan/tunnel/internal/testhost"
	"uvxlan/tunnel/nexthop"
	"uvxlan/tunnel/onlink"
	"uvxlan/tunnel/underlay"
)

// onLink is a peer of a host that is on-link, and takes nothing.
func onLink(t *testing.T, n byte, port uint16) (*onlink.Paths, *entry) {
	t.Helper()
	e := newEntry(Peer{
		Subnet:   netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 0, n, 0}), 24),
		Underlay: netip.AddrFrom4([4]byte{127, 0, 0, n}), MAC: testMAC(n),
	}, testVNI, testMAC(0), batch.NewDestination(netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, n}), port)))
	paths, err := onlink.Open(onlink.Config{Mode: onlink.Socket, Sockets: []int{}})
	testhost.Must(t, err)
	t.Cleanup(func() { testhost.Must(t, paths.Close()) })
	paths.Replace([]onlink.Member{{Subnet: e.Subnet, Underlay: e.Underlay}})
	paths.Found([]nexthop.Change{{Addr: e.Underlay, Hop: nexthop.Hop{
		OnLink: true, Link: "eth0", Index: int(n), MTU: 1500, Source: testMAC(0xa0), MAC: testMAC(0xb0 + n),
	}}})
	e.hop = paths.Hop(e.Underlay)
	return paths, e
}

// withHeadroom is a packet behind its headroom.
func withHeadroom(packet []byte) []byte { return slices.Concat(make([]byte, headroom), packet) }

// diversion is a sending half whose packet socket refuses everything, and what
// its peers receive.
func diversion(t *testing.T, joinUDP bool) (*outbound, *onlink.Paths, *net.UDPConn) {
	t.Helper()
	peer, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 2)})
	testhost.Must(t, err)
	t.Cleanup(func() { peer.Close() })
	port := peer.LocalAddr().(*net.UDPAddr).AddrPort().Port()
	u, err := underlay.Listen(underlay.Config{Address: netip.MustParseAddr("127.0.0.1"), Port: port})
	testhost.Must(t, err)
	conn, err := u.Open(0, false)
	testhost.Must(t, err)
	t.Cleanup(func() { testhost.Must(t, errors.Join(conn.Close(), u.Close())) })
	paths, e := onLink(t, 2, port)
	table := newPeerTable()
	table.replace([]*entry{e})
	var c counters
	sender, err := onlink.NewSender(-1, joinUDP, 1450) // refuses everything
	testhost.Must(t, err)
	t.Cleanup(func() { testhost.Must(t, sender.Close()) })
	o := newOutbound(nil, table, conn, sender, flowlimit.New(1450), newLocal(&Config{}), newArena(t, outboundMemory), &c)
	o.now = monotonic()
	return o, paths, peer
}

// received is the next inner packet.
func received(t *testing.T, conn *net.UDPConn) []byte {
	t.Helper()
	buf := make([]byte, device.MaxPacket)
	if err := conn.SetReadDeadline(time.Now().Add(testhost.Patience)); err != nil {
		t.Fatal(err)
	}
	n, err := conn.Read(buf)
	if err != nil {
		t.Fatal(err)
	}
	return buf[headroom:n]
}

// numberedPacket is one of a flow's, whose IDs count up.
func numberedPacket(i, size int) encap.IPv4 {
	p := testhost.UDPPacket("10.0.1.9", "10.0.2.9", size)
	p[5] = byte(i)
	p.UpdateChecksum()
	return p
}

func expectFirst(t *testing.T, want [][]byte, got []byte) [][]byte {
	t.Helper()
	if len(want) == 0 || !bytes.Equal(got, want[0]) {
		t.Fatalf("packet %d of %d bytes isn't the next of %d", got[5], len(got), len(want))
	}
	return want[1:]
}

// What a link refuses goes out by VXLAN in the same batch, each packet once and
// in order, however it was joined, and so does what follows.
func TestDirectDiverts(t *testing.T) {
	for _, join := range []bool{false, true} {
		o, paths, conn := diversion(t, join)
		var udp, tcp [][]byte
		for i, size := range []int{100, 100, 100, 100, 99, 100} {
			p := numberedPacket(i, size)
			udp = append(udp, bytes.Clone(p))
			o.forward(o.table.load(), withHeadroom(p), encap.Offload{})
		}
		super := testhost.TCPPacket("10.0.1.9", "10.0.2.9", 7, 3000)
		o.forward(o.table.load(), withHeadroom(super), testhost.Superpacket(1000))
		o.finish(7)
		for range 9 {
			if p := received(t, conn); p[9] == encap.ProtoUDP {
				udp = expectFirst(t, udp, p)
			} else {
				tcp = append(tcp, p[52:])
			}
		}
		if !bytes.Equal(slices.Concat(tcp...), super[52:]) {
			t.Errorf("joined: %t: %d segments, not of the superpacket", join, len(tcp))
		}
		if p := paths.Path(netip.MustParsePrefix("10.0.2.0/24")); p.Direct || !strings.Contains(p.Reason, unix.EBADF.Error()) {
			t.Errorf("the host's path is %v", p)
		}
		if o.total.direct.Load() != 0 || o.total.tx.datagrams.Load() != 9 || o.total.drops[DropSend].Load() != 0 {
			t.Errorf("counted %d direct, %d datagrams, %d dropped", o.total.direct.Load(), o.total.tx.datagrams.Load(), o.total.drops[DropSend].Load())
		}
		want := PeerTraffic{TxPackets: 9, TxBytes: 599 + 6*28 + uint64(len(super)) + 2*52} // a header a segment
		if got := o.table.load().lookup(netip.MustParseAddr("10.0.2.9")).traffic.load(); got != want {
			t.Errorf("joined: %t: of the peer there is %+v, want %+v", join, got, want)
		}
	}
}

// A link that a host loses within a batch must not let what is by VXLAN from
// then on get ahead of what the link refuses afterwards.
func TestDirectKeepsOrderWhenLinkGoes(t *testing.T) {
	o, paths, conn := diversion(t, false)
	first, second := testhost.UDPPacket("10.0.1.9", "10.0.2.9", 100), testhost.UDPPacket("10.0.1.9", "10.0.2.9", 101)
	o.forward(o.table.load(), withHeadroom(first), encap.Offload{})
	paths.Found([]nexthop.Change{{Addr: netip.MustParseAddr("127.0.0.2"), Hop: nexthop.Hop{Reason: "gone"}}})
	o.forward(o.table.load(), withHeadroom(second), encap.Offload{})
	o.finish(2)
	for i, w := range [][]byte{first, second} {
		if got := received(t, conn); !bytes.Equal(got, w) {
			t.Errorf("packet %d has %d bytes, want %d", i, len(got), len(w))
		}
	}
}

package tunnel

import (
	"bytes"
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"uvxlan/encap"
	"uvxlan/tunnel/device"
	"uvxlan/tunnel/internal/testhost"
	"uvxlan/tunnel/internal/vnet"
)

const noSocket = -1 // refuses every frame

func TestFramed(t *testing.T) {
	tcp := testhost.TCPPacket("10.0.1.9", "10.0.2.9", 1, 3000)
	for _, c := range []struct {
		name   string
		packet []byte
		in     encap.Offload
		want   encap.Offload
	}{
		{"complete", tcp, encap.Offload{}, encap.Offload{}},
		{"complete with odd lengths", tcp, encap.Offload{HeaderLen: 99}, encap.Offload{}},
		{
			"checksum", tcp, encap.Offload{NeedsChecksum: true, ChecksumStart: 20, ChecksumOffset: 16},
			encap.Offload{NeedsChecksum: true, ChecksumStart: 34, ChecksumOffset: 16},
		},
		{
			"TCP with options", tcp, encap.Offload{NeedsChecksum: true, ChecksumStart: 20, ChecksumOffset: 16, GSO: encap.GSOTCPv4 | encap.GSOECN, SegmentSize: 1000, HeaderLen: 1},
			encap.Offload{NeedsChecksum: true, ChecksumStart: 34, ChecksumOffset: 16, GSO: encap.GSOTCPv4 | encap.GSOECN, SegmentSize: 1000, HeaderLen: 14 + 20 + 32},
		},
		{
			"UDP", testhost.UDPPacket("10.0.1.9", "10.0.2.9", 300), encap.Offload{NeedsChecksum: true, ChecksumStart: 20, ChecksumOffset: 6, GSO: encap.GSOUDP, SegmentSize: 100},
			encap.Offload{NeedsChecksum: true, ChecksumStart: 34, ChecksumOffset: 6, GSO: encap.GSOUDP, SegmentSize: 100, HeaderLen: 14 + 28},
		},
	} {
		if got := framed(c.in, c.packet); got != c.want {
			t.Errorf("%s: %+v, want %+v", c.name, got, c.want)
		}
	}
}

// onLink is a peer of a host that is reached by a link.
func onLink(n byte, to sockaddr) *entry {
	e := newEntry(Peer{
		Subnet:   netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 0, n, 0}), 24),
		Underlay: netip.AddrFrom4([4]byte{127, 0, 0, n}), MAC: testMAC(n),
	}, testVNI, testMAC(0), 4789)
	e.to, e.hop = to, &hop{addr: e.Underlay}
	e.hop.link.Store(newNeighbour(int(n), testMAC(0xa0), testMAC(0xb0+n)))
	return e
}

// arena is a packet behind its headroom.
func arena(packet []byte) []byte { return slices.Concat(make([]byte, headroom), packet) }

func frameOf(e *entry, packet []byte, o encap.Offload) frame {
	return frame{peer: e, link: e.hop.link.Load(), room: arena(packet), offload: o}
}

// message is what direct would pass to the kernel.
type message struct {
	to          []byte
	vnet, frame []byte
}

func (d *direct) messages() (all []message) {
	d.settle()
	for i := range d.count {
		h := d.headers[i].hdr
		m := message{to: unsafe.Slice(h.Name, h.Namelen)}
		for j, iov := range unsafe.Slice(h.Iov, h.Iovlen) {
			part := unsafe.Slice(iov.Base, iov.Len)
			if j == 0 {
				m.vnet = part
			} else {
				m.frame = append(m.frame, part...)
			}
		}
		all = append(all, m)
	}
	return all
}

func TestDirectMessages(t *testing.T) {
	e := onLink(2, sockaddr{})
	d := newDirect(noSocket, false, 1450)
	v6 := slices.Concat(make([]byte, 40), []byte("sixty"))
	v6[0], v6[5], v6[6] = 0x60, 5, 59
	tcp := testhost.TCPPacket("10.0.1.9", "10.0.2.9", 1, 3000)
	d.add(frameOf(e, testhost.UDPPacket("10.0.1.9", "10.0.2.9", 5), encap.Offload{}))
	d.add(frameOf(e, v6, encap.Offload{}))
	d.add(frameOf(e, tcp, testhost.Superpacket(1000)))
	got := d.messages()
	if len(got) != 3 {
		t.Fatalf("%d messages", len(got))
	}
	address := make([]byte, unix.SizeofSockaddrLinklayer)
	binary.NativeEndian.PutUint16(address, unix.AF_PACKET)
	binary.NativeEndian.PutUint32(address[4:], 2)
	copy(address[11:], []byte{6, 2, 0, 0, 0, 0, 0xb2})
	for i, want := range []struct {
		kind    []byte
		packet  []byte
		offload encap.Offload
	}{
		{[]byte{8, 0}, testhost.UDPPacket("10.0.1.9", "10.0.2.9", 5), encap.Offload{}},
		{[]byte{0x86, 0xdd}, v6, encap.Offload{}},
		{[]byte{8, 0}, tcp, framed(testhost.Superpacket(1000), tcp)},
	} {
		header := slices.Concat([]byte{2, 0, 0, 0, 0, 0xb2, 2, 0, 0, 0, 0, 0xa0}, want.kind)
		if !bytes.Equal(got[i].frame, slices.Concat(header, want.packet)) || !bytes.Equal(got[i].to, address) {
			t.Errorf("message %d: to % x, frame % x", i, got[i].to, got[i].frame[:min(40, len(got[i].frame))])
		}
		vnet := vnet.Header(got[i].vnet)
		if vnet.Offload() != want.offload {
			t.Errorf("message %d: offload %+v, want %+v", i, vnet.Offload(), want.offload)
		}
	}
}

// Datagrams of a size are joined, but not those whose checksum is to be filled
// in deeper than a Coalescer looks, as a container's own tunnel has them.
func TestDirectJoinsUDP(t *testing.T) {
	e := onLink(2, sockaddr{})
	plain := encap.Offload{}
	unfilled := encap.Offload{NeedsChecksum: true, ChecksumStart: 20, ChecksumOffset: 6}
	inner := encap.Offload{NeedsChecksum: true, ChecksumStart: 20 + 8 + 8 + 14 + 20, ChecksumOffset: 16}
	for _, c := range []struct {
		name    string
		offload encap.Offload
		want    []encap.Offload
	}{
		{"complete", plain, []encap.Offload{{NeedsChecksum: true, ChecksumStart: 34, ChecksumOffset: 6, GSO: encap.GSOUDP, SegmentSize: 200, HeaderLen: 42}}},
		{"unfilled", unfilled, []encap.Offload{{NeedsChecksum: true, ChecksumStart: 34, ChecksumOffset: 6, GSO: encap.GSOUDP, SegmentSize: 200, HeaderLen: 42}}},
		{"a tunnel's", inner, []encap.Offload{framed(inner, nil), framed(inner, nil)}},
	} {
		d := newDirect(noSocket, true, 1450)
		for i := range 2 {
			p := numberedPacket(i, 200)
			if c.offload == unfilled {
				binary.BigEndian.PutUint16(p[26:], encap.Fold(p.PseudoHeaderSum(encap.ProtoUDP, 208)))
			}
			d.add(frameOf(e, p, c.offload))
		}
		var got []encap.Offload
		for _, m := range d.messages() {
			vnet := vnet.Header(m.vnet)
			got = append(got, vnet.Offload())
		}
		if !slices.Equal(got, c.want) {
			t.Errorf("%s: %+v, want %+v", c.name, got, c.want)
		}
	}
}

// diversion is a sending half whose packet socket refuses everything, and what
// its peers receive.
func diversion(t *testing.T, joinUDP bool) (*outbound, *entry, *net.UDPConn) {
	t.Helper()
	s, to, conn := senderPair(t, false)
	e := onLink(2, to.to)
	table := newPeerTable()
	table.replace([]*entry{e})
	var c counters
	o := newOutbound(nil, table, [families][]*sender{ipv4: {s}}, newDirect(noSocket, joinUDP, 1450), newLocal(&Config{}), &c)
	return o, e, conn
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
		o, e, conn := diversion(t, join)
		var udp, tcp [][]byte
		for i, size := range []int{100, 100, 100, 100, 99, 100} {
			p := numberedPacket(i, size)
			udp = append(udp, bytes.Clone(p))
			o.forward(o.table.load(), arena(p), encap.Offload{})
		}
		super := testhost.TCPPacket("10.0.1.9", "10.0.2.9", 7, 3000)
		o.forward(o.table.load(), arena(super), testhost.Superpacket(1000))
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
		if r := e.hop.refusal.Load(); e.hop.link.Load() != nil || r == nil || !errors.Is(r.err, unix.EBADF) {
			t.Errorf("the host's link is %v, refused: %v", e.hop.link.Load(), r)
		}
		if o.total.direct.Load() != 0 || o.total.tx.datagrams.Load() != 9 || o.total.drops[DropSend].Load() != 0 {
			t.Errorf("counted %d direct, %d datagrams, %d dropped", o.total.direct.Load(), o.total.tx.datagrams.Load(), o.total.drops[DropSend].Load())
		}
	}
}

// A link that a host loses within a batch must not let what is by VXLAN from
// then on get ahead of what the link refuses afterwards.
func TestDirectKeepsOrderWhenLinkGoes(t *testing.T) {
	o, e, conn := diversion(t, false)
	first, second := testhost.UDPPacket("10.0.1.9", "10.0.2.9", 100), testhost.UDPPacket("10.0.1.9", "10.0.2.9", 101)
	o.forward(o.table.load(), arena(first), encap.Offload{})
	e.hop.link.Store(nil)
	o.forward(o.table.load(), arena(second), encap.Offload{})
	o.finish(2)
	for i, w := range [][]byte{first, second} {
		if got := received(t, conn); !bytes.Equal(got, w) {
			t.Errorf("packet %d has %d bytes, want %d", i, len(got), len(w))
		}
	}
}

// A refusal by another worker's batch doesn't take a host off its new link.
func TestHopRefuse(t *testing.T) {
	e := onLink(2, sockaddr{})
	old, next := e.hop.link.Load(), newNeighbour(7, testMAC(1), testMAC(2))
	e.hop.link.Store(next)
	e.hop.refuse(old, unix.ENETDOWN)
	if e.hop.direct() != next || e.hop.refusal.Load() != nil {
		t.Error("the new link was taken away")
	}
	e.hop.refuse(next, unix.ENETDOWN)
	if e.hop.direct() != nil || e.hop.refusal.Load() == nil || !e.hop.used.Load() {
		t.Error("the link stays")
	}
}

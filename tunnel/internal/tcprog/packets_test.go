package tcprog

import (
	"encoding/binary"
	"math/rand/v2"
	"net/netip"
	"slices"
	"time"

	"uvxlan/encap"
)

const (
	testVNI  = 7
	testPort = 4789
	testMTU  = 1450
)

var (
	testMAC   = encap.MAC{2, 0x66, 0, 0, 0, 1}
	testLocal = netip.MustParseAddr("10.66.0.1")
	// testLocal6 is the other family's.
	testLocal6 = netip.MustParseAddr("fd66::1")
)

// testPeers are those of most tests, with an IPv4 or an IPv6 underlay. Some lie inside
// others, and some behind a gateway.
var testPeers = []Peer{
	{Subnet: netip.MustParsePrefix("10.0.2.0/24"), Underlay: netip.MustParseAddr("10.66.0.2"), MAC: encap.MAC{2, 0x66, 0, 0, 0, 2}, MaxPacket: testMTU},
	{Subnet: netip.MustParsePrefix("10.0.2.128/26"), Underlay: netip.MustParseAddr("10.66.0.5"), MAC: encap.MAC{2, 0x66, 0, 0, 0, 5}, MaxPacket: testMTU},
	{Subnet: netip.MustParsePrefix("10.0.3.0/24"), Underlay: netip.MustParseAddr("10.77.0.3"), MAC: encap.MAC{2, 0x66, 0, 0, 0, 3}, MaxPacket: testMTU},
	{Subnet: netip.MustParsePrefix("fd00:0:0:2::/64"), Underlay: netip.MustParseAddr("10.66.0.2"), MAC: encap.MAC{2, 0x66, 0, 0, 0, 2}, MaxPacket: testMTU},
	{Subnet: netip.MustParsePrefix("fd00:0:0:2:8000::/65"), Underlay: netip.MustParseAddr("10.66.0.5"), MAC: encap.MAC{2, 0x66, 0, 0, 0, 5}, MaxPacket: testMTU},
	{Subnet: netip.MustParsePrefix("fd00:0:0:3::/64"), Underlay: netip.MustParseAddr("10.77.0.3"), MAC: encap.MAC{2, 0x66, 0, 0, 0, 3}, MaxPacket: testMTU},
	{Subnet: netip.MustParsePrefix("10.0.6.0/24"), Underlay: netip.MustParseAddr("fd66::6"), MAC: encap.MAC{2, 0x66, 0, 0, 0, 6}, MaxPacket: testMTU},
	{Subnet: netip.MustParsePrefix("10.0.6.128/26"), Underlay: netip.MustParseAddr("10.66.0.2"), MAC: encap.MAC{2, 0x66, 0, 0, 0, 2}, MaxPacket: testMTU},
	{Subnet: netip.MustParsePrefix("10.0.7.0/24"), Underlay: netip.MustParseAddr("fd77::7"), MAC: encap.MAC{2, 0x66, 0, 0, 0, 7}, MaxPacket: testMTU},
	{Subnet: netip.MustParsePrefix("fd00:0:0:6::/64"), Underlay: netip.MustParseAddr("fd66::6"), MAC: encap.MAC{2, 0x66, 0, 0, 0, 6}, MaxPacket: testMTU},
	{Subnet: netip.MustParsePrefix("fd00:0:0:7::/64"), Underlay: netip.MustParseAddr("fd77::7"), MAC: encap.MAC{2, 0x66, 0, 0, 0, 7}, MaxPacket: testMTU},
	// Its first bytes are those of an IPv4 address.
	{Subnet: netip.MustParsePrefix("fd00:0:0:7:8000::/65"), Underlay: netip.MustParseAddr("a42:2::"), MAC: encap.MAC{2, 0x66, 0, 0, 0, 8}, MaxPacket: testMTU},
}

// peerOf is the peer with the longest subnet that holds an address.
func peerOf(peers []Peer, a netip.Addr) (found Peer, ok bool) {
	for _, p := range peers {
		if p.Subnet.Contains(a) && (!ok || p.Subnet.Bits() > found.Subnet.Bits()) {
			found, ok = p, true
		}
	}
	return found, ok
}

// generator makes packets, most of them plain.
type generator struct{ *rand.Rand }

func newGenerator(seed uint64) generator { return generator{rand.New(rand.NewPCG(seed, 1))} }

// one tells whether a roll of n sides showed one of them.
func (g generator) one(n int) bool { return g.IntN(n) == 0 }

// address is one of a peer's subnet, or of nobody's.
func (g generator) address(v6 bool) netip.Addr {
	if v6 {
		a := netip.MustParseAddr("fd00::").As16()
		a[7], a[8], a[15] = g.subnet(), byte(g.IntN(2))<<7, byte(1+g.IntN(250))
		if g.one(30) {
			a[7] = 99
		}
		return netip.AddrFrom16(a)
	}
	a := [4]byte{10, 0, g.subnet(), byte(1 + g.IntN(250))}
	if g.one(30) {
		a[2] = 99
	}
	return netip.AddrFrom4(a)
}

// subnet is the number of one of the peers'.
func (g generator) subnet() byte { return []byte{2, 3, 6, 7}[g.IntN(4)] }

// ours is an address of our own subnet.
func (g generator) ours(v6 bool) netip.Addr {
	if v6 {
		a := netip.MustParseAddr("fd00:0:0:1::").As16()
		a[15] = byte(1 + g.IntN(250))
		return netip.AddrFrom16(a)
	}
	return netip.AddrFrom4([4]byte{10, 0, 1, byte(1 + g.IntN(250))})
}

// sample is an inner packet, and what is known of it.
type sample struct {
	packet []byte
	// plain says that nothing speaks against carrying it, as far as the packet goes.
	plain bool
	// learnt says that workers learn from it on its way out.
	learnt bool
}

// packet makes an inner packet between two addresses.
func (g generator) packet(src, dst netip.Addr) sample {
	s := sample{plain: true}
	proto, l4 := g.transport(&s, src.Is6())
	var p []byte
	if src.Is6() {
		p = g.ipv6(&s, src, dst, proto, l4)
	} else {
		p = g.ipv4(&s, src, dst, proto, l4)
	}
	s.packet = p
	return s
}

// transport makes a transport header and payload, with the checksum field zero.
func (g generator) transport(s *sample, v6 bool) (proto byte, b []byte) {
	payload := g.IntN(200)
	switch {
	case g.one(4):
		payload = g.IntN(testMTU)
	case g.one(8):
		payload = 0
	}
	payload = min(payload, testMTU-100)
	header := 8
	switch kind := g.IntN(12); kind {
	case 0, 1, 2, 3, 4:
		proto, header = encap.ProtoTCP, 20+4*g.IntN(11)
	case 5, 6, 7, 8:
		proto = encap.ProtoUDP
	case 9, 10:
		proto = encap.ProtoICMP
		if v6 {
			proto = encap.ProtoICMPv6
		}
	default:
		proto = []byte{0, 2, 43, 44, 47, 50, 51, 60, 132, 136, byte(g.IntN(256))}[g.IntN(11)]
		s.plain = false
	}
	b = make([]byte, header+payload)
	for i := range b {
		b[i] = byte(g.Uint32())
	}
	switch proto {
	case encap.ProtoTCP:
		b[12] = byte(header/4)<<4 | b[12]&15
		b[13] &^= 2
		if g.one(10) {
			b[13] |= 2
			s.learnt = true
		}
		b[16], b[17] = 0, 0
	case encap.ProtoUDP:
		binary.BigEndian.PutUint16(b[4:], uint16(len(b)))
		b[6], b[7] = 0, 0
	case encap.ProtoICMP:
		b[0], b[1] = []byte{0, 3, 5, 8, 11}[g.IntN(5)], byte(g.IntN(6))
		b[2], b[3] = 0, 0
		s.learnt = b[0] == 3 && b[1] == 4
	case encap.ProtoICMPv6:
		b[0] = []byte{1, 2, 3, 4, 128, 129, 133, 134, 135, 136, 137}[g.IntN(11)]
		b[2], b[3] = 0, 0
		s.learnt = b[0] == 2
		s.plain = s.plain && b[0] < 133
	}
	return proto, b
}

// checksumAt is where a transport header has its checksum, -1 without one.
func checksumAt(proto byte) int {
	switch proto {
	case encap.ProtoTCP:
		return 16
	case encap.ProtoUDP:
		return 6
	case encap.ProtoICMP, encap.ProtoICMPv6:
		return 2
	}
	return -1
}

// fill puts the checksum into a transport header.
func (g generator) fill(s *sample, proto byte, l4 []byte, pseudo uint64) {
	at := checksumAt(proto)
	if at < 0 || len(l4) < at+2 {
		return
	}
	if proto == encap.ProtoICMP {
		pseudo = 0
	}
	sum := encap.Checksum(l4, pseudo)
	if sum == 0 && proto == encap.ProtoUDP {
		sum = 0xffff
	}
	switch roll := g.IntN(75); {
	case roll < 3:
		sum ^= uint16(1 + g.IntN(0xfffe))
		s.plain = false
	case roll < 6 && proto == encap.ProtoUDP:
		sum = 0
		s.plain = false
	case roll < 9 && proto == encap.ProtoUDP:
		l4[5] ^= 1 // the length
		s.plain = false
	}
	binary.BigEndian.PutUint16(l4[at:], sum)
}

func (g generator) ipv4(s *sample, src, dst netip.Addr, proto byte, l4 []byte) []byte {
	p := make([]byte, encap.IPv4HeaderLen)
	p[0], p[1], p[8], p[9] = 0x45, byte(g.IntN(256)), byte(1+g.IntN(255)), proto
	binary.BigEndian.PutUint16(p[4:], uint16(g.IntN(65536)))
	a, b := src.As4(), dst.As4()
	copy(p[12:], a[:])
	copy(p[16:], b[:])
	if g.one(2) {
		p[6] = 0x40 // DF
	}
	switch roll := g.IntN(100); {
	case roll < 4:
		p[6], p[7] = p[6]|0x20*byte(g.IntN(2)), byte(1+g.IntN(100))
		s.plain = false
	case roll < 7:
		p[6] |= 0x20
		s.plain = false
	case roll < 11:
		p = append(p, []byte{1, 1, 1, 1, 1, 1, 1, 1}[:4+4*g.IntN(2)]...)
		p[0] = 0x40 | byte(len(p)/4)
		s.plain = false
	}
	g.fill(s, proto, l4, encap.IPv4(slices.Concat(p, l4)).PseudoHeaderSum(proto, len(l4)))
	h := len(p)
	p = append(p, l4...)
	binary.BigEndian.PutUint16(p[2:], uint16(len(p)))
	binary.BigEndian.PutUint16(p[10:], encap.Checksum(p[:h], 0))
	if g.one(40) {
		p[10] ^= 1
		s.plain = false
	}
	return p
}

func (g generator) ipv6(s *sample, src, dst netip.Addr, proto byte, l4 []byte) []byte {
	p := make([]byte, encap.IPv6HeaderLen)
	binary.BigEndian.PutUint32(p, 6<<28|g.Uint32()>>4)
	p[6], p[7] = proto, byte(1+g.IntN(255))
	a, b := src.As16(), dst.As16()
	copy(p[8:], a[:])
	copy(p[24:], b[:])
	g.fill(s, proto, l4, encap.IPv6(p).PseudoHeaderSum(proto, len(l4)))
	switch roll := g.IntN(100); {
	case roll < 4:
		p[6] = 60
		p = append(p, proto, 0, 1, 4, 0, 0, 0, 0)
		s.plain = false
	case roll < 8:
		p[6] = 44
		p = append(p, proto, 0, byte(g.IntN(4)), byte(g.IntN(256)), 0, 0, 0, 9)
		s.plain = false
	}
	p = append(p, l4...)
	binary.BigEndian.PutUint16(p[4:], uint16(len(p)-encap.IPv6HeaderLen))
	return p
}

// spoil changes some bytes, or the length.
func (g generator) spoil(b []byte) []byte {
	switch g.IntN(6) {
	case 0:
		return b[:g.IntN(len(b)+1)]
	case 1:
		return append(b, make([]byte, 1+g.IntN(20))...)
	case 2:
		b[g.IntN(len(b))] ^= 1 << g.IntN(8)
	default: // among the headers
		b[g.IntN(min(len(b), 110))] ^= 1 << g.IntN(8)
	}
	return b
}

// datagram is a frame from a peer to us, with all that is around it: Ethernet, IP and
// UDP headers. The interface's MAC is target.
func datagram(from netip.Addr, target encap.MAC, ecn byte, h encap.FrameHeader, inner []byte) []byte {
	etherType, ip := []byte{8, 0}, []byte{0: 0x45, 1: ecn, 8: 64, 9: encap.ProtoUDP, 19: 0}
	if from.Is6() {
		etherType, ip = []byte{0x86, 0xdd}, []byte{0: 0x60 | ecn>>4, 1: ecn << 4, 6: encap.ProtoUDP, 7: 64, 39: 0}
		src, dst := from.As16(), testLocal6.As16()
		copy(ip[8:], src[:])
		copy(ip[24:], dst[:])
	} else {
		src, dst := from.As4(), testLocal.As4()
		copy(ip[12:], src[:])
		copy(ip[16:], dst[:])
	}
	b := slices.Concat(target[:], []byte{2, 0x77, 0, 0, 0, 9}, etherType, ip, make([]byte, 8), h[:], inner)
	binary.BigEndian.PutUint16(b[udpAt(b):], 40000)
	binary.BigEndian.PutUint16(b[udpAt(b)+2:], testPort)
	finish(b, true)
	return b
}

// udpAt is where the UDP header of a frame begins, without IP options or extension
// headers.
func udpAt(frame []byte) int {
	if binary.BigEndian.Uint16(frame[12:]) == encap.EtherTypeIPv6 {
		return 14 + encap.IPv6HeaderLen
	}
	return 14 + encap.IPv4HeaderLen
}

// outerTOS is the outer header's traffic class.
func outerTOS(frame []byte) byte {
	if udpAt(frame) == 14+encap.IPv6HeaderLen {
		return encap.IPv6(frame[14:]).TrafficClass()
	}
	return encap.IPv4(frame[14:]).TOS()
}

// outerPseudo is the sum of a frame's outer pseudo-header, for a length of the
// datagram.
func outerPseudo(frame []byte, n int) uint64 {
	if udpAt(frame) == 14+encap.IPv6HeaderLen {
		return encap.IPv6(frame[14:]).PseudoHeaderSum(encap.ProtoUDP, n)
	}
	return encap.IPv4(frame[14:]).PseudoHeaderSum(encap.ProtoUDP, n)
}

// finish puts lengths and checksums into a datagram.
func finish(b []byte, sum bool) {
	udp := b[udpAt(b):]
	if ip := b[14:]; udpAt(b) == 14+encap.IPv6HeaderLen {
		encap.IPv6(ip).SetPayloadLen(len(udp))
	} else {
		encap.IPv4(ip).SetTotalLen(len(ip))
		encap.IPv4(ip).UpdateChecksum()
	}
	binary.BigEndian.PutUint16(udp[4:], uint16(len(udp)))
	udp[6], udp[7] = 0, 0
	if sum {
		c := encap.Checksum(udp, outerPseudo(b, len(udp)))
		if c == 0 {
			c = 0xffff
		}
		binary.BigEndian.PutUint16(udp[6:], c)
	}
}

// sumHolds tells whether a datagram's checksum is right.
func sumHolds(frame, udp []byte) bool {
	return encap.Fold(encap.Sum(udp, outerPseudo(frame, len(udp)))) == 0xffff
}

// etherTypeOf is that of an inner packet.
func etherTypeOf(packet []byte) uint16 {
	if len(packet) > 0 && packet[0]>>4 == 6 {
		return encap.EtherTypeIPv6
	}
	return encap.EtherTypeIPv4
}

// transportHolds tells whether an inner packet's transport checksum is right. There
// must be one: without, it isn't.
func transportHolds(packet []byte) bool {
	var proto byte
	var at int
	var pseudo uint64
	if p, err := encap.ParseIPv4(packet); err == nil {
		proto, at = p.Protocol(), p.HeaderLen()
		pseudo = p.PseudoHeaderSum(proto, len(p)-at)
		packet = p
	} else if p, err := encap.ParseIPv6(packet); err == nil {
		proto, at = p.NextHeader(), encap.IPv6HeaderLen
		pseudo = p.PseudoHeaderSum(proto, len(p)-at)
		packet = p
	} else {
		return false
	}
	if proto == encap.ProtoICMP {
		pseudo = 0
	}
	field := checksumAt(proto)
	if field < 0 || len(packet) < at+field+2 {
		return false
	}
	return encap.Fold(encap.Sum(packet[at:], pseudo)) == 0xffff
}

func addr(s string) netip.Addr { return netip.MustParseAddr(s) }

func prefix(s string) netip.Prefix { return netip.MustParsePrefix(s) }

func timeOf(nanoseconds uint64) time.Duration { return time.Duration(nanoseconds) }

package testhost

import (
	"encoding/binary"
	"net/netip"
	"os"
	"slices"
	"testing"

	"uvxlan/encap"
)

// UDPPacket is an IPv4 UDP packet with right checksums.
func UDPPacket(src, dst string, payload int) encap.IPv4 {
	s, d := netip.MustParseAddr(src).As4(), netip.MustParseAddr(dst).As4()
	p := make([]byte, 28+payload)
	p[0], p[8], p[9] = 0x45, 64, encap.ProtoUDP
	copy(p[12:], s[:])
	copy(p[16:], d[:])
	p[21], p[23] = 53, 54
	for i := range payload {
		p[28+i] = byte(i)
	}
	ip := encap.IPv4(p)
	ip.SetTotalLen(len(p))
	ip.UpdateChecksum()
	p[24], p[25] = byte((8+payload)>>8), byte(8+payload)
	sum := encap.Checksum(p[20:], ip.PseudoHeaderSum(encap.ProtoUDP, 8+payload))
	p[26], p[27] = byte(sum>>8), byte(sum)
	return ip
}

// TCPPacket is an IPv4 TCP packet whose checksum field holds the pseudo-header's
// sum, as a kernel hands over what it leaves to be finished.
func TCPPacket(src, dst string, seq uint32, payload int) encap.IPv4 {
	const ip, tcp = encap.IPv4HeaderLen, 32
	p := slices.Concat(UDPPacket(src, dst, 0)[:ip], make([]byte, tcp+payload))
	for i := range payload {
		p[ip+tcp+i] = byte(int(seq) + i*7)
	}
	p[6], p[9] = 0x40, encap.ProtoTCP
	p.SetTotalLen(len(p))
	p.UpdateChecksum()
	h := p[ip:]
	binary.BigEndian.PutUint16(h, 40000)
	binary.BigEndian.PutUint16(h[2:], 5001)
	binary.BigEndian.PutUint32(h[4:], seq)
	h[12], h[13] = tcp/4<<4, 0x18
	copy(h[20:], []byte{1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2}) // timestamps
	binary.BigEndian.PutUint16(h[16:], encap.Fold(p.PseudoHeaderSum(encap.ProtoTCP, tcp+payload)))
	return p
}

// Superpacket is how a kernel hands over p to be cut into segments of size.
func Superpacket(size int) encap.Offload {
	return encap.Offload{
		NeedsChecksum: true, ChecksumStart: 20, ChecksumOffset: 16,
		GSO: encap.GSOTCPv4, SegmentSize: uint16(size), HeaderLen: 52,
	}
}

// Descriptors is how many descriptors this process has open.
func Descriptors(t *testing.T) int {
	t.Helper()
	all, err := os.ReadDir("/proc/self/fd")
	Must(t, err)
	return len(all)
}

package encap

import (
	"encoding/binary"
	"net/netip"
)

// MaxICMPLen is the longest ICMP or ICMPv6 error that the package writes, in
// bytes.
const MaxICMPLen = maxICMPv6Len

const (
	maxICMPv4Len  = 576 // RFC 1812 section 4.3.2.3
	icmpHeaderLen = 8

	icmpHopLimit = 64
	// tosInternetControl is precedence 6 (RFC 1812 section 4.3.2.5).
	tosInternetControl = 0xc0
)

// ICMP types (RFC 792).
const (
	icmpUnreachable  = 3
	icmpSourceQuench = 4
	icmpRedirect     = 5
	icmpTimeExceeded = 11
	icmpParameter    = 12
)

// Codes for ICMPUnreachable (RFC 792, RFC 1812 section 5.2.7.1).
const (
	ICMPNetUnreachable  uint8 = 0
	ICMPHostUnreachable uint8 = 1
	ICMPProhibited      uint8 = 13
)

// icmpFragmentationNeeded is the code of ICMPFragmentationNeeded.
const icmpFragmentationNeeded uint8 = 4

// ICMPUnreachable writes to dst an ICMP destination unreachable packet from the
// address from to the sender of orig, an IPv4 packet, and returns its length in
// bytes. code says why; for 4, fragmentation needed, there is
// [ICMPFragmentationNeeded]. The packet quotes as much of orig as fits in 576
// bytes (RFC 1812 section 4.3.2.3); orig may be a superpacket, whose headers are
// quoted as they are. dst has MaxICMPLen bytes and doesn't overlap orig.
//
// The result is 0 where RFC 1122 section 3.2.2 forbids an answer: orig is an
// ICMP error, a fragment other than the first, or from or to an address that
// names no single host on the network. It is 0 too if orig is malformed, from
// is not IPv4 or dst is too short.
func ICMPUnreachable(dst, orig []byte, from netip.Addr, code uint8) int {
	return putICMPError(dst, orig, from, code, 0)
}

// ICMPFragmentationNeeded is [ICMPUnreachable] for a packet that is longer than
// the next link's MTU and has DF set (RFC 792, code 4). mtu, in bytes and at most
// 65535, is told the sender as RFC 1191 section 4 has it. Whether DF is set isn't
// looked at.
func ICMPFragmentationNeeded(dst, orig []byte, from netip.Addr, mtu InnerMTU) int {
	return putICMPError(dst, orig, from, icmpFragmentationNeeded, uint32(uint16(mtu)))
}

// putICMPError writes a destination unreachable packet whose second word is
// rest.
func putICMPError(dst, orig []byte, from netip.Addr, code uint8, rest uint32) int {
	p, err := ParseIPv4(orig)
	if err != nil || !from.Is4() || !p.answerable() {
		return 0
	}
	n := min(IPv4HeaderLen+icmpHeaderLen+len(p), maxICMPv4Len)
	if len(dst) < n {
		return 0
	}
	reply := IPv4(dst[:n])
	putIPv4(reply, from, p.Src(), ProtoICMP)
	message := reply.Payload()
	putICMPHeader(message, icmpUnreachable, code, rest)
	copy(message[icmpHeaderLen:], p)
	binary.BigEndian.PutUint16(message[2:], Checksum(message, 0))
	return n
}

// putICMPHeader writes the header of an ICMP or ICMPv6 error, its checksum left
// 0.
func putICMPHeader(message []byte, kind, code uint8, rest uint32) {
	binary.BigEndian.PutUint32(message, uint32(kind)<<24|uint32(code)<<16)
	binary.BigEndian.PutUint32(message[4:], rest)
}

// answerable reports whether an ICMP error may be sent about p (RFC 1122
// section 3.2.2, RFC 1812 section 4.3.2.7).
func (p IPv4) answerable() bool {
	if p.FragmentOffset() != 0 || !single4(p[12]) || !single4(p[16]) {
		return false
	}
	if p.Protocol() != ProtoICMP {
		return true
	}
	message := p.Payload()
	return len(message) > 0 && !isICMPError(message[0])
}

// single4 tells from an address's first byte whether it names one host: not
// 0/8, loopback, multicast, reserved or broadcast (RFC 6890).
func single4(first byte) bool { return first != 0 && first != 127 && first < 224 }

func isICMPError(icmpType uint8) bool {
	switch icmpType {
	case icmpUnreachable, icmpSourceQuench, icmpRedirect, icmpTimeExceeded, icmpParameter:
		return true
	}
	return false
}

// putIPv4 writes the header of a packet that fills p. DF is set, so the packet
// is atomic and needs no distinct ID (RFC 6864 section 4.1).
func putIPv4(p IPv4, src, dst netip.Addr, proto uint8) {
	clear(p[:IPv4HeaderLen])
	p[0] = 4<<4 | IPv4HeaderLen/4
	p.SetTOS(tosInternetControl)
	p.SetTotalLen(len(p))
	binary.BigEndian.PutUint16(p[6:], flagDontFragment)
	p.SetTTL(icmpHopLimit)
	p[9] = proto
	s, d := src.As4(), dst.As4()
	copy(p[12:], s[:])
	copy(p[16:], d[:])
	p.UpdateChecksum()
}

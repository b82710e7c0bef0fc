package encap

import (
	"encoding/binary"
	"net/netip"
)

// IPv6HeaderLen is the length of the fixed IPv6 header, in bytes.
const IPv6HeaderLen = 40

// IPv6 is a view of one whole IPv6 packet (RFC 8200 section 3), exactly as
// long as its payload length says; [ParseIPv6] makes it. It aliases the buffer
// it was made from.
type IPv6 []byte

// ParseIPv6 returns the packet at the front of b, without the Ethernet padding
// that may follow it. It checks the version (ErrVersion) and that b holds all
// of the packet (ErrShort). Jumbograms (RFC 2675) are ErrHeader. Extension
// headers are not looked at.
func ParseIPv6(b []byte) (IPv6, error) {
	if len(b) < IPv6HeaderLen {
		return nil, ErrShort
	}
	if b[0]>>4 != 6 {
		return nil, ErrVersion
	}
	p := IPv6(b)
	payload := p.PayloadLen()
	if payload == 0 && p.NextHeader() == protoHopByHop {
		return nil, ErrHeader
	}
	total := IPv6HeaderLen + payload
	if total > len(b) {
		return nil, ErrShort
	}
	return p[:total:total], nil
}

// PayloadLen returns the length of all that follows the fixed header, in
// bytes.
func (p IPv6) PayloadLen() int { return int(binary.BigEndian.Uint16(p[4:])) }

// TrafficClass returns DSCP and ECN together.
func (p IPv6) TrafficClass() uint8 { return uint8(binary.BigEndian.Uint16(p) >> 4) }

// ECN returns the ECN codepoint.
func (p IPv6) ECN() uint8 { return p.TrafficClass() & ecnMask }

// FlowLabel returns the flow label, 20 bits.
func (p IPv6) FlowLabel() uint32 { return binary.BigEndian.Uint32(p) & 0xfffff }

// HopLimit returns the hop limit.
func (p IPv6) HopLimit() uint8 { return p[7] }

// NextHeader returns the number of the header that follows the fixed one,
// which may be an extension header; [IPv6.Transport] sees past those.
func (p IPv6) NextHeader() uint8 { return p[6] }

// Src returns the source address.
func (p IPv6) Src() netip.Addr { return netip.AddrFrom16([16]byte(p[8:24])) }

// Dst returns the destination address.
func (p IPv6) Dst() netip.Addr { return netip.AddrFrom16([16]byte(p[24:40])) }

// Payload returns what follows the fixed header, extension headers included;
// it aliases p.
func (p IPv6) Payload() []byte { return p[IPv6HeaderLen:] }

// SetPayloadLen sets the payload length field, in bytes, at most 65535.
func (p IPv6) SetPayloadLen(n int) { binary.BigEndian.PutUint16(p[4:], uint16(n)) }

// SetECN sets the low two bits of ecn as the codepoint. No checksum covers
// them.
func (p IPv6) SetECN(ecn uint8) { p[1] = p[1]&^(ecnMask<<4) | (ecn&ecnMask)<<4 }

// Transport finds the transport header: its protocol number and its offset
// from the start of p, in bytes. Of a fragment other than the first, proto and
// offset are those of the fragmentable part (RFC 8200 section 4.5), which is no
// transport header. fragment is false for an atomic fragment, which is a whole
// packet (RFC 6946). ok is false when the headers run past the end or are more
// than any sane sender chains; the other results are then zero.
func (p IPv6) Transport() (proto uint8, offset int, fragment bool, ok bool) {
	c, ok := p.walk()
	if !ok {
		return 0, 0, false, false
	}
	return c.proto, c.offset, c.fragment, true
}

// putIPv6 writes a fixed header for the payload that fills the rest of b.
func putIPv6(b []byte, src, dst netip.Addr, next, hopLimit uint8) IPv6 {
	p := IPv6(b)
	binary.BigEndian.PutUint32(p, 6<<28)
	p.SetPayloadLen(len(b) - IPv6HeaderLen)
	p[6], p[7] = next, hopLimit
	s, d := src.As16(), dst.As16()
	copy(p[8:], s[:])
	copy(p[24:], d[:])
	return p
}

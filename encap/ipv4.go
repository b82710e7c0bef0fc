package encap

import (
	"encoding/binary"
	"net/netip"
)

// IPv4HeaderLen is the length of an IPv4 header without options, in bytes.
const IPv4HeaderLen = 20

const (
	flagDontFragment  = 0x4000
	flagMoreFragments = 0x2000
	maskOffset        = 0x1fff
)

// IPv4 is a view of one whole IPv4 packet (RFC 791 section 3.1), exactly
// TotalLen bytes long; [ParseIPv4] makes it. It aliases the buffer it was made
// from. Of the setters only SetECN keeps the header checksum right; call
// UpdateChecksum after the others.
type IPv4 []byte

// ParseIPv4 returns the packet at the front of b, without the Ethernet padding
// that may follow it. It checks the version (ErrVersion), that the header
// lengths agree (ErrHeader) and that b holds all of it (ErrShort). It doesn't
// verify the header checksum.
func ParseIPv4(b []byte) (IPv4, error) {
	if len(b) < IPv4HeaderLen {
		return nil, ErrShort
	}
	if b[0]>>4 != 4 {
		return nil, ErrVersion
	}
	header, total := IPv4(b).HeaderLen(), IPv4(b).TotalLen()
	if header < IPv4HeaderLen || header > total {
		return nil, ErrHeader
	}
	if total > len(b) {
		return nil, ErrShort
	}
	return IPv4(b[:total:total]), nil
}

// HeaderLen returns the length of the header with its options, in bytes.
func (p IPv4) HeaderLen() int { return int(p[0]&0xf) * 4 }

// TotalLen returns the length of header and payload, in bytes.
func (p IPv4) TotalLen() int { return int(binary.BigEndian.Uint16(p[2:])) }

// TOS returns the whole second byte: DSCP and ECN (RFC 2474, RFC 3168).
func (p IPv4) TOS() uint8 { return p[1] }

// ECN returns the ECN codepoint.
func (p IPv4) ECN() uint8 { return p[1] & ecnMask }

// ID returns the identification field.
func (p IPv4) ID() uint16 { return binary.BigEndian.Uint16(p[4:]) }

// TTL returns the time to live, in hops.
func (p IPv4) TTL() uint8 { return p[8] }

// Protocol returns the IANA number of the payload's protocol.
func (p IPv4) Protocol() uint8 { return p[9] }

// DontFragment reports the DF flag.
func (p IPv4) DontFragment() bool { return p.fragmentField()&flagDontFragment != 0 }

// MoreFragments reports the MF flag.
func (p IPv4) MoreFragments() bool { return p.fragmentField()&flagMoreFragments != 0 }

// FragmentOffset returns the payload's place in the original, in bytes.
func (p IPv4) FragmentOffset() int { return int(p.fragmentField()&maskOffset) * 8 }

// IsFragment reports whether p is a part of a larger packet, the first part
// included.
func (p IPv4) IsFragment() bool { return p.fragmentField()&(flagMoreFragments|maskOffset) != 0 }

// Src returns the source address.
func (p IPv4) Src() netip.Addr { return netip.AddrFrom4([4]byte(p[12:16])) }

// Dst returns the destination address.
func (p IPv4) Dst() netip.Addr { return netip.AddrFrom4([4]byte(p[16:20])) }

// HeaderChecksumOK verifies the header checksum.
func (p IPv4) HeaderChecksumOK() bool { return Fold(Sum(p[:p.HeaderLen()], 0)) == 0xffff }

// Payload returns what follows the header and its options; it aliases p.
func (p IPv4) Payload() []byte { return p[p.HeaderLen():] }

// SetTotalLen sets the total length field, in bytes, at most 65535.
func (p IPv4) SetTotalLen(n int) { binary.BigEndian.PutUint16(p[2:], uint16(n)) }

// SetID sets the identification field.
func (p IPv4) SetID(id uint16) { binary.BigEndian.PutUint16(p[4:], id) }

// SetTTL sets the time to live, in hops.
func (p IPv4) SetTTL(ttl uint8) { p[8] = ttl }

// SetTOS sets DSCP and ECN together.
func (p IPv4) SetTOS(tos uint8) { p[1] = tos }

// UpdateChecksum computes the header checksum anew.
func (p IPv4) UpdateChecksum() {
	binary.BigEndian.PutUint16(p[10:], 0)
	binary.BigEndian.PutUint16(p[10:], Checksum(p[:p.HeaderLen()], 0))
}

// SetECN sets the low two bits of ecn as the codepoint and adjusts the header
// checksum by the difference (RFC 1624 equation 3), so that a header that was
// damaged on its way stays recognisably so.
func (p IPv4) SetECN(ecn uint8) {
	before := binary.BigEndian.Uint16(p)
	p[1] = p[1]&^ecnMask | ecn&ecnMask
	after := binary.BigEndian.Uint16(p)
	check := binary.BigEndian.Uint16(p[10:])
	sum := uint64(^check) + uint64(^before) + uint64(after)
	binary.BigEndian.PutUint16(p[10:], ^Fold(sum))
}

func (p IPv4) fragmentField() uint16 { return binary.BigEndian.Uint16(p[6:]) }

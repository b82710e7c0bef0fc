package encap

import "encoding/binary"

// Protocol numbers (IANA) that the package looks into.
const (
	ProtoICMP   = 1
	ProtoTCP    = 6
	ProtoUDP    = 17
	ProtoICMPv6 = 58
	ProtoSCTP   = 132
)

const (
	tcpHeaderLen      = 20
	tcpChecksumOffset = 16
	udpHeaderLen      = 8
	udpChecksumOffset = 6
)

// ChecksumState is the verdict on a TCP or UDP checksum.
type ChecksumState uint8

// The verdicts.
const (
	// ChecksumNone: there is none to judge. The packet is malformed, of
	// another protocol, a fragment, not at its final destination (IPv6
	// routing header), or UDP over IPv4 sent without a checksum.
	ChecksumNone ChecksumState = iota
	// ChecksumGood: verified.
	ChecksumGood
	// ChecksumPartial: the field holds the folded sum of the pseudo-header,
	// not complemented, as a kernel leaves it for an offload to finish
	// (CHECKSUM_PARTIAL).
	ChecksumPartial
	// ChecksumBad: wrong, or the segment is shorter than its header (the field
	// may then lie past the end), or the UDP length is not that of the IP
	// payload.
	ChecksumBad
)

// String returns the name in lower case, for messages.
func (s ChecksumState) String() string {
	switch s {
	case ChecksumNone:
		return "none"
	case ChecksumGood:
		return "good"
	case ChecksumPartial:
		return "partial"
	}
	return "bad"
}

// TransportChecksum judges the TCP or UDP checksum of ip, a whole IPv4 or IPv6
// packet. start is the offset of the transport header from the start of ip,
// offset that of the checksum field from start, both in bytes, as a vnet header
// wants them; both are zero for ChecksumNone. A field that is right is
// ChecksumGood even where it happens to equal the pseudo-header's sum.
func TransportChecksum(ip []byte) (state ChecksumState, start, offset int) {
	if p, err := ParseIPv4(ip); err == nil {
		return transportChecksum4(p)
	}
	if p, err := ParseIPv6(ip); err == nil {
		return transportChecksum6(p)
	}
	return ChecksumNone, 0, 0
}

func transportChecksum4(p IPv4) (state ChecksumState, start, offset int) {
	offset = checksumOffset(p.Protocol())
	if offset == 0 || p.IsFragment() {
		return ChecksumNone, 0, 0
	}
	segment := p.Payload()
	switch {
	case !wellFormed(segment, offset):
		state = ChecksumBad
	case unsummed(segment, offset):
		return ChecksumNone, 0, 0
	default:
		state = judge(segment, offset, p.PseudoHeaderSum(p.Protocol(), len(segment)))
	}
	return state, p.HeaderLen(), offset
}

func transportChecksum6(p IPv6) (state ChecksumState, start, offset int) {
	c, ok := p.walk()
	offset = checksumOffset(c.proto)
	if !ok || offset == 0 || c.fragment || c.routed {
		return ChecksumNone, 0, 0
	}
	segment := p[c.offset:]
	state = ChecksumBad
	// RFC 8200 section 8.1: UDP over IPv6 must have a checksum.
	if wellFormed(segment, offset) && !unsummed(segment, offset) {
		state = judge(segment, offset, p.PseudoHeaderSum(c.proto, len(segment)))
	}
	return state, c.offset, offset
}

// judge decides on a well-formed segment. Only a field that doesn't verify is
// compared with pseudo: the two can be equal by chance.
func judge(segment []byte, offset int, pseudo uint64) ChecksumState {
	switch {
	case Fold(Sum(segment, pseudo)) == 0xffff:
		return ChecksumGood
	case binary.BigEndian.Uint16(segment[offset:]) == Fold(pseudo):
		return ChecksumPartial
	}
	return ChecksumBad
}

// wellFormed reports whether segment holds its header and, for UDP, whether
// its length field agrees with the IP payload.
func wellFormed(segment []byte, offset int) bool {
	if offset == tcpChecksumOffset {
		return len(segment) >= tcpHeaderLen
	}
	return len(segment) >= udpHeaderLen && int(binary.BigEndian.Uint16(segment[4:])) == len(segment)
}

// unsummed reports whether segment is UDP that was sent without a checksum
// (RFC 768).
func unsummed(segment []byte, offset int) bool {
	return offset == udpChecksumOffset && binary.BigEndian.Uint16(segment[offset:]) == 0
}

// checksumOffset returns the checksum field's place in the header of proto,
// zero for a protocol that isn't judged. The places differ, so it also tells
// the protocols apart.
func checksumOffset(proto uint8) int {
	switch proto {
	case ProtoTCP:
		return tcpChecksumOffset
	case ProtoUDP:
		return udpChecksumOffset
	}
	return 0
}

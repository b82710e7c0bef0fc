package tunnel

import (
	"encoding/binary"
	"slices"

	"uvxlan/encap"
)

// The plain way: what a kernel without any offload makes of what it is given,
// word by word and packet by packet. None of it is shared with encap.

const udpField = 6 // the checksum field's offset in the UDP header

// plainSum is the ones' complement sum (RFC 1071), not complemented.
func plainSum(initial uint16, b []byte) uint16 {
	sum := uint64(initial)
	for ; len(b) > 1; b = b[2:] {
		sum += uint64(b[0])<<8 | uint64(b[1])
	}
	if len(b) > 0 {
		sum += uint64(b[0]) << 8
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return uint16(sum)
}

// plainPseudo is the sum of the pseudo-header of the transport header that o
// points to.
func plainPseudo(p []byte, o encap.Offload) uint16 {
	proto, length := byte(6), len(p)-int(o.ChecksumStart)
	if o.ChecksumOffset == udpField {
		proto = 17
	}
	addresses := p[8:20]
	if p[0]>>4 == 6 {
		addresses = p[8:40]
	} else {
		addresses = addresses[4:]
	}
	return plainSum(plainSum(0, addresses), []byte{0, proto, byte(length >> 8), byte(length)})
}

// plainFill computes the checksum that o leaves to be filled in.
func plainFill(p []byte, o encap.Offload) {
	field := p[o.ChecksumStart+o.ChecksumOffset:]
	field[0], field[1] = 0, 0
	sum := ^plainSum(plainPseudo(p, o), p[o.ChecksumStart:])
	if sum == 0 && o.ChecksumOffset == udpField {
		sum = 0xffff
	}
	binary.BigEndian.PutUint16(field, sum)
}

// plainLengths sets the lengths of the IP header and the IPv4 header's checksum.
func plainLengths(p []byte) {
	if p[0]>>4 == 6 {
		binary.BigEndian.PutUint16(p[4:], uint16(len(p)-40))
		return
	}
	binary.BigEndian.PutUint16(p[2:], uint16(len(p)))
	p[10], p[11] = 0, 0
	binary.BigEndian.PutUint16(p[10:], ^plainSum(0, p[:int(p[0]&15)*4]))
}

// plainHeaders is the length of all headers of a superpacket.
func plainHeaders(p []byte, o encap.Offload) int {
	if o.GSO == encap.GSOUDP {
		return int(o.ChecksumStart) + 8
	}
	return int(o.ChecksumStart) + int(p[o.ChecksumStart+12]>>4)*4
}

// plainSegments are the complete packets that p stands for.
func plainSegments(p []byte, o encap.Offload) (all [][]byte) {
	switch {
	case !o.NeedsChecksum:
		return [][]byte{p}
	case o.GSO == encap.GSONone:
		p = slices.Clone(p)
		plainFill(p, o)
		return [][]byte{p}
	}
	headers, size := plainHeaders(p, o), int(o.SegmentSize)
	for at := headers; at < len(p); at += size {
		end := min(at+size, len(p))
		segment := slices.Concat(p[:headers], p[at:end])
		plainSegment(segment, o, len(all), at-headers, end == len(p))
		all = append(all, segment)
	}
	return all
}

// plainSegment makes p, with the superpacket's headers, its segment of that
// number, whose payload begins at that offset.
func plainSegment(p []byte, o encap.Offload, number, at int, last bool) {
	if p[0]>>4 == 4 {
		binary.BigEndian.PutUint16(p[4:], binary.BigEndian.Uint16(p[4:])+uint16(number))
	}
	plainLengths(p)
	h := p[o.ChecksumStart:]
	if o.GSO == encap.GSOUDP {
		binary.BigEndian.PutUint16(h[4:], uint16(len(h)))
		plainFill(p, o)
		return
	}
	binary.BigEndian.PutUint32(h[4:], binary.BigEndian.Uint32(h[4:])+uint32(at))
	if !last {
		h[13] &^= flagFIN | flagPSH
	}
	if number > 0 {
		h[13] &^= flagCWR
	}
	plainFill(p, o)
}

// flowOf names the flow of a packet, within which order is kept: addresses,
// protocol and ports, as far as each of a packet's fragments shows them.
func flowOf(p []byte) string {
	if p[0]>>4 == 6 {
		return flowOf6(p)
	}
	if p[6]&0x3f|p[7] != 0 {
		return string(p[12:20]) + "fragment" + string(p[9:10])
	}
	return string(p[12:20]) + endpoints(p[9], p[int(p[0]&15)*4:])
}

func flowOf6(p []byte) string {
	next, rest := p[6], p[40:]
	for next == 0 || next == 60 || next == 44 { // options and fragment, 8 bytes each
		if next == 44 && (rest[2] != 0 || rest[3]&^6 != 0) {
			return string(p[8:40]) + "fragment"
		}
		next, rest = rest[0], rest[8:]
	}
	return string(p[8:40]) + endpoints(next, rest)
}

func endpoints(proto byte, transport []byte) string {
	if (proto == 6 || proto == 17 || proto == 132) && len(transport) >= 4 {
		return string(proto) + string(transport[:4])
	}
	return string(proto)
}

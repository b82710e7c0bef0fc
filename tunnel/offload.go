package tunnel

import (
	"encoding/binary"

	"uvxlan/encap"
)

const tcpCWR = 0x80 // of the TCP header's flags byte (RFC 3168, section 6.1)

// received tells what the sender of an inner packet left undone, so that the
// device's kernel does it. A kernel that shares the machine with its receiver
// leaves transport checksums to be filled in by hardware that is never passed,
// and sends TCP superpackets as one datagram. Their segment size is not told; it
// is what mtu, the inner MTU in bytes, implies.
//
// The packet must be a whole IP packet. A superpacket's checksum field is set to
// the pseudo-header's sum, as the vnet header's contract asks.
func received(packet []byte, mtu int) Offload {
	state, start, field := encap.TransportChecksum(packet)
	o := Offload{ChecksumStart: uint16(start), ChecksumOffset: uint16(field)}
	switch {
	case state == encap.ChecksumNone, state == encap.ChecksumBad:
		return Offload{}
	case len(packet) > mtu && protocol(packet) == encap.ProtoTCP:
		return superpacket(packet, mtu, o)
	case state == encap.ChecksumGood:
		return Offload{}
	}
	o.NeedsChecksum = true
	return o
}

func superpacket(packet []byte, mtu int, o Offload) Offload {
	segment := packet[o.ChecksumStart:]
	headers := int(o.ChecksumStart) + int(segment[12]>>4)*4
	if headers >= mtu || headers > len(packet) {
		return Offload{}
	}
	sum := pseudoSum(packet, len(segment))
	binary.BigEndian.PutUint16(segment[o.ChecksumOffset:], encap.Fold(sum))
	o.NeedsChecksum = true
	o.HeaderLen, o.SegmentSize = uint16(headers), uint16(mtu-headers)
	o.GSO = GSOTCPv4
	if packet[0]>>4 == 6 {
		o.GSO = GSOTCPv6
	}
	if segment[13]&tcpCWR != 0 {
		o.GSO |= GSOECN
	}
	return o
}

// protocol is the transport protocol of a packet whose checksum was found.
func protocol(packet []byte) uint8 {
	if packet[0]>>4 == 4 {
		return encap.IPv4(packet).Protocol()
	}
	proto, _, _, _ := encap.IPv6(packet).Transport()
	return proto
}

func pseudoSum(packet []byte, length int) uint64 {
	if packet[0]>>4 == 4 {
		return encap.IPv4(packet).PseudoHeaderSum(encap.ProtoTCP, length)
	}
	return encap.IPv6(packet).PseudoHeaderSum(encap.ProtoTCP, length)
}

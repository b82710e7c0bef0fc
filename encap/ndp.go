package encap

import (
	"encoding/binary"
	"net/netip"
)

// NeighborAdvertisementLen is the length of the packets that
// [NeighborAdvertisement] writes, in bytes: the IPv6 header, the message and
// one target link-layer address option.
const NeighborAdvertisementLen = IPv6HeaderLen + ndpMessageLen + linkOptionLen

const (
	ndpMessageLen = 24 // both messages without their options
	linkOptionLen = 8
	ndpHopLimit   = 255 // proves that no router forwarded the packet

	typeSolicitation  = 135
	typeAdvertisement = 136

	optionSource = 1
	optionTarget = 2

	flagSolicited = 0x40
	flagOverride  = 0x20
)

// solicitedNode is ff02::1:ff00:0/104 without the address's low 24 bits
// (RFC 4291 section 2.7.1).
var solicitedNode = netip.PrefixFrom(netip.AddrFrom16([16]byte{0: 0xff, 1: 0x02, 11: 1, 12: 0xff}), 104)

// NeighborAdvertisement answers solicitation, a whole IPv6 packet, if it is a
// valid neighbour solicitation (RFC 4861 section 7.1.1) for ours, with an
// advertisement of mac (sections 4.4, 7.2.4). It writes the whole IPv6 packet to
// dst and returns its length, NeighborAdvertisementLen, or 0 for any other
// packet and for a dst that is too short. dst must not overlap solicitation.
//
// A probe (RFC 4862 section 5.4, unspecified source) is answered to ff02::1
// without the Solicited flag. In both cases the Ethernet frame may go to the
// sender of the solicitation's frame; RFC 6085 allows that for multicast too.
func NeighborAdvertisement(dst, solicitation []byte, ours netip.Addr, mac MAC) (n int) {
	p, err := ParseIPv6(solicitation)
	if err != nil || len(dst) < NeighborAdvertisementLen || !validSolicitation(p) {
		return 0
	}
	ours = ours.WithZone("")
	target := netip.AddrFrom16([16]byte(p[IPv6HeaderLen+8:]))
	if target != ours || p.Src() == ours {
		return 0
	}
	to, flags := p.Src(), uint8(flagSolicited|flagOverride)
	if to.IsUnspecified() {
		to, flags = netip.IPv6LinkLocalAllNodes(), flagOverride
	}
	reply := putIPv6(dst[:NeighborAdvertisementLen], ours, to, ProtoICMPv6, ndpHopLimit)
	message := reply.Payload()
	clear(message[:8])
	message[0], message[4] = typeAdvertisement, flags
	copy(message[8:24], p[IPv6HeaderLen+8:])
	message[24], message[25] = optionTarget, linkOptionLen/8
	copy(message[26:], mac[:])
	reply.sealICMP()
	return NeighborAdvertisementLen
}

// validSolicitation applies RFC 4861 section 7.1.1. Packets with extension
// headers are refused: no sender needs them here, and RFC 6980 bans fragments
// outright.
func validSolicitation(p IPv6) bool {
	message := p.Payload()
	if p.NextHeader() != ProtoICMPv6 || p.HopLimit() != ndpHopLimit ||
		len(message) < ndpMessageLen || message[0] != typeSolicitation || message[1] != 0 {
		return false
	}
	if Fold(Sum(message, p.PseudoHeaderSum(ProtoICMPv6, len(message)))) != 0xffff {
		return false
	}
	hasSource, ok := solicitationOptions(message[ndpMessageLen:])
	switch src := p.Src(); {
	case !ok, src.IsMulticast(), message[8] == 0xff:
		return false
	case src.IsUnspecified():
		return !hasSource && solicitedNode.Contains(p.Dst())
	}
	return true
}

// solicitationOptions walks the options (RFC 4861 section 4.6). hasSource
// reports a source link-layer address among them; ok that all fit b and none
// has length zero.
func solicitationOptions(b []byte) (hasSource, ok bool) {
	for len(b) > 0 {
		if len(b) < 2 {
			return false, false
		}
		n := int(b[1]) * 8
		if n == 0 || n > len(b) {
			return false, false
		}
		hasSource = hasSource || b[0] == optionSource
		b = b[n:]
	}
	return hasSource, true
}

// sealICMP fills the checksum of an ICMPv6 message that follows the fixed
// header directly and whose checksum field is zero (RFC 4443 section 2.3).
func (p IPv6) sealICMP() {
	message := p.Payload()
	sum := p.PseudoHeaderSum(ProtoICMPv6, len(message))
	binary.BigEndian.PutUint16(message[2:], Checksum(message, sum))
}

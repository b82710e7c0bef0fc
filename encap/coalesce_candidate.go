package encap

import (
	"encoding/binary"
	"math/bits"
)

const (
	tcpACK = 0x10
	// plainIPv4 is the first byte of an IPv4 header without options.
	plainIPv4 = 0x45
)

// candidate is a packet on its way into a Coalescer and what it shows of itself.
type candidate struct {
	packet    []byte
	l4        int // offset of the transport header
	headers   int // length of all headers
	field     int // the checksum field's offset from l4
	state     ChecksumState
	tcp       bool
	plain     bool // TCP or UDP right behind a sound IP header
	stray     bool // TCP or UDP perhaps, but of which flow wasn't looked for
	oversized bool // a TCP superpacket already
	fits      bool // may be part of a superpacket
}

// read fills in d from packet.
func (d *candidate) read(packet []byte, mtu int) {
	d.packet = packet
	var pseudo uint64
	switch {
	case plain4(packet):
		d.l4 = IPv4HeaderLen
		d.tcp = packet[9] == ProtoTCP
		pseudo = IPv4(packet).PseudoHeaderSum(packet[9], len(packet)-IPv4HeaderLen)
	case plain6(packet):
		d.l4 = IPv6HeaderLen
		d.tcp = packet[6] == ProtoTCP
		pseudo = IPv6(packet).PseudoHeaderSum(packet[6], len(packet)-IPv6HeaderLen)
	default:
		d.readStray(mtu)
		return
	}
	d.plain = true
	if d.tcp {
		d.readTCP(pseudo, mtu)
	} else {
		d.readUDP(pseudo, mtu)
	}
}

// plain4 reports whether p is TCP or UDP in IPv4 without options or fragments,
// with a header checksum that is right: it is computed anew later.
func plain4(p []byte) bool {
	if len(p) < IPv4HeaderLen+udpHeaderLen || p[0] != plainIPv4 {
		return false
	}
	h := (*[IPv4HeaderLen]byte)(p)
	if h[9] != ProtoTCP && h[9] != ProtoUDP || h[6]&^(flagDontFragment>>8)|h[7] != 0 {
		return false
	}
	s, carry := bits.Add64(binary.LittleEndian.Uint64(h[0:]), binary.LittleEndian.Uint64(h[8:]), 0)
	s, carry = bits.Add64(s, uint64(binary.LittleEndian.Uint32(h[16:])), carry)
	return Fold(s+carry) == 0xffff && int(binary.BigEndian.Uint16(h[2:])) == len(p)
}

// plain6 reports whether p is TCP or UDP in IPv6 without extension headers.
func plain6(p []byte) bool {
	if len(p) < IPv6HeaderLen+udpHeaderLen || p[0]>>4 != 6 {
		return false
	}
	h := (*[IPv6HeaderLen]byte)(p)
	return (h[6] == ProtoTCP || h[6] == ProtoUDP) &&
		int(binary.BigEndian.Uint16(h[4:])) == len(p)-IPv6HeaderLen
}

func (d *candidate) readTCP(pseudo uint64, mtu int) {
	segment := d.packet[d.l4:]
	d.field = tcpChecksumOffset
	if len(segment) < tcpHeaderLen {
		d.state = ChecksumBad
		return
	}
	h := (*[tcpHeaderLen]byte)(segment)
	length := int(h[12]>>4) * 4
	d.headers = d.l4 + length
	sound := length >= tcpHeaderLen && length <= len(segment)
	big := sound && len(d.packet) > mtu && d.headers < mtu
	// Another kernel's superpacket hardly ever has a checksum; don't compute one
	// over all of it to find that out.
	if big && binary.BigEndian.Uint16(h[tcpChecksumOffset:]) == Fold(pseudo) {
		d.state = ChecksumPartial
	} else {
		d.state = judge(segment, tcpChecksumOffset, pseudo)
	}
	whole := d.state == ChecksumGood || d.state == ChecksumPartial
	d.oversized = big && whole
	d.fits = whole && sound && length < len(segment) && (big || len(d.packet) <= mtu) &&
		h[13]&^tcpPSH == tcpACK && h[12]&0xf == 0
}

func (d *candidate) readUDP(pseudo uint64, mtu int) {
	segment := d.packet[d.l4:]
	d.field = udpChecksumOffset
	d.headers = d.l4 + udpHeaderLen
	switch {
	case !wellFormed(segment, udpChecksumOffset):
		d.state = ChecksumBad
	case unsummed(segment, udpChecksumOffset):
		d.state = ChecksumNone
	default:
		d.state = judge(segment, udpChecksumOffset, pseudo)
		d.fits = d.state != ChecksumBad && len(segment) > udpHeaderLen && len(d.packet) <= mtu
	}
}

// readStray reads what is not plain. It never joins another packet, but it may
// be a superpacket or want a checksum.
func (d *candidate) readStray(mtu int) {
	d.stray = ofUnknownFlow(d.packet)
	d.state, d.l4, d.field = TransportChecksum(d.packet)
	whole := d.state == ChecksumGood || d.state == ChecksumPartial
	if !whole || d.field != tcpChecksumOffset {
		return
	}
	length := int(d.packet[d.l4+12]>>4) * 4
	d.headers = d.l4 + length
	d.oversized = len(d.packet) > mtu && d.headers < mtu &&
		length >= tcpHeaderLen && d.headers <= len(d.packet)
}

// ofUnknownFlow reports whether p, which is not plain, may be of a flow with
// open superpackets.
func ofUnknownFlow(p []byte) bool {
	switch {
	case len(p) >= IPv4HeaderLen && p[0]>>4 == 4:
		return checksumOffset(p[9]) != 0
	case len(p) >= IPv6HeaderLen && p[0]>>4 == 6:
		return checksumOffset(p[6]) != 0 || isExtension(p[6])
	}
	return false
}

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
	size      int // payload bytes of a datagram, if it is told
	segment   int // payload bytes a segment, if this is an unsplit superpacket
	l4        int // offset of the transport header
	headers   int // length of all headers
	field     int // the checksum field's offset from l4
	state     ChecksumState
	tcp       bool
	plain     bool // TCP or UDP right behind a sound IP header
	stray     bool // TCP or UDP perhaps, but of which flow wasn't looked for
	divisible bool // TCP with payload, to be cut if it is too long
	fits      bool // may be part of a superpacket
}

// segments is how many packets d stands for.
func (d *candidate) segments() int {
	if d.segment == 0 {
		return 1
	}
	return (len(d.packet) - d.headers + d.segment - 1) / d.segment
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
		d.readStray()
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
	big := len(d.packet) > mtu
	// Another kernel's superpacket hardly ever has a checksum; don't compute one
	// over all of it to find that out.
	if big && binary.BigEndian.Uint16(h[tcpChecksumOffset:]) == Fold(pseudo) {
		d.state = ChecksumPartial
	} else {
		d.state = judge(segment, tcpChecksumOffset, pseudo)
	}
	whole := d.state == ChecksumGood || d.state == ChecksumPartial
	d.divisible = whole && sound && length < len(segment)
	d.fits = d.divisible && h[13]&^tcpPSH == tcpACK && h[12]&0xf == 0
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
	case d.size > 0 && len(segment)-udpHeaderLen > d.size:
		d.readSuperpacket(pseudo)
	default:
		d.state = judge(segment, udpChecksumOffset, pseudo)
		d.fits = d.state != ChecksumBad && len(segment) > udpHeaderLen && len(d.packet) <= mtu
	}
}

// readSuperpacket reads the checksum of a UDP superpacket, which other kernels
// leave unfilled; none is computed to find that out.
func (d *candidate) readSuperpacket(pseudo uint64) {
	segment := d.packet[d.l4:]
	if binary.BigEndian.Uint16(segment[udpChecksumOffset:]) == Fold(pseudo) {
		d.state = ChecksumPartial
	} else {
		d.state = judge(segment, udpChecksumOffset, pseudo)
	}
	if d.state != ChecksumBad {
		d.segment = d.size
	}
}

// readStray reads what is not plain. It never joins another packet, but it may
// be a superpacket or want a checksum.
func (d *candidate) readStray() {
	d.stray = ofUnknownFlow(d.packet)
	d.state, d.l4, d.field = TransportChecksum(d.packet)
	if d.state != ChecksumGood && d.state != ChecksumPartial {
		return
	}
	if d.field == udpChecksumOffset {
		d.headers = d.l4 + udpHeaderLen
		if d.size > 0 && len(d.packet)-d.headers > d.size {
			d.segment = d.size
		}
		return
	}
	length := int(d.packet[d.l4+12]>>4) * 4
	d.headers = d.l4 + length
	d.divisible = length >= tcpHeaderLen && d.headers < len(d.packet)
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

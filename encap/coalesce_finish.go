package encap

import "encoding/binary"

// finish closes o and writes its headers.
func (o *super) finish() {
	o.open, o.finished = false, true
	oversized := o.total-int(o.headers) > int(o.size) && o.size > 0
	if !oversized {
		o.finishLone()
		return
	}
	if o.count > 1 {
		o.putLength()
	}
	h := o.head[o.l4:]
	gso := GSOUDP
	if o.field == tcpChecksumOffset {
		gso = o.tcpKind()
		if o.push {
			h[tcpFlagsOffset] |= tcpPSH
		}
	}
	binary.BigEndian.PutUint16(h[o.field:], Fold(o.pseudo()))
	o.offload = Offload{
		NeedsChecksum: true, ChecksumStart: o.l4, ChecksumOffset: uint16(o.field),
		GSO: gso, SegmentSize: o.size, HeaderLen: o.headers,
	}
}

// finishLone leaves a packet as it came.
func (o *super) finishLone() {
	o.offload = Offload{}
	if o.partial {
		o.offload = Offload{NeedsChecksum: true, ChecksumStart: o.l4, ChecksumOffset: uint16(o.field)}
	}
}

// putLength writes the superpacket's length into the first packet's headers,
// which are plain.
func (o *super) putLength() {
	if o.l4 == IPv4HeaderLen {
		p := IPv4(o.head)
		p.SetTotalLen(o.total)
		p.UpdateChecksum()
	} else {
		IPv6(o.head).SetPayloadLen(o.total - IPv6HeaderLen)
	}
	if o.field == udpChecksumOffset {
		binary.BigEndian.PutUint16(o.head[o.l4+4:], uint16(o.total-int(o.l4)))
	}
}

func (o *super) tcpKind() GSOType {
	kind := GSOTCPv4
	if o.head[0]>>4 == 6 {
		kind = GSOTCPv6
	}
	if o.head[o.l4+tcpFlagsOffset]&tcpCWR != 0 {
		kind |= GSOECN
	}
	return kind
}

func (o *super) pseudo() uint64 {
	proto := uint8(ProtoTCP)
	if o.field == udpChecksumOffset {
		proto = ProtoUDP
	}
	length := o.total - int(o.l4)
	if o.head[0]>>4 == 4 {
		return IPv4(o.head).PseudoHeaderSum(proto, length)
	}
	return IPv6(o.head).PseudoHeaderSum(proto, length)
}

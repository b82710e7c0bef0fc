package encap

import "encoding/binary"

// super is a packet to write while it grows.
type super struct {
	head       []byte // the first packet, all of it
	total      int    // length in bytes
	nextSeq    uint32 // of the TCP segment that may join
	nextID     uint16 // of the IPv4 packet that may join
	first, end uint16 // of the chain of packets behind head, if count > 1
	flat       uint16 // where the parts begin, once finished
	count      uint16 // packets
	size       uint16 // payload bytes a segment; 0 if never a superpacket
	l4         uint16 // offset of the transport header
	headers    uint16 // length of all headers
	field      uint8  // the checksum field's offset from l4
	barrier    uint8
	open       bool // more may join
	fixedID    bool
	push       bool // the last packet has PSH
	partial    bool // the first packet's checksum is unfilled
	finished   bool
	offload    Offload
}

// start opens o, made of d alone, for others to join.
func (o *super) start(d *candidate) {
	n := len(d.packet) - d.headers
	segments := d.segments()
	o.open = true
	if d.segment > 0 {
		o.open = n%d.segment == 0 // no shorter segment within
	} else {
		o.size = uint16(n)
	}
	if d.l4 == IPv4HeaderLen {
		o.nextID = IPv4(d.packet).ID() + uint16(segments)
	}
	if d.tcp {
		h := (*[tcpHeaderLen]byte)(d.packet[d.l4:])
		o.nextSeq = binary.BigEndian.Uint32(h[tcpSeqOffset:]) + uint32(n)
		o.open = o.open && h[tcpFlagsOffset]&tcpPSH == 0
	}
}

// join adds d to superpacket i if it continues it.
func (c *Coalescer) join(i int, d *candidate) bool {
	o := &c.supers[i]
	n := len(d.packet) - d.headers
	if !o.open || int(o.headers) != d.headers || o.total+n > maxTotal || o.count >= maxParts ||
		uint16(i) < c.barriers[o.barrier%barrierCount] {
		return false
	}
	size := int(o.size)
	// An unsplit superpacket joins another's segments of the same size.
	if d.segment != size && (n > size || d.segment > 0) {
		return false
	}
	if !o.continues(d) {
		return false
	}
	segments := 1
	if n != size {
		segments = (n + size - 1) / size
		o.open = n%size == 0
	}
	if d.tcp {
		o.nextSeq += uint32(n)
		o.push = d.packet[d.l4+tcpFlagsOffset]&tcpPSH != 0
		o.open = o.open && !o.push
	}
	if !o.fixedID {
		o.nextID += uint16(segments)
	}
	c.chain(o, d.packet[d.headers:])
	return true
}

// chain puts payload behind what o has.
func (c *Coalescer) chain(o *super, payload []byte) {
	k := uint16(c.taken) % maxBatch
	c.taken++
	c.packets[k] = payload
	if o.count == 1 {
		o.first = k
	} else {
		c.next[o.end%maxBatch] = k
	}
	o.end = k
	o.count++
	o.total += len(payload)
}

// continues reports whether the headers of d follow those of o. Which of IP and
// transport o and d are shows in the first compared bytes.
func (o *super) continues(d *candidate) bool {
	if d.l4 != int(o.l4) {
		return false
	}
	head, p := o.head, d.packet
	if d.l4 == IPv4HeaderLen {
		return sameIPv4(head, p) && o.continuesTransport(head[IPv4HeaderLen:], d, p[IPv4HeaderLen:]) &&
			o.continuesID(p)
	}
	return sameIPv6(head, p) && o.continuesTransport(head[IPv6HeaderLen:], d, p[IPv6HeaderLen:])
}

func (o *super) continuesTransport(head []byte, d *candidate, segment []byte) bool {
	if !d.tcp {
		return binary.LittleEndian.Uint32(head) == binary.LittleEndian.Uint32(segment)
	}
	length := d.headers - d.l4
	return binary.BigEndian.Uint32(segment[tcpSeqOffset:]) == o.nextSeq && sameTCP(head[:length], segment[:length])
}

// continuesID reports whether an IPv4 ID is the next one, or the first again
// where none is needed. The second packet decides which.
func (o *super) continuesID(p IPv4) bool {
	id := p.ID()
	if id == o.nextID {
		return true
	}
	if o.count > 1 || !p.DontFragment() || id != IPv4(o.head).ID() {
		return false
	}
	o.fixedID, o.nextID = true, id
	return true
}

// sameIPv4 compares two headers without options but for length, ID and checksum.
func sameIPv4(a, b []byte) bool {
	x, y := (*[IPv4HeaderLen]byte)(a), (*[IPv4HeaderLen]byte)(b)
	const length, check = 0xffff_ffff_0000, 0xffff_0000 // and the ID
	return (binary.LittleEndian.Uint64(x[0:])^binary.LittleEndian.Uint64(y[0:]))&^length|
		(binary.LittleEndian.Uint64(x[8:])^binary.LittleEndian.Uint64(y[8:]))&^check|
		uint64(binary.LittleEndian.Uint32(x[16:])^binary.LittleEndian.Uint32(y[16:])) == 0
}

// sameIPv6 compares two fixed headers but for the length.
func sameIPv6(a, b []byte) bool {
	x, y := (*[IPv6HeaderLen]byte)(a), (*[IPv6HeaderLen]byte)(b)
	const length = 0xffff_0000_0000
	return (binary.LittleEndian.Uint64(x[0:])^binary.LittleEndian.Uint64(y[0:]))&^length|
		(binary.LittleEndian.Uint64(x[8:])^binary.LittleEndian.Uint64(y[8:]))|
		(binary.LittleEndian.Uint64(x[16:])^binary.LittleEndian.Uint64(y[16:]))|
		(binary.LittleEndian.Uint64(x[24:])^binary.LittleEndian.Uint64(y[24:]))|
		(binary.LittleEndian.Uint64(x[32:])^binary.LittleEndian.Uint64(y[32:])) == 0
}

// sameTCP compares two headers of one length but for sequence number, PSH and
// checksum. Like a kernel (tcp_gro_receive) it wants the window to be the same.
func sameTCP(a, b []byte) bool {
	x, y := (*[tcpHeaderLen]byte)(a), (*[tcpHeaderLen]byte)(b)
	const push, check = tcpPSH << 40, 0xffff
	return uint64(binary.LittleEndian.Uint32(x[0:])^binary.LittleEndian.Uint32(y[0:]))|
		(binary.LittleEndian.Uint64(x[8:])^binary.LittleEndian.Uint64(y[8:]))&^push|
		uint64(binary.LittleEndian.Uint32(x[16:])^binary.LittleEndian.Uint32(y[16:]))&^check == 0 &&
		string(a[tcpHeaderLen:]) == string(b[tcpHeaderLen:])
}

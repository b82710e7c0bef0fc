package tunnel

import (
	"encoding/binary"

	"uvxlan/encap"
)

const (
	flagFIN = 0x01
	flagPSH = 0x08
	flagACK = 0x10
	flagECE = 0x40
	flagCWR = 0x80
)

const mixMTU = 1450

// dice are random bytes to be used up; then they show zeros.
type dice []byte

// n rolls a number below limit, which is at most 65536.
func (d *dice) n(limit int) (value int) {
	for range 2 {
		if len(*d) > 0 {
			value, *d = value<<8|int((*d)[0]), (*d)[1:]
		}
		if limit <= 256 {
			break
		}
	}
	return value % limit
}

// one tells whether a roll of n sides showed one of them.
func (d *dice) one(n int) bool { return d.n(n) == n-1 }

// mixer makes packets of many flows, as a TUN device with all offloads would
// hand them over, from the bytes of a random source.
type mixer struct {
	dice  dice
	flows [16]stream
	last  int
}

// stream is a flow as its sender sees it.
type stream struct {
	from     byte // the node
	v6, tcp  bool
	port     byte
	tos, ttl byte
	dont     bool // DF
	fixedID  bool
	id       uint16
	seq, ack uint32
	flags    byte
	reserved byte // the bits beside the TCP header's length
	options  int  // TCP, in bytes
	stamp    byte // the last of them
	size     int  // payload of a packet or segment
	fill     byte
}

func newMixer(source []byte) *mixer {
	m := &mixer{dice: source}
	for i := range m.flows {
		m.flows[i] = stream{
			tcp: i&1 == 0, v6: i&2 != 0, from: 1 + byte(i>>2&1), port: byte(i >> 3),
			ttl: 64, dont: i&9 == 0, id: 0xfff0, seq: 0xffff_f000,
			flags: flagACK, options: 12, size: mixMTU,
		}
	}
	return m
}

// item is a packet and the node whose device hands it over.
type item struct {
	from    byte
	packet  []byte
	offload encap.Offload
}

// next makes a packet. Half of them follow one of the same flow, and most are
// like the one before in theirs.
func (m *mixer) next() item {
	if i := m.dice.n(2 * len(m.flows)); i < len(m.flows) {
		m.last = i
	}
	s := &m.flows[m.last]
	event := m.dice.n(48)
	m.change(s, event)
	d := draft{stream: *s, payload: s.size}
	m.vary(&d, event)
	packet, o := d.build()
	if s.tcp && d.proto == 0 {
		s.seq += uint32(d.payload)
	}
	if !s.fixedID {
		s.id += uint16(d.packets())
	}
	s.fill++
	return item{s.from, packet, o}
}

// change makes s go on in another way.
func (m *mixer) change(s *stream, event int) {
	switch event {
	case 0:
		s.size = 1 + m.dice.n(mixMTU)
	case 1:
		s.size = mixMTU
	case 2:
		s.tos = byte(m.dice.n(256))
	case 3:
		s.tos = s.tos&^3 | byte(m.dice.n(4))
	case 4:
		s.dont = !s.dont
	case 5:
		s.fixedID = !s.fixedID
	case 6:
		s.id += uint16(m.dice.n(256))
	case 7:
		s.ttl++
	case 8:
		s.ack += uint32(m.dice.n(256))
	case 9:
		s.options = m.dice.n(11) * 4
	case 10:
		s.seq += uint32(m.dice.n(4)) - 1
	case 11:
		s.stamp++
	case 12:
		s.flags, s.reserved = flagACK|1<<m.dice.n(8), byte(m.dice.n(2))
	case 13, 14:
		s.flags, s.reserved = flagACK, 0
	}
}

// vary makes one packet special.
func (m *mixer) vary(d *draft, event int) {
	switch event {
	case 15, 16, 17:
		d.flags |= flagPSH
	case 18:
		d.payload = 0
	case 19:
		d.payload = m.dice.n(64)
	case 20:
		d.unfilled = true
	case 21, 22:
		d.fragment, d.place, d.more = true, m.dice.n(4), m.dice.one(2)
	case 23, 24, 25:
		d.damage = 1 + m.dice.n(4)
	case 26:
		d.ipOptions = 1 + m.dice.n(2)
	case 27:
		d.proto = []byte{1, 47, 50, 58, 132}[m.dice.n(5)]
	case 28:
		d.proto, d.payload = 6+11*byte(m.dice.n(2)), m.dice.n(8)
	case 29, 30, 31, 32, 33, 34:
		m.enlarge(d)
	}
}

// enlarge makes a superpacket, seldom one that leaves room for little else.
func (m *mixer) enlarge(d *draft) {
	d.segments = 1 + m.dice.n(6)
	if m.dice.one(6) {
		d.segments = 1 + m.dice.n(64)
	}
	if m.dice.one(2) {
		d.short = m.dice.n(d.size)
	}
	if m.dice.one(2) {
		d.flags |= byte(m.dice.n(256)) & (flagFIN | flagPSH | flagECE | flagCWR)
	}
	if m.dice.one(8) {
		d.ipOptions = 1 + m.dice.n(2)
	}
}

// draft is a packet to be built.
type draft struct {
	stream
	payload   int // bytes, cut to what the MTU allows
	segments  int // of a superpacket
	short     int // bytes by which its last one is shorter
	unfilled  bool
	proto     byte // other than the stream's, with nothing of a header
	fragment  bool
	place     int // of the fragment, in 8 bytes
	more      bool
	ipOptions int // in IPv4's words or IPv6's extension headers
	damage    int
}

// build makes the packet and what is left undone of it.
func (d *draft) build() ([]byte, encap.Offload) {
	p := d.ip()
	o := encap.Offload{NeedsChecksum: true, ChecksumStart: uint16(len(p)), ChecksumOffset: 16}
	if !d.tcp {
		o.ChecksumOffset = udpField
	}
	if d.proto == 0 {
		p = append(p, d.transport()...)
	}
	d.fit(len(p))
	o = d.superpacket(o, len(p))
	for i := range d.payload {
		p = append(p, d.fill+byte(i*31+i>>8))
	}
	plainLengths(p)
	if d.proto != 0 {
		return p, encap.Offload{}
	}
	if !d.tcp {
		binary.BigEndian.PutUint16(p[o.ChecksumStart+4:], uint16(len(p))-o.ChecksumStart)
	}
	binary.BigEndian.PutUint16(p[o.ChecksumStart+o.ChecksumOffset:], plainPseudo(p, o))
	if d.segments > 0 || d.unfilled {
		return p, o
	}
	plainFill(p, o)
	d.spoil(p, o)
	return p, encap.Offload{}
}

// fit cuts payload and segments to what the MTU and an IP packet hold.
func (d *draft) fit(headers int) {
	d.size = min(d.size, mixMTU-headers)
	d.payload = min(d.payload, mixMTU-headers)
	if d.segments > 0 {
		d.payload = min(max(d.segments*d.size-d.short, 1), 0xffff-headers)
	}
}

// packets is how many packets d stands for.
func (d *draft) packets() int {
	if d.segments == 0 {
		return 1
	}
	return (d.payload + d.size - 1) / d.size
}

func (d *draft) superpacket(o encap.Offload, headers int) encap.Offload {
	if d.segments == 0 {
		return o
	}
	o.SegmentSize, o.HeaderLen = uint16(d.size), uint16(headers)
	switch {
	case !d.tcp:
		o.GSO = encap.GSOUDP
		return o
	case d.v6:
		o.GSO = encap.GSOTCPv6
	default:
		o.GSO = encap.GSOTCPv4
	}
	if d.flags&flagCWR != 0 {
		o.GSO |= encap.GSOECN
	}
	return o
}

func (d *draft) ip() []byte {
	proto := d.proto
	switch {
	case proto != 0:
	case d.tcp:
		proto = 6
	default:
		proto = 17
	}
	if d.v6 {
		return d.ipv6(proto)
	}
	p := make([]byte, 20+4*d.ipOptions)
	p[0], p[1], p[8], p[9] = 0x40|byte(len(p)/4), d.tos, d.ttl, proto
	binary.BigEndian.PutUint16(p[4:], d.id)
	if d.fragment {
		p[7] = byte(d.place)
	}
	if d.fragment && d.more {
		p[6] = 0x20
	}
	if d.dont {
		p[6] |= 0x40
	}
	copy(p[12:], []byte{10, 0, d.from, 9, 10, 0, 3 - d.from, 9})
	for i := range d.ipOptions {
		copy(p[20+4*i:], []byte{1, 1, 1, 1}) // no operation
	}
	return p
}

func (d *draft) ipv6(proto byte) []byte {
	p := make([]byte, 40)
	p[0], p[1], p[7] = 0x60|d.tos>>4, d.tos<<4, d.ttl
	p[8], p[15], p[23] = 0xfd, d.from, 9
	p[24], p[31], p[39] = 0xfd, 3-d.from, 9
	next := &p[6]
	for range d.ipOptions {
		*next = 60
		p = append(p, 0, 0, 1, 4, 0, 0, 0, 0) // PadN
		next = &p[len(p)-8]
	}
	if d.fragment {
		*next = 44
		p = append(p, 0, 0, 0, byte(d.place)<<3, 0, 0, 0, d.fill)
		next = &p[len(p)-8]
		if d.more {
			p[len(p)-5] |= 1
		}
	}
	*next = proto
	return p
}

func (d *draft) transport() []byte {
	h := make([]byte, 8)
	if d.tcp {
		h = make([]byte, 20+d.options)
	}
	binary.BigEndian.PutUint16(h, 1000+uint16(d.port))
	binary.BigEndian.PutUint16(h[2:], 443)
	if !d.tcp {
		return h
	}
	binary.BigEndian.PutUint32(h[4:], d.seq)
	binary.BigEndian.PutUint32(h[8:], d.ack)
	h[12], h[13], h[14] = byte(len(h)/4)<<4|d.reserved, d.flags, 1
	for i := range d.options {
		h[20+i] = 1 // no operation
	}
	if d.options > 0 {
		h[len(h)-1] = d.stamp
	}
	return h
}

// spoil damages a complete packet, or makes it one that nobody should join to
// others.
func (d *draft) spoil(p []byte, o encap.Offload) {
	h := p[o.ChecksumStart:]
	switch d.damage {
	case 1:
		last := &p[len(p)-1]
		*last ^= 0x40
		// What looks unfilled would be filled in.
		if binary.BigEndian.Uint16(h[o.ChecksumOffset:]) == plainPseudo(p, o) {
			*last ^= 0x60
		}
	case 2:
		if d.v6 {
			p[3]++ // flow label
		} else {
			p[11] ^= 1 // header checksum
		}
	case 3:
		if d.tcp {
			h[12] = 0x40 // a header of 16 bytes
		} else {
			h[5]-- // length
		}
		plainFill(p, o)
	case 4:
		h[o.ChecksumOffset], h[o.ChecksumOffset+1] = 0, 0 // which UDP may have
	}
}

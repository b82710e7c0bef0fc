package encap_test

import (
	"bytes"
	"encoding/binary"
	"slices"
	"testing"

	"uvxlan/encap"
)

const coalesceMTU = 1450

// sample describes a packet of TCP or UDP.
type sample struct {
	v6, udp      bool
	host, port   uint8 // of the sender
	tos, ttl     uint8
	label        uint8 // of the flow, IPv6
	id           uint16
	fragment     uint16 // the field of that name, with DF
	seq, ack     uint32
	flags        uint8
	reserved     uint8
	window       uint16
	urgent       uint16
	options      []byte // TCP
	ipOptions    []byte
	extensions   []byte // IPv6, a chain that ends in no next header; see build
	payload      int
	fill         byte
	size         int // of a UDP superpacket's datagrams
	limit        int // of the flow's packets, 0 for the MTU
	partial      bool
	bad, badIP   bool
	unsummed     bool
	shortUDP     bool // its length field is too small
	headerLength uint8
}

// build makes the packet as it arrives and complete.
func (s sample) build() (arrives, complete []byte) {
	p := s.ip()
	start := len(p)
	p = append(p, s.transport()...)
	for i := range s.payload {
		p = append(p, s.fill+byte(i)*31)
	}
	s.putLengths(p, start)
	field := start + 16
	if s.udp {
		field = start + 6
	}
	pseudo := slowPseudo(p, start)
	switch {
	case s.unsummed:
		complete = slices.Clone(p)
		return p, complete
	case s.partial:
		binary.BigEndian.PutUint16(p[field:], naiveFold(pseudo, 0))
	}
	complete = slices.Clone(p)
	slowFill(complete, start, field)
	if !s.partial {
		p = slices.Clone(complete)
	}
	if s.bad {
		p[len(p)-1] ^= 0x40
		complete = slices.Clone(p)
	}
	return p, complete
}

func (s sample) ip() []byte {
	proto := byte(6)
	if s.udp {
		proto = 17
	}
	if s.v6 {
		p := make([]byte, 40)
		p[0], p[1], p[3] = 0x60|s.tos>>4, s.tos<<4, s.label
		p[6], p[7] = proto, s.ttl
		p[8], p[23], p[24], p[39] = 0xfd, s.host, 0xfd, 200
		if s.extensions != nil {
			p = append(p, s.extensions...)
			p[6], p[40] = 60, proto
		}
		return p
	}
	p := make([]byte, 20)
	p[0] = 0x45 + byte(len(s.ipOptions)/4)
	p[1], p[8], p[9] = s.tos, s.ttl, proto
	binary.BigEndian.PutUint16(p[4:], s.id)
	binary.BigEndian.PutUint16(p[6:], s.fragment)
	copy(p[12:], []byte{10, 0, 0, s.host, 10, 0, 0, 200})
	return append(p, s.ipOptions...)
}

func (s sample) transport() []byte {
	h := make([]byte, 8)
	if !s.udp {
		h = append(make([]byte, 20), s.options...)
	}
	binary.BigEndian.PutUint16(h, 1000+uint16(s.port))
	binary.BigEndian.PutUint16(h[2:], 443)
	if s.udp {
		return h
	}
	binary.BigEndian.PutUint32(h[4:], s.seq)
	binary.BigEndian.PutUint32(h[8:], s.ack)
	h[12], h[13] = byte(len(h)/4)<<4|s.reserved, s.flags
	if s.headerLength != 0 {
		h[12] = s.headerLength << 4
	}
	binary.BigEndian.PutUint16(h[14:], s.window)
	binary.BigEndian.PutUint16(h[18:], s.urgent)
	return h
}

func (s sample) putLengths(p []byte, start int) {
	if s.udp {
		length := len(p) - start
		if s.shortUDP {
			length--
		}
		binary.BigEndian.PutUint16(p[start+4:], uint16(length))
	}
	if s.v6 {
		binary.BigEndian.PutUint16(p[4:], uint16(len(p)-40))
		return
	}
	binary.BigEndian.PutUint16(p[2:], uint16(len(p)))
	slowIPSum(p)
	if s.badIP {
		p[11] ^= 1
	}
}

func slowIPSum(p []byte) {
	p[10], p[11] = 0, 0
	binary.BigEndian.PutUint16(p[10:], ^naiveFold(p[:int(p[0]&15)*4], 0))
}

// slowPseudo is the pseudo-header, in bytes.
func slowPseudo(p []byte, start int) []byte {
	length := len(p) - start
	if p[0]>>4 == 4 {
		return append(slices.Clone(p[12:20]), 0, p[9], byte(length>>8), byte(length))
	}
	proto := p[6]
	if start > 40 {
		proto = p[40]
	}
	return append(slices.Clone(p[8:40]), 0, 0, byte(length>>8), byte(length), 0, 0, 0, proto)
}

func slowFill(p []byte, start, field int) {
	p[field], p[field+1] = 0, 0
	sum := ^naiveFold(p[start:], naiveFold(slowPseudo(p, start), 0))
	if sum == 0 && field == start+6 {
		sum = 0xffff
	}
	binary.BigEndian.PutUint16(p[field:], sum)
}

// slowSegments does to a packet what a kernel would, byte by byte.
func slowSegments(p []byte, o encap.Offload) [][]byte {
	start := int(o.ChecksumStart)
	field := start + int(o.ChecksumOffset)
	if !o.NeedsChecksum {
		return [][]byte{p}
	}
	if o.GSO == encap.GSONone {
		p = slices.Clone(p)
		slowFill(p, start, field)
		return [][]byte{p}
	}
	var all [][]byte
	header := p[:o.HeaderLen]
	for rest, at := p[o.HeaderLen:], 0; len(rest) > 0; {
		n := min(len(rest), int(o.SegmentSize))
		segment := append(slices.Clone(header), rest[:n]...)
		rest = rest[n:]
		slowHeaders(segment, o, len(all), at, len(rest) == 0)
		slowFill(segment, start, field)
		all = append(all, segment)
		at += n
	}
	return all
}

func slowHeaders(p []byte, o encap.Offload, number, at int, last bool) {
	h := p[o.ChecksumStart:]
	if p[0]>>4 == 4 {
		binary.BigEndian.PutUint16(p[2:], uint16(len(p)))
		binary.BigEndian.PutUint16(p[4:], binary.BigEndian.Uint16(p[4:])+uint16(number))
		slowIPSum(p)
	} else {
		binary.BigEndian.PutUint16(p[4:], uint16(len(p)-40))
	}
	if o.GSO == encap.GSOUDP {
		binary.BigEndian.PutUint16(h[4:], uint16(len(h)))
		return
	}
	binary.BigEndian.PutUint32(h[4:], binary.BigEndian.Uint32(h[4:])+uint32(at))
	if !last {
		h[13] &^= 0x09
	}
	if number > 0 {
		h[13] &^= 0x80
	}
}

// cut is what an unsplit superpacket asks for, zero if s is none.
func (s sample) cut() (o encap.Offload) {
	start := 20 + len(s.ipOptions)
	if s.v6 {
		start = 40 + len(s.extensions)
	}
	switch {
	case s.bad, s.shortUDP, s.fragment&0x3fff != 0, s.headerLength != 0:
		return o
	case s.udp:
		if s.size > 0 && s.payload > s.size && !s.unsummed {
			o = encap.Offload{GSO: encap.GSOUDP, ChecksumOffset: 6, SegmentSize: uint16(s.size), HeaderLen: uint16(start + 8)}
		}
	default:
		headers, limit := start+20+len(s.options), coalesceMTU
		if s.limit > 0 {
			limit = min(limit, s.limit)
		}
		length := headers + s.payload
		if length > limit && headers < limit && s.payload > 0 && (length > coalesceMTU || s.unfilled()) {
			o = encap.Offload{GSO: encap.GSOTCPv4, ChecksumOffset: 16, SegmentSize: uint16(limit - headers), HeaderLen: uint16(headers)}
		}
		if s.v6 && o.GSO != encap.GSONone {
			o.GSO = encap.GSOTCPv6
		}
	}
	o.NeedsChecksum, o.ChecksumStart = o.GSO != encap.GSONone, uint16(start)
	return o
}

// unfilled tells whether the checksum is seen to be unfilled: it may be right by
// chance.
func (s sample) unfilled() bool {
	arrives, complete := s.build()
	return s.partial && !bytes.Equal(arrives, complete)
}

// expected are the packets that a receiver without any offload would see.
func (s sample) expected(complete []byte) [][]byte { return slowSegments(complete, s.cut()) }

// add adds p, which was made of s, and checks how many packets it is said to be.
func (s sample) add(t testing.TB, c *encap.Coalescer, p, complete []byte) {
	t.Helper()
	c.SetLimit(func([]byte) int { return s.limit })
	if got, want := c.AddSuperpacket(p, s.size), len(s.expected(complete)); got != want {
		t.Fatalf("a packet of %d bytes stands for %d, want %d", len(p), got, want)
	}
}

// flowQueue holds what a receiver has yet to see of a flow.
type flowQueue [][]byte

// judge checks all that c holds against what each flow expects and returns the
// number of packets to write.
func judge(t *testing.T, c *encap.Coalescer, flows []flowQueue) {
	t.Helper()
	for i := range c.Len() {
		p := c.Packet(i)
		whole := bytes.Join(p.Parts, nil)
		checkCoalesced(t, p, whole)
		headID := binary.BigEndian.Uint16(whole[4:])
		segments := slowSegments(whole, p.Offload)
		checkSegmenter(t, whole, p.Offload, segments)
		if p.Segments() != len(segments) {
			t.Fatalf("%d segments, but says %d", len(segments), p.Segments())
		}
		for _, segment := range segments {
			if !take(flows, segment, headID) {
				t.Fatalf("packet %d (%+v) holds what no flow expects next:\n% x", i, p.Offload, segment[:min(80, len(segment))])
			}
		}
	}
}

func checkCoalesced(t *testing.T, p encap.Coalesced, whole []byte) {
	t.Helper()
	o := p.Offload
	if len(whole) != p.Len || len(p.Parts) != p.Packets || p.Packets < 1 {
		t.Fatalf("%d bytes, %d parts, but says %d of %d packets", len(whole), len(p.Parts), p.Len, p.Packets)
	}
	if p.Packets > 128 || p.Len > 65535 {
		t.Fatalf("superpacket of %d packets, %d bytes", p.Packets, p.Len)
	}
	if p.Packets > 1 && o.GSO == encap.GSONone {
		t.Fatalf("%d packets in one that is no superpacket", p.Packets)
	}
	if o.GSO == encap.GSONone {
		return
	}
	if int(o.HeaderLen)+int(o.SegmentSize) > coalesceMTU || len(p.Parts[0]) <= int(o.HeaderLen) {
		t.Fatalf("segments too long or headers in parts: %+v", o)
	}
	pseudo := naiveFold(slowPseudo(whole, int(o.ChecksumStart)), 0)
	if got := binary.BigEndian.Uint16(whole[o.ChecksumStart+o.ChecksumOffset:]); got != pseudo {
		t.Fatalf("field %04x, pseudo-header %04x", got, pseudo)
	}
	if whole[0]>>4 == 4 && p.Packets > 1 && !encap.IPv4(whole).HeaderChecksumOK() {
		t.Fatal("IPv4 checksum")
	}
}

// checkSegmenter compares Segmenter with the slow way.
func checkSegmenter(t *testing.T, whole []byte, o encap.Offload, want [][]byte) {
	t.Helper()
	if o.GSO == encap.GSONone {
		return
	}
	var s encap.Segmenter
	if err := s.Start(whole, o); err != nil {
		t.Fatalf("%v: % x", err, whole[:o.HeaderLen])
	}
	header := make([]byte, encap.MaxHeaderLen)
	for i := range want {
		n, payload := s.Next(header)
		if got := slices.Concat(header[:n], payload); !bytes.Equal(got, want[i]) {
			t.Fatalf("segment %d differs", i)
		}
	}
	if n, _ := s.Next(header); n != 0 {
		t.Fatal("more segments than expected")
	}
}

// take removes p from the front of the flow that expects it.
func take(flows []flowQueue, p []byte, headID uint16) bool {
	for i, q := range flows {
		if len(q) > 0 && (bytes.Equal(q[0], p) || equalButID(q[0], p, headID)) {
			flows[i] = q[1:]
			return true
		}
	}
	return false
}

// equalButID forgives an ID that means nothing, DF being set, and was the same
// all over the superpacket.
func equalButID(want, got []byte, headID uint16) bool {
	if len(want) != len(got) || want[0] != 0x45 || want[6]&0x40 == 0 ||
		binary.BigEndian.Uint16(want[4:]) != headID {
		return false
	}
	got = slices.Clone(got)
	copy(got[4:], want[4:6])
	slowIPSum(got)
	return bytes.Equal(want, got)
}

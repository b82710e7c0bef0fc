package encap

import "encoding/binary"

const (
	tcpFIN = 0x01
	tcpPSH = 0x08
	tcpCWR = 0x80
	// tcpSeqOffset and tcpFlagsOffset are the sequence number's and the flag
	// byte's places in the TCP header (RFC 9293 section 3.1).
	tcpSeqOffset   = 4
	tcpFlagsOffset = 13
)

// MaxHeaderLen is the length in bytes of the longest headers that a [Segmenter]
// writes; superpackets with longer ones are refused.
const MaxHeaderLen = 192

// Segmenter cuts a superpacket into the packets it stands for, as a NIC would:
// sequence numbers and IPv4 IDs count up, FIN and PSH stay with the last
// segment and CWR with the first, and all checksums are filled in. Payload is
// never copied. The zero value is ready for Start.
type Segmenter struct {
	rest     []byte // payload that is left
	header   []byte // of the superpacket
	size     int    // payload bytes a segment
	l4       int    // offset of the transport header
	v4, tcp  bool
	first    bool
	flags    uint8
	id       uint16
	seq      uint32
	ipSum    uint64 // IPv4 header without length, ID and checksum
	constSum uint64 // pseudo-header without length, transport header without what changes
}

// Start takes a superpacket: a whole IP packet and what its sender left undone,
// of which only the kind and the segment size are believed. The packet is
// borrowed and not changed. ErrHeader or another parse error means that it
// can't be segmented.
func (s *Segmenter) Start(packet []byte, o Offload) error {
	*s = Segmenter{size: int(o.SegmentSize), first: true, tcp: o.GSO != GSOUDP}
	if err := s.parse(packet); err != nil {
		return err
	}
	l4Header := s.header[s.l4:]
	if s.tcp {
		s.flags = l4Header[tcpFlagsOffset]
		s.seq = binary.BigEndian.Uint32(l4Header[tcpSeqOffset:])
	}
	s.sumConstants(packet)
	return nil
}

// parse finds the headers' ends.
func (s *Segmenter) parse(packet []byte) error {
	proto, err := s.parseIP(packet)
	if err != nil {
		return err
	}
	l4Len := udpHeaderLen
	if s.tcp {
		if proto != ProtoTCP || len(packet) < s.l4+tcpHeaderLen {
			return ErrHeader
		}
		l4Len = int(packet[s.l4+12]>>4) * 4
	}
	end := s.l4 + l4Len
	switch {
	case !s.tcp && proto != ProtoUDP, s.tcp && l4Len < tcpHeaderLen, end > MaxHeaderLen, s.size == 0:
		return ErrHeader
	case len(packet) <= end:
		return ErrShort
	}
	s.header, s.rest = packet[:end:end], packet[end:]
	return nil
}

func (s *Segmenter) parseIP(packet []byte) (proto uint8, err error) {
	if len(packet) > 0 && packet[0]>>4 == 6 {
		p, err := ParseIPv6(packet)
		if err != nil {
			return 0, err
		}
		proto, offset, fragment, ok := p.Transport()
		if !ok || fragment {
			return 0, ErrHeader
		}
		s.l4 = offset
		return proto, nil
	}
	p, err := ParseIPv4(packet)
	if err != nil {
		return 0, err
	}
	if p.IsFragment() {
		return 0, ErrHeader
	}
	s.v4, s.l4, s.id = true, p.HeaderLen(), p.ID()
	return p.Protocol(), nil
}

// sumConstants sums once what is the same in every segment. Folded, so that
// the changing fields can be added without a carry.
func (s *Segmenter) sumConstants(packet []byte) {
	h := s.header
	l4 := h[s.l4:]
	if s.v4 {
		s.ipSum = uint64(Fold(AddSums(Sum(h[:2], 0), Sum(h[6:10], Sum(h[12:s.l4], 0)))))
	}
	if !s.tcp {
		s.constSum = uint64(Fold(AddSums(s.pseudo(packet, ProtoUDP), Sum(l4[:4], 0))))
		return
	}
	fixed := Sum(l4[:tcpSeqOffset], Sum(l4[8:12], Sum(l4[14:16], Sum(l4[18:], 0))))
	fixed = AddSums(fixed, uint64(l4[12])<<8)
	s.constSum = uint64(Fold(AddSums(s.pseudo(packet, ProtoTCP), fixed)))
}

func (s *Segmenter) pseudo(packet []byte, proto uint8) uint64 {
	if s.v4 {
		return IPv4(packet).PseudoHeaderSum(proto, 0)
	}
	return IPv6(packet).PseudoHeaderSum(proto, 0)
}

// Next writes the next segment's headers to the front of dst, which must hold
// MaxHeaderLen bytes, and returns their length and the payload that follows
// them, a part of the superpacket. After the last segment it returns 0.
func (s *Segmenter) Next(dst []byte) (headerLen int, payload []byte) {
	if len(s.rest) == 0 {
		return 0, nil
	}
	n := min(s.size, len(s.rest))
	payload, s.rest = s.rest[:n:n], s.rest[n:]
	h := dst[:copy(dst, s.header)]
	s.putIP(h, n)
	if s.tcp {
		s.putTCP(h[s.l4:], payload)
	} else {
		s.putUDP(h[s.l4:], payload)
	}
	s.first = false
	return len(h), payload
}

func (s *Segmenter) putIP(h []byte, payload int) {
	if !s.v4 {
		binary.BigEndian.PutUint16(h[4:], uint16(len(h)-IPv6HeaderLen+payload))
		return
	}
	total := uint16(len(h) + payload)
	binary.BigEndian.PutUint16(h[2:], total)
	binary.BigEndian.PutUint16(h[4:], s.id)
	binary.BigEndian.PutUint16(h[10:], ^Fold(s.ipSum+uint64(total)+uint64(s.id)))
	s.id++
}

func (s *Segmenter) putTCP(h, payload []byte) {
	flags := s.flags
	if len(s.rest) > 0 {
		flags &^= tcpFIN | tcpPSH
	}
	if !s.first {
		flags &^= tcpCWR
	}
	h[tcpFlagsOffset] = flags
	binary.BigEndian.PutUint32(h[tcpSeqOffset:], s.seq)
	sum := s.constSum + uint64(s.seq) + uint64(flags) + uint64(len(h)+len(payload))
	binary.BigEndian.PutUint16(h[tcpChecksumOffset:], Checksum(payload, sum))
	s.seq += uint32(len(payload))
}

func (s *Segmenter) putUDP(h, payload []byte) {
	length := uint16(len(h) + len(payload))
	binary.BigEndian.PutUint16(h[4:], length)
	// The length counts twice: in the pseudo-header and in the header.
	sum := Checksum(payload, s.constSum+2*uint64(length))
	if sum == 0 {
		sum = 0xffff // RFC 768
	}
	binary.BigEndian.PutUint16(h[udpChecksumOffset:], sum)
}

// FillChecksum finishes the checksum of a packet that is no superpacket, in
// place. It reports false, having done nothing, when o points outside of it.
func FillChecksum(packet []byte, o Offload) bool {
	start, field := int(o.ChecksumStart), int(o.ChecksumStart)+int(o.ChecksumOffset)
	if field+2 > len(packet) || start > field {
		return false
	}
	sum := Checksum(packet[start:], 0)
	if sum == 0 && o.ChecksumOffset == udpChecksumOffset {
		sum = 0xffff // RFC 768
	}
	binary.BigEndian.PutUint16(packet[field:], sum)
	return true
}

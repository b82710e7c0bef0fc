package encap

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"testing"
)

// superpacket is an IP packet of TCP or UDP whose checksum field holds the
// pseudo-header's sum, as a kernel hands it over.
func superpacket(v6, tcp bool, options, payload int) []byte {
	ip, l4, proto := IPv4HeaderLen, udpHeaderLen, ProtoUDP
	if v6 {
		ip = IPv6HeaderLen
	}
	if tcp {
		l4, proto = tcpHeaderLen+options, ProtoTCP
	}
	p := make([]byte, ip+l4+payload)
	for i := range payload {
		p[ip+l4+i] = byte(i*7 + i>>8)
	}
	h := p[ip:]
	binary.BigEndian.PutUint16(h, 40000)
	binary.BigEndian.PutUint16(h[2:], 5001)
	var pseudo uint64
	if v6 {
		src, dst := netip.MustParseAddr("fd00::15"), netip.MustParseAddr("fd00::16")
		putIPv6(p, src, dst, uint8(proto), 64).SetPayloadLen(l4 + payload)
		pseudo = IPv6(p).PseudoHeaderSum(uint8(proto), l4+payload)
	} else {
		v4 := IPv4(p)
		p[0], p[1], p[6], p[8], p[9] = 0x45, 2, 0x40, 64, uint8(proto)
		copy(p[12:], []byte{172, 7, 21, 2, 172, 7, 22, 2})
		v4.SetTotalLen(len(p))
		v4.SetID(0xfffe)
		v4.UpdateChecksum()
		pseudo = v4.PseudoHeaderSum(uint8(proto), l4+payload)
	}
	field := udpChecksumOffset
	if tcp {
		field = tcpChecksumOffset
		binary.BigEndian.PutUint32(h[4:], 0xffffff00) // wraps on the way
		binary.BigEndian.PutUint32(h[8:], 0x12345678)
		h[12], h[13] = byte(l4/4)<<4, 0x10|tcpCWR|tcpPSH|tcpFIN
		h[14], h[15] = 0x01, 0xf5
		for i := range options {
			h[tcpHeaderLen+i] = 1 // NOP
		}
	} else {
		binary.BigEndian.PutUint16(h[4:], uint16(l4+payload))
	}
	binary.BigEndian.PutUint16(h[field:], Fold(pseudo))
	return p
}

func TestSegmenter(t *testing.T) {
	for _, c := range []struct {
		name             string
		v6, tcp          bool
		options, payload int
		size             int
	}{
		{"IPv4 TCP", false, true, 12, 60000, 1398},
		{"IPv4 TCP without options", false, true, 0, 3000, 1000},
		{"IPv4 TCP with all options", false, true, 40, 4001, 1370},
		{"IPv6 TCP", true, true, 12, 50000, 1378},
		{"IPv4 UDP", false, false, 0, 5000, 1200},
		{"IPv6 UDP", true, false, 0, 5001, 1201},
		{"one segment", false, true, 12, 10, 1398},
	} {
		t.Run(c.name, func(t *testing.T) {
			packet := superpacket(c.v6, c.tcp, c.options, c.payload)
			before := bytes.Clone(packet)
			o := Offload{GSO: GSOUDP, SegmentSize: uint16(c.size)}
			if c.tcp {
				o.GSO = GSOTCPv4 | GSOECN
			}
			checkSegments(t, packet, o)
			if !bytes.Equal(packet, before) {
				t.Error("the superpacket was changed")
			}
		})
	}
}

// checkSegments cuts a superpacket and judges each segment by itself.
func checkSegments(t *testing.T, packet []byte, o Offload) {
	t.Helper()
	var s Segmenter
	if err := s.Start(packet, o); err != nil {
		t.Fatal(err)
	}
	var payload []byte
	header := packet[:len(packet)-len(s.rest)]
	total := len(s.rest)
	dst := make([]byte, MaxHeaderLen)
	for i := 0; ; i++ {
		n, part := s.Next(dst)
		if n == 0 {
			break
		}
		segment := append(bytes.Clone(dst[:n]), part...)
		payload = append(payload, part...)
		if state, _, _ := TransportChecksum(segment); state != ChecksumGood {
			t.Fatalf("segment %d: its checksum is %s", i, state)
		}
		if want := min(int(o.SegmentSize), total-i*int(o.SegmentSize)); len(part) != want {
			t.Fatalf("segment %d has %d bytes, want %d", i, len(part), want)
		}
		checkHeader(t, i, len(payload) == total, header, segment, int(o.SegmentSize))
	}
	if !bytes.Equal(payload, packet[len(header):]) {
		t.Error("the payloads together are not the superpacket's")
	}
}

func checkHeader(t *testing.T, i int, last bool, header, segment []byte, size int) {
	t.Helper()
	l4 := IPv6HeaderLen
	if segment[0]>>4 == 4 {
		p, err := ParseIPv4(segment)
		if err != nil || len(p) != len(segment) || !p.HeaderChecksumOK() {
			t.Fatalf("segment %d: IPv4 header % x: %v", i, segment[:20], err)
		}
		if want := IPv4(header).ID() + uint16(i); p.ID() != want {
			t.Errorf("segment %d has ID %d, want %d", i, p.ID(), want)
		}
		l4 = p.HeaderLen()
	} else if p, err := ParseIPv6(segment); err != nil || len(p) != len(segment) {
		t.Fatalf("segment %d: IPv6 header % x: %v", i, segment[:40], err)
	}
	if len(header)-l4 == udpHeaderLen {
		return
	}
	h, all := segment[l4:], header[l4:]
	if got, want := binary.BigEndian.Uint32(h[4:]), binary.BigEndian.Uint32(all[4:])+uint32(i*size); got != want {
		t.Errorf("segment %d has sequence number %d, want %d", i, got, want)
	}
	want := all[13]
	if i > 0 {
		want &^= tcpCWR
	}
	if !last {
		want &^= tcpFIN | tcpPSH
	}
	if h[13] != want || !bytes.Equal(h[20:len(all)], all[20:]) || !bytes.Equal(h[8:13], all[8:13]) || !bytes.Equal(h[14:16], all[14:16]) {
		t.Errorf("segment %d: TCP header % x", i, h[:len(all)])
	}
}

func TestSegmenterRefuses(t *testing.T) {
	tcp, udp := superpacket(false, true, 0, 100), superpacket(false, false, 0, 100)
	fragment := bytes.Clone(tcp)
	fragment[7] = 1
	short := bytes.Clone(tcp)
	short[32] = 0x40
	for name, c := range map[string]struct {
		packet []byte
		o      Offload
	}{
		"no segment size":   {tcp, Offload{GSO: GSOTCPv4}},
		"UDP as TCP":        {udp, Offload{GSO: GSOTCPv4, SegmentSize: 10}},
		"TCP as UDP":        {tcp, Offload{GSO: GSOUDP, SegmentSize: 10}},
		"fragment":          {fragment, Offload{GSO: GSOTCPv4, SegmentSize: 10}},
		"short TCP header":  {short, Offload{GSO: GSOTCPv4, SegmentSize: 10}},
		"no payload":        {superpacket(false, true, 0, 0), Offload{GSO: GSOTCPv4, SegmentSize: 10}},
		"empty":             {nil, Offload{GSO: GSOTCPv4, SegmentSize: 10}},
		"truncated":         {tcp[:50], Offload{GSO: GSOTCPv4, SegmentSize: 10}},
		"IPv6 header alone": {superpacket(true, true, 0, 10)[:40], Offload{GSO: GSOTCPv6, SegmentSize: 10}},
	} {
		var s Segmenter
		if err := s.Start(c.packet, c.o); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func TestFillChecksum(t *testing.T) {
	for _, v6 := range []bool{false, true} {
		for _, tcp := range []bool{false, true} {
			p := superpacket(v6, tcp, 0, 99)
			_, start, field := TransportChecksum(p)
			if !FillChecksum(p, Offload{NeedsChecksum: true, ChecksumStart: uint16(start), ChecksumOffset: uint16(field)}) {
				t.Fatal("refused")
			}
			if state, _, _ := TransportChecksum(p); state != ChecksumGood {
				t.Errorf("v6 %t, TCP %t: the checksum is %s", v6, tcp, state)
			}
		}
	}
	if FillChecksum(make([]byte, 20), Offload{ChecksumStart: 20, ChecksumOffset: 6}) {
		t.Error("a field outside of the packet was accepted")
	}
}

func TestSegmenterDoesNotAllocate(t *testing.T) {
	packet, dst := superpacket(false, true, 12, 60000), make([]byte, MaxHeaderLen)
	var s Segmenter
	if n := testing.AllocsPerRun(100, func() {
		if s.Start(packet, Offload{GSO: GSOTCPv4, SegmentSize: 1398}) != nil {
			t.Fatal("refused")
		}
		for n := 1; n > 0; n, _ = s.Next(dst) {
		}
	}); n != 0 {
		t.Errorf("%v allocations a superpacket", n)
	}
}

func FuzzSegmenter(f *testing.F) {
	f.Add(superpacket(false, true, 12, 3000), uint8(1), uint16(1398))
	f.Add(superpacket(true, true, 0, 3000), uint8(4), uint16(999))
	f.Add(superpacket(false, false, 0, 300), uint8(5), uint16(64))
	f.Fuzz(func(t *testing.T, packet []byte, kind uint8, size uint16) {
		var s Segmenter
		if s.Start(packet, Offload{GSO: GSOType(kind), SegmentSize: size}) != nil {
			return
		}
		left, dst := len(s.rest), make([]byte, MaxHeaderLen)
		for {
			n, payload := s.Next(dst)
			if n == 0 {
				break
			}
			left -= len(payload)
			segment := append(bytes.Clone(dst[:n]), payload...)
			if state, _, _ := TransportChecksum(segment); state == ChecksumBad || state == ChecksumPartial {
				t.Fatalf("a segment's checksum is %s: % x", state, dst[:n])
			}
		}
		if left != 0 {
			t.Fatalf("%d bytes of payload were not sent", left)
		}
	})
}

func BenchmarkSegmenter(b *testing.B) {
	packet, dst := superpacket(false, true, 12, 64000), make([]byte, MaxHeaderLen)
	var s Segmenter
	b.SetBytes(int64(len(packet)))
	b.ReportAllocs()
	for b.Loop() {
		if s.Start(packet, Offload{GSO: GSOTCPv4, SegmentSize: 1398}) != nil {
			b.Fatal("refused")
		}
		for n := 1; n > 0; n, _ = s.Next(dst) {
		}
	}
}

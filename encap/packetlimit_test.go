package encap_test

import (
	"bytes"
	"encoding/binary"
	"slices"
	"testing"

	"uvxlan/encap"
)

// handshake is a SYN with the given TCP options from our end of s, so the other
// way than s.
func (s sample) handshake(flags byte, options ...byte) []byte {
	s.flags, s.options = flags, options
	p, _ := s.build()
	start := 20 + len(s.ipOptions)
	if s.v6 {
		start = 40 + len(s.extensions)
		swap(p[8:24], p[24:40])
	} else {
		swap(p[12:16], p[16:20])
		slowIPSum(p)
	}
	swap(p[start:start+2], p[start+2:start+4])
	slowFill(p, start, start+16)
	return p
}

func swap(a, b []byte) {
	for i := range a {
		a[i], b[i] = b[i], a[i]
	}
}

// tooLong is the answer of a router behind our end to a packet of s.
func (s sample) tooLong(mtu encap.InnerMTU) []byte {
	s.payload = 3000
	p, _ := s.build()
	b := make([]byte, encap.MaxICMPLen)
	if s.v6 {
		return b[:encap.ICMPv6PacketTooBig(b, p, from6, mtu)]
	}
	return b[:encap.ICMPFragmentationNeeded(b, p, from4, mtu)]
}

func mss(n uint16) []byte { return []byte{2, 4, byte(n >> 8), byte(n)} }

func TestReadPacketLimit(t *testing.T) {
	extension := []byte{0, 0, 1, 4, 0, 0, 0, 0}
	options4, options6 := tcp4, tcp6
	options4.ipOptions, options6.extensions = []byte{1, 1, 1, 0}, extension
	syn := tcp4.handshake(0x02, mss(1260)...)
	for _, tt := range []struct {
		name  string
		of    sample
		in    []byte
		want  int
		begin bool
	}{
		{"SYN", tcp4, syn, 1300, true},
		{"SYN-ACK", tcp4, tcp4.handshake(0x12, mss(1260)...), 1300, true},
		{"SYN, IPv6", tcp6, tcp6.handshake(0x02, mss(1240)...), 1300, true},
		{"SYN, ECN setup", tcp4, tcp4.handshake(0xc2, mss(1260)...), 1300, true},
		{"SYN, MSS among options", tcp4, tcp4.handshake(0x02, slices.Concat([]byte{1, 3, 3, 7, 4, 2}, mss(1260), []byte{1, 1})...), 1300, true},
		{"SYN without MSS", tcp4, tcp4.handshake(0x02), 576, true},
		{"SYN without MSS, IPv6", tcp6, tcp6.handshake(0x02), 1280, true},
		{"SYN, MSS behind the end", tcp4, tcp4.handshake(0x02, append([]byte{0, 0, 0, 0}, mss(1260)...)...), 576, true},
		{"SYN, no room for an option", tcp4, tcp4.handshake(0x02, 1, 1, 1, 2), 576, true},
		{"SYN, endless option", tcp4, tcp4.handshake(0x02, 8, 0, 0, 0), 576, true},
		{"SYN, option past the end", tcp4, tcp4.handshake(0x02, 8, 9, 0, 0), 576, true},
		{"SYN, no MSS to speak of", tcp4, tcp4.handshake(0x02, mss(1)...), 88, true},
		{"SYN, the greatest MSS", tcp4, tcp4.handshake(0x02, mss(65535)...), 65575, true},
		{"SYN, IPv4 options", tcp4, options4.handshake(0x02, mss(1260)...), 1300, true},
		{"SYN, extension header", tcp6, options6.handshake(0x02, mss(1240)...), 1300, true},
		{"SYN, header past the end", tcp4, edit(syn, map[int][]byte{32: {0xf0}}), 0, false},
		{"SYN, short header", tcp4, edit(syn, map[int][]byte{32: {0x40}}), 0, false},
		{"SYN, truncated", tcp4, syn[:43], 0, false},
		{"no SYN", tcp4, tcp4.handshake(0x10, mss(1260)...), 0, false},
		{"no SYN, IPv6", tcp6, tcp6.handshake(0x10, mss(1260)...), 0, false},
		{"no SYN, IPv4 options", tcp4, options4.handshake(0x10, mss(1260)...), 0, false},
		{"fragment", tcp4, edit(syn, map[int][]byte{6: {0, 1}}), 0, false},
		{"too long", tcp4, tcp4.tooLong(1300), 1300, false},
		{"too long, IPv4 options", tcp4, options4.tooLong(1300), 1300, false},
		{"too long, least", tcp4, tcp4.tooLong(100), 552, false},
		{"too long, MTU not told", tcp4, tcp4.tooLong(0), 0, false},
		{"too long, UDP", udp4, udp4.tooLong(1300), 0, false},
		{"too big", tcp6, tcp6.tooLong(1300), 1300, false},
		{"too big, extension header", tcp6, options6.tooLong(1300), 1300, false},
		{"too big, least", tcp6, tcp6.tooLong(100), 1280, false},
		{"too big, more than there is", tcp6, tcp6.tooLong(1 << 17), 0, false},
		{"too big, UDP", udp6, udp6.tooLong(1300), 0, false},
		{"other ICMP", tcp4, edit(tcp4.tooLong(1300), map[int][]byte{21: {1}}), 0, false},
		{"other ICMPv6", tcp6, edit(tcp6.tooLong(1300), map[int][]byte{40: {1}}), 0, false},
		{"quote of somebody else", tcp4, edit(tcp4.tooLong(1300), map[int][]byte{19: {99}}), 0, false},
		{"quote of somebody else, IPv6", tcp6, edit(tcp6.tooLong(1300), map[int][]byte{39: {99}}), 0, false},
		{"quote of a fragment", tcp4, edit(tcp4.tooLong(1300), map[int][]byte{34: {0x20}}), 0, false},
		{"quote of another version", tcp4, edit(tcp4.tooLong(1300), map[int][]byte{28: {0x65}}), 0, false},
		{"UDP", udp4, goldenUDP4, 0, false},
		{"nothing", tcp4, nil, 0, false},
		{"short", tcp4, syn[:21], 0, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			l, ok := encap.ReadPacketLimit(tt.in)
			if ok != (tt.want > 0) || l.Length != tt.want || l.Handshake != tt.begin {
				t.Fatalf("%+v, %v, want %d", l, ok, tt.want)
			}
			data := tt.of
			data.payload = 1000
			if p, _ := data.build(); ok && l.Flow != encap.FlowHash(p) {
				t.Errorf("flow %#x, want %#x", l.Flow, encap.FlowHash(p))
			}
		})
	}
}

// A quote may end with the ports (RFC 792).
func TestReadPacketLimitOfShortQuote(t *testing.T) {
	for n, want := range map[int]bool{20 + 8 + 20 + 8: true, 20 + 8 + 20 + 3: false} {
		p := tcp4.tooLong(1300)[:n]
		binary.BigEndian.PutUint16(p[2:], uint16(n))
		if _, ok := encap.ReadPacketLimit(p); ok != want {
			t.Errorf("%d bytes: %v", n, ok)
		}
	}
}

func FuzzReadPacketLimit(f *testing.F) {
	for _, s := range []sample{tcp4, tcp6} {
		f.Add(s.handshake(0x02, mss(1260)...))
		f.Add(s.handshake(0x12))
		f.Add(s.tooLong(1300))
	}
	seed(f, goldenTooLong, goldenTooBig)
	f.Fuzz(func(t *testing.T, b []byte) {
		before := slices.Clone(b)
		l, ok := encap.ReadPacketLimit(b)
		if !bytes.Equal(b, before) {
			t.Fatal("the packet was changed")
		}
		if !ok && l != (encap.PacketLimit{}) || ok && (l.Length < 88 || l.Length > 65535+60 || !l.Handshake && l.Length > 65535) {
			t.Fatalf("%+v, %v of % x", l, ok, b)
		}
	})
}

// What every outgoing packet is asked costs next to nothing.
func BenchmarkReadPacketLimit(b *testing.B) {
	for name, s := range map[string]sample{"TCP": tcp4, "TCP-v6": tcp6, "UDP": udp4} {
		p, _ := s.build()
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				if _, ok := encap.ReadPacketLimit(p); ok {
					b.Fatal("told something")
				}
			}
		})
	}
}

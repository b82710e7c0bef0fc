package encap_test

import (
	"bytes"
	"errors"
	"net/netip"
	"slices"
	"testing"

	"uvxlan/encap"
)

func TestParseIPv6(t *testing.T) {
	for _, tt := range []struct {
		name string
		in   []byte
		n    int
		err  error
	}{
		{"golden", goldenUDP6, 51, nil},
		{"padded", slices.Concat(goldenUDP6, make([]byte, 9)), 51, nil},
		{"no payload", edit(goldenUDP6[:40], map[int][]byte{4: {0, 0, 59}}), 40, nil},
		{"short", goldenUDP6[:39], 0, encap.ErrShort},
		{"truncated", goldenUDP6[:50], 0, encap.ErrShort},
		{"empty", nil, 0, encap.ErrShort},
		{"version", slices.Concat(goldenUDP4, goldenUDP4), 0, encap.ErrVersion},
		{"jumbogram", edit(goldenUDP6, map[int][]byte{4: {0, 0, 0}}), 0, encap.ErrHeader},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p, err := encap.ParseIPv6(tt.in)
			if !errors.Is(err, tt.err) || len(p) != tt.n || cap(p) != tt.n {
				t.Errorf("len %d, cap %d, error %v; want %d, %v", len(p), cap(p), err, tt.n, tt.err)
			}
		})
	}
}

func TestIPv6Fields(t *testing.T) {
	p := mustIPv6(t, goldenUDP6)
	for name, ok := range map[string]bool{
		"PayloadLen":   p.PayloadLen() == 11,
		"TrafficClass": p.TrafficClass() == 0xba,
		"ECN":          p.ECN() == encap.ECNECT0,
		"FlowLabel":    p.FlowLabel() == 0x12345,
		"HopLimit":     p.HopLimit() == 64,
		"NextHeader":   p.NextHeader() == encap.ProtoUDP,
		"Src":          p.Src() == netip.MustParseAddr("fd00:7:21::2"),
		"Dst":          p.Dst() == netip.MustParseAddr("fd00:7:22::3"),
		"Payload":      bytes.Equal(p.Payload(), goldenUDP6[40:]),
	} {
		if !ok {
			t.Errorf("%s is wrong in % x", name, p)
		}
	}
}

func TestIPv6Setters(t *testing.T) {
	p := mustIPv6(t, slices.Clone(goldenUDP6))
	p.SetPayloadLen(0xabcd)
	for _, ecn := range []uint8{encap.ECNCE, encap.ECNNotECT, encap.ECNECT1, 0xfc | encap.ECNECT0} {
		p.SetECN(ecn)
		if p.ECN() != ecn&3 || p.TrafficClass()>>2 != 0xba>>2 || p.FlowLabel() != 0x12345 || p[0]>>4 != 6 {
			t.Errorf("SetECN(%02b): % x", ecn, p[:4])
		}
	}
	if p.PayloadLen() != 0xabcd || !bytes.Equal(p[6:], goldenUDP6[6:]) {
		t.Errorf("SetPayloadLen: % x", p)
	}
}

// Extension headers of eight bytes with the next header's number to be filled.
func hopByHop(next byte) []byte { return []byte{next, 0, 1, 4, 0, 0, 0, 0} }
func routing(next, left byte) []byte {
	return []byte{next, 0, 4, left, 0, 0, 0, 0}
}
func fragment(next byte, offsetAndMore uint16) []byte {
	return []byte{next, 0, byte(offsetAndMore >> 8), byte(offsetAndMore), 0, 0, 0, 7}
}
func authentication(next byte) []byte { return append([]byte{next, 4}, make([]byte, 22)...) }

// extended puts extension headers between header and payload of goldenUDP6.
func extended(first byte, extensions ...[]byte) []byte {
	b := slices.Concat(goldenUDP6[:40], slices.Concat(extensions...), goldenUDP6[40:])
	b[5], b[6] = byte(len(b)-40), first
	return b
}

var transportTests = []struct {
	name     string
	in       []byte
	proto    uint8
	offset   int
	fragment bool
	ok       bool
	checksum encap.ChecksumState
}{
	{"none", goldenUDP6, 17, 40, false, true, encap.ChecksumGood},
	{"hop-by-hop", extended(0, hopByHop(17)), 17, 48, false, true, encap.ChecksumGood},
	{"destination options", extended(60, hopByHop(17)), 17, 48, false, true, encap.ChecksumGood},
	{"routing, arrived", extended(43, routing(17, 0)), 17, 48, false, true, encap.ChecksumGood},
	{"routing, under way", extended(43, routing(17, 1)), 17, 48, false, true, encap.ChecksumNone},
	{"authentication", extended(51, authentication(17)), 17, 64, false, true, encap.ChecksumGood},
	{"several", extended(0, hopByHop(43), routing(60, 0), hopByHop(17)), 17, 64, false, true, encap.ChecksumGood},
	{"atomic fragment", extended(44, fragment(17, 0)), 17, 48, false, true, encap.ChecksumGood},
	{"first fragment", extended(44, fragment(60, 1), hopByHop(17)), 17, 56, true, true, encap.ChecksumNone},
	{"later fragment", extended(44, fragment(60, 8), hopByHop(17)), 60, 48, true, true, encap.ChecksumNone},
	{"ESP", edit(goldenUDP6, map[int][]byte{6: {50}}), 50, 40, false, true, encap.ChecksumNone},
	{"no next header", edit(goldenUDP6, map[int][]byte{6: {59}}), 59, 40, false, true, encap.ChecksumNone},
	{"past the end", extended(0, []byte{17, 9, 0, 0, 0, 0, 0, 0}), 0, 0, false, false, encap.ChecksumNone},
	{"cut", edit(extended(0, []byte{0, 0, 0, 0})[:44], map[int][]byte{5: {4}}), 0, 0, false, false, encap.ChecksumNone},
	{"eight", extended(60, slices.Concat(slices.Repeat(hopByHop(60), 7), hopByHop(17))), 17, 104, false, true, encap.ChecksumGood},
	{"endless", extended(60, slices.Repeat(hopByHop(60), 20)), 0, 0, false, false, encap.ChecksumNone},
}

func TestIPv6Transport(t *testing.T) {
	for _, tt := range transportTests {
		t.Run(tt.name, func(t *testing.T) {
			proto, offset, fragment, ok := mustIPv6(t, tt.in).Transport()
			if proto != tt.proto || offset != tt.offset || fragment != tt.fragment || ok != tt.ok {
				t.Errorf("got %d, %d, %v, %v; want %d, %d, %v, %v",
					proto, offset, fragment, ok, tt.proto, tt.offset, tt.fragment, tt.ok)
			}
		})
	}
}

func mustIPv6(t testing.TB, b []byte) encap.IPv6 {
	t.Helper()
	p, err := encap.ParseIPv6(b)
	if err != nil {
		t.Fatalf("ParseIPv6: %v: % x", err, b)
	}
	return p
}

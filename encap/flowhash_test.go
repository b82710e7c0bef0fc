package encap_test

import (
	"math/bits"
	"slices"
	"testing"

	"uvxlan/encap"
)

func TestFlowHashStable(t *testing.T) {
	for _, tt := range []struct {
		name string
		in   []byte
		want uint32
	}{
		{"TCP4", goldenTCP4, 0xf1e8bdc7},
		{"UDP4", goldenUDP4, 0xf7712a63},
		{"UDP6", goldenUDP6, 0xe19a76f0},
		{"empty", nil, 0x9e3779b9},
	} {
		if got := encap.FlowHash(tt.in); got != tt.want {
			t.Errorf("%s: %#08x, want %#08x", tt.name, got, tt.want)
		}
	}
}

func TestFlowHashIgnores(t *testing.T) {
	for _, tt := range []struct {
		name string
		a, b []byte
	}{
		{"ID, TTL, TOS and payload", goldenUDP4, edit(goldenUDP4, map[int][]byte{1: {9}, 4: {9, 9}, 8: {9}, 28: {9}})},
		{"sequence", goldenTCP4, edit(goldenTCP4, map[int][]byte{24: {9, 9, 9, 9}})},
		{"IPv4 options", goldenTCP4, withIPOptions(goldenTCP4)},
		{"flow label and hop limit", goldenUDP6, edit(goldenUDP6, map[int][]byte{1: {0, 0, 0}, 7: {9}})},
		{"extension headers", goldenUDP6, extended(0, hopByHop(17))},
		{"what follows the ports", goldenUDP4, goldenUDP4[:24]},
		{
			"ports of a first fragment",
			edit(goldenUDP4, map[int][]byte{6: {0x20}}),
			edit(goldenUDP4, map[int][]byte{6: {0x00, 0x40}, 20: {9, 9, 9, 9}}),
		},
		{
			"kind of IPv6 fragment",
			extended(44, fragment(60, 1), hopByHop(17)),
			extended(44, fragment(60, 8), hopByHop(17)),
		},
	} {
		if a, b := encap.FlowHash(tt.a), encap.FlowHash(tt.b); a != b {
			t.Errorf("%s: %#08x and %#08x", tt.name, a, b)
		}
	}
}

func TestFlowHashTells(t *testing.T) {
	for _, tt := range []struct {
		name string
		a, b []byte
	}{
		{"source port", goldenUDP4, edit(goldenUDP4, map[int][]byte{20: {9}})},
		{"destination port", goldenUDP6, edit(goldenUDP6, map[int][]byte{43: {9}})},
		{"direction", goldenUDP4, edit(goldenUDP4, map[int][]byte{12: goldenUDP4[16:20], 16: goldenUDP4[12:16]})},
		{"protocol", goldenUDP4, edit(goldenUDP4, map[int][]byte{9: {6}})},
		{"IPv6 source", goldenUDP6, edit(goldenUDP6, map[int][]byte{23: {9}})},
		{"malformed", []byte{1, 2}, []byte{1, 3}},
	} {
		if a, b := encap.FlowHash(tt.a), encap.FlowHash(tt.b); a == b {
			t.Errorf("%s: both %#08x", tt.name, a)
		}
	}
}

// TestFlowHashAvalanche flips each input bit of many flows: every output bit
// should follow in about half of them.
func TestFlowHashAvalanche(t *testing.T) {
	const flows = 2000
	for _, tt := range []struct {
		name   string
		packet []byte
		from   int
		to     int
	}{
		{"IPv4", goldenTCP4, 12, 24},
		{"IPv6", goldenUDP6, 8, 44},
	} {
		p := slices.Clone(tt.packet)
		for bit := tt.from * 8; bit < tt.to*8; bit++ {
			var moved [32]int
			for flow := range flows {
				p[tt.to-4], p[tt.to-3] = byte(flow>>8), byte(flow)
				before := encap.FlowHash(p)
				p[bit/8] ^= 1 << (bit % 8)
				for diff := before ^ encap.FlowHash(p); diff != 0; diff &= diff - 1 {
					moved[bits.TrailingZeros32(diff)]++
				}
				p[bit/8] ^= 1 << (bit % 8)
			}
			for out, n := range moved {
				if n < flows*2/5 || n > flows*3/5 {
					t.Fatalf("%s: input bit %d moves output bit %d in %d of %d flows", tt.name, bit, out, n, flows)
				}
			}
		}
	}
}

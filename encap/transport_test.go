package encap_test

import (
	"encoding/binary"
	"slices"
	"testing"

	"uvxlan/encap"
)

func TestTransportChecksum(t *testing.T) {
	for _, tt := range []struct {
		name          string
		in            []byte
		state         encap.ChecksumState
		start, offset int
	}{
		{"UDP4", goldenUDP4, encap.ChecksumGood, 20, 6},
		{"UDP4 padded", slices.Concat(goldenUDP4, []byte{1, 2, 3}), encap.ChecksumGood, 20, 6},
		{"UDP6", goldenUDP6, encap.ChecksumGood, 40, 6},
		{"TCP4", goldenTCP4, encap.ChecksumGood, 20, 16},
		{"TCP4 with options", withIPOptions(goldenTCP4), encap.ChecksumGood, 28, 16},
		{"TCP4 partial", edit(goldenTCP4, map[int][]byte{36: {0x83, 0x33}}), encap.ChecksumPartial, 20, 16},
		{"UDP6 partial", edit(goldenUDP6, map[int][]byte{46: {0xfa, 0x73}}), encap.ChecksumPartial, 40, 6},
		{"good and equal to partial", goodAndPartial(), encap.ChecksumGood, 20, 16},
		{"TCP4 damaged", edit(goldenTCP4, map[int][]byte{44: {'?'}}), encap.ChecksumBad, 20, 16},
		{"UDP6 damaged", edit(goldenUDP6, map[int][]byte{50: {'?'}}), encap.ChecksumBad, 40, 6},
		{"TCP4 cut short", edit(goldenTCP4[:39], map[int][]byte{3: {39}}), encap.ChecksumBad, 20, 16},
		{"UDP4 cut short", edit(goldenUDP4[:27], map[int][]byte{3: {27}}), encap.ChecksumBad, 20, 6},
		{"UDP4 without", edit(goldenUDP4, map[int][]byte{26: {0, 0}}), encap.ChecksumNone, 0, 0},
		{"UDP6 without", edit(goldenUDP6, map[int][]byte{46: {0, 0}}), encap.ChecksumBad, 40, 6},
		{"UDP4 length too small", edit(goldenUDP4, map[int][]byte{25: {10}}), encap.ChecksumBad, 20, 6},
		{"UDP4 length too large", edit(goldenUDP4, map[int][]byte{25: {12}, 26: {0, 0}}), encap.ChecksumBad, 20, 6},
		{"fragment", edit(goldenUDP4, map[int][]byte{6: {0x20}}), encap.ChecksumNone, 0, 0},
		{"ICMP", goldenICMP, encap.ChecksumNone, 0, 0},
		{"ICMPv6", goldenNS, encap.ChecksumNone, 0, 0},
		{"truncated", goldenUDP4[:30], encap.ChecksumNone, 0, 0},
		{"empty", nil, encap.ChecksumNone, 0, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			state, start, offset := encap.TransportChecksum(tt.in)
			if state != tt.state || start != tt.start || offset != tt.offset {
				t.Errorf("%v, %d, %d; want %v, %d, %d", state, start, offset, tt.state, tt.start, tt.offset)
			}
		})
	}
}

func TestTransportChecksumExtensions(t *testing.T) {
	for _, tt := range transportTests {
		t.Run(tt.name, func(t *testing.T) {
			state, start, _ := encap.TransportChecksum(tt.in)
			if state != tt.checksum || state != encap.ChecksumNone && start != tt.offset {
				t.Errorf("%v at %d, want %v at %d", state, start, tt.checksum, tt.offset)
			}
		})
	}
}

func TestChecksumStateString(t *testing.T) {
	for state, want := range map[encap.ChecksumState]string{
		encap.ChecksumNone: "none", encap.ChecksumGood: "good",
		encap.ChecksumPartial: "partial", encap.ChecksumBad: "bad",
	} {
		if state.String() != want {
			t.Errorf("%d is %q, want %q", state, state, want)
		}
	}
}

// withIPOptions inserts eight bytes of no-operation options.
func withIPOptions(b []byte) []byte {
	b = slices.Insert(slices.Clone(b), 20, slices.Repeat([]byte{1}, 8)...)
	b[0], b[3] = 0x47, byte(len(b))
	encap.IPv4(b).UpdateChecksum()
	return b
}

// goodAndPartial chooses the payload of goldenTCP4 so that the right checksum
// is the pseudo-header's sum.
func goodAndPartial() []byte {
	b := edit(goldenTCP4, map[int][]byte{36: {0x83, 0x33}, 40: {0, 0}})
	missing := encap.Checksum(b[20:], encap.IPv4(b).PseudoHeaderSum(6, 25))
	binary.BigEndian.PutUint16(b[40:], missing)
	return b
}

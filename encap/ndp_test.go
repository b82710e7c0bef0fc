package encap_test

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"slices"
	"testing"

	"uvxlan/encap"
)

func TestNeighborAdvertisement(t *testing.T) {
	zero16 := make([]byte, 16)
	for _, tt := range []struct {
		name string
		in   []byte
		ours netip.Addr
		want []byte
	}{
		{"golden", goldenNS, ours6, goldenNA},
		{"zone", goldenNS, ours6.WithZone("flannel.1"), goldenNA},
		{"padded", slices.Concat(goldenNS, []byte{1, 2}), ours6, goldenNA},
		{"unicast", icmpv6(edit(goldenNS, map[int][]byte{24: goldenNS[48:64]})), ours6, goldenNA},
		{"no option", icmpv6(edit(goldenNS[:64], map[int][]byte{5: {24}})), ours6, goldenNA},
		{"probe", goldenProbe, ours6, goldenProbeNA},
		{"probe with source option", icmpv6(edit(goldenNS, map[int][]byte{8: zero16})), ours6, nil},
		{"probe not to the group", icmpv6(edit(goldenProbe, map[int][]byte{24: goldenNS[48:64]})), ours6, nil},
		{"for another", goldenNS, netip.MustParseAddr("fd00:7:22::2"), nil},
		{"from ourselves", icmpv6(edit(goldenNS, map[int][]byte{8: goldenNS[48:64]})), ours6, nil},
		{"from a group", icmpv6(edit(goldenNS, map[int][]byte{8: {0xff}})), ours6, nil},
		{"hop limit", edit(goldenNS, map[int][]byte{7: {254}}), ours6, nil},
		{"checksum", edit(goldenNS, map[int][]byte{43: {0xb1}}), ours6, nil},
		{"code", icmpv6(edit(goldenNS, map[int][]byte{41: {1}})), ours6, nil},
		{"advertisement", goldenNA, ours6, nil},
		{"empty option", icmpv6(edit(goldenNS, map[int][]byte{65: {0}})), ours6, nil},
		{"option past the end", icmpv6(edit(goldenNS, map[int][]byte{65: {2}})), ours6, nil},
		{"half an option", icmpv6(edit(goldenNS[:65], map[int][]byte{5: {25}})), ours6, nil},
		{"short", icmpv6(edit(goldenNS[:63], map[int][]byte{5: {23}})), ours6, nil},
		{"truncated", goldenNS[:71], ours6, nil},
		{"UDP", goldenUDP6, ours6, nil},
		{"we are IPv4", goldenNS, ours4, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dst := slices.Repeat([]byte{0xee}, 128)
			n := encap.NeighborAdvertisement(dst, tt.in, tt.ours, ourMAC)
			if !bytes.Equal(dst[:n], tt.want) {
				t.Errorf("advertisement\n% x, want\n% x", dst[:n], tt.want)
			}
		})
	}
	short := make([]byte, encap.NeighborAdvertisementLen-1)
	if n := encap.NeighborAdvertisement(short, goldenNS, ours6, ourMAC); n != 0 {
		t.Errorf("%d bytes in a short dst", n)
	}
}

// icmpv6 sets the checksum of a message right behind the fixed header.
func icmpv6(b []byte) []byte {
	b[42], b[43] = 0, 0
	sum := encap.IPv6(b).PseudoHeaderSum(encap.ProtoICMPv6, len(b)-40)
	binary.BigEndian.PutUint16(b[42:], encap.Checksum(b[40:], sum))
	return b
}

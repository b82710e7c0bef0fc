package encap_test

import (
	"bytes"
	"net/netip"
	"slices"
	"testing"

	"uvxlan/encap"
)

func TestARPReply(t *testing.T) {
	probe := edit(goldenARPRequest, map[int][]byte{14: {0, 0, 0, 0}})
	for _, tt := range []struct {
		name    string
		request []byte
		ours    netip.Addr
		want    []byte
	}{
		{"golden", goldenARPRequest, ours4, goldenARPReply},
		{"padded", slices.Concat(goldenARPRequest, make([]byte, 18)), ours4, goldenARPReply},
		{"probe", probe, ours4, edit(goldenARPReply, map[int][]byte{24: {0, 0, 0, 0}})},
		{"for another", goldenARPRequest, netip.MustParseAddr("172.7.22.2"), nil},
		{"announcement of our address", edit(goldenARPRequest, map[int][]byte{14: {172, 7, 22, 1}}), ours4, nil},
		{"reply", goldenARPReply, netip.MustParseAddr("172.7.21.2"), nil},
		{"group sender", edit(goldenARPRequest, map[int][]byte{8: {0xff}}), ours4, nil},
		{"other hardware", edit(goldenARPRequest, map[int][]byte{1: {6}}), ours4, nil},
		{"other protocol", edit(goldenARPRequest, map[int][]byte{2: {0x86, 0xdd}}), ours4, nil},
		{"other lengths", edit(goldenARPRequest, map[int][]byte{4: {8}}), ours4, nil},
		{"short", goldenARPRequest[:27], ours4, nil},
		{"we are IPv6", goldenARPRequest, ours6, nil},
		{"we are nobody", goldenARPRequest, netip.Addr{}, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var dst [64]byte
			n := encap.ARPReply(dst[:], tt.request, tt.ours, ourMAC)
			if !bytes.Equal(dst[:n], tt.want) {
				t.Errorf("reply\n% x, want\n% x", dst[:n], tt.want)
			}
		})
	}
}

func TestARPReplyInPlace(t *testing.T) {
	b := slices.Clone(goldenARPRequest)
	if n := encap.ARPReply(b, b, ours4, ourMAC); !bytes.Equal(b[:n], goldenARPReply) {
		t.Errorf("reply % x", b[:n])
	}
	if n := encap.ARPReply(make([]byte, encap.ARPLen-1), goldenARPRequest, ours4, ourMAC); n != 0 {
		t.Errorf("%d bytes in a short dst", n)
	}
}

func TestARPSender(t *testing.T) {
	for _, tt := range []struct {
		in   []byte
		want encap.MAC
	}{
		{goldenARPRequest, peerMAC},
		{goldenARPReply, encap.MAC{}},
		{goldenARPRequest[:27], encap.MAC{}},
	} {
		if got := encap.ARPSender(tt.in); got != tt.want {
			t.Errorf("sender %v, want %v", got, tt.want)
		}
	}
}

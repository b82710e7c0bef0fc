package encap_test

import (
	"bytes"
	"net/netip"
	"slices"
	"testing"

	"uvxlan/encap"
)

func TestICMPUnreachable(t *testing.T) {
	for _, tt := range []struct {
		name string
		orig []byte
		from netip.Addr
		want []byte
	}{
		{"golden", goldenUDP4, from4, goldenICMP},
		{"padded", slices.Concat(goldenUDP4, make([]byte, 15)), from4, goldenICMP},
		{"about an ICMP error", goldenICMP, from4, nil},
		{"about a long packet's ICMP error", goldenTooLong, from4, nil},
		{"about ICMP without type", edit(goldenUDP4[:20], map[int][]byte{3: {20}, 9: {1}}), from4, nil},
		{"later fragment", edit(goldenUDP4, map[int][]byte{6: {0, 1}}), from4, nil},
		{"from unspecified", edit(goldenUDP4, map[int][]byte{12: {0, 0, 0, 0}}), from4, nil},
		{"from loopback", edit(goldenUDP4, map[int][]byte{12: {127}}), from4, nil},
		{"from multicast", edit(goldenUDP4, map[int][]byte{12: {224}}), from4, nil},
		{"from broadcast", edit(goldenUDP4, map[int][]byte{12: {255, 255, 255, 255}}), from4, nil},
		{"from reserved", edit(goldenUDP4, map[int][]byte{12: {240}}), from4, nil},
		{"to multicast", edit(goldenUDP4, map[int][]byte{16: {239}}), from4, nil},
		{"to broadcast", edit(goldenUDP4, map[int][]byte{16: {255, 255, 255, 255}}), from4, nil},
		{"to loopback", edit(goldenUDP4, map[int][]byte{16: {127}}), from4, nil},
		{"truncated", goldenUDP4[:30], from4, nil},
		{"IPv6", goldenUDP6, from4, nil},
		{"we are IPv6", goldenUDP4, from6, nil},
		{"we are nobody", goldenUDP4, netip.Addr{}, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dst := slices.Repeat([]byte{0xee}, encap.MaxICMPLen)
			n := encap.ICMPUnreachable(dst, tt.orig, tt.from, encap.ICMPHostUnreachable)
			if !bytes.Equal(dst[:n], tt.want) {
				t.Errorf("answer\n% x, want\n% x", dst[:n], tt.want)
			}
			want := tt.want
			if want != nil {
				want = goldenTooLong
			}
			n = encap.ICMPFragmentationNeeded(dst, tt.orig, tt.from, 1350)
			if !bytes.Equal(dst[:n], want) {
				t.Errorf("answer to a long packet\n% x, want\n% x", dst[:n], want)
			}
		})
	}
}

func TestICMPv6Unreachable(t *testing.T) {
	multicast := []byte{0xff, 0x02}
	zero, loopback := make([]byte, 16), append(make([]byte, 15), 1)
	for _, tt := range []struct {
		name string
		orig []byte
		from netip.Addr
		want []byte
	}{
		{"golden", goldenUDP6, from6, goldenICMPv6},
		{"padded", slices.Concat(goldenUDP6, make([]byte, 9)), from6, goldenICMPv6},
		{"about an ICMPv6 error", goldenICMPv6, from6, nil},
		{"about a big packet's ICMPv6 error", goldenTooBig, from6, nil},
		{"about a redirect", edit(goldenNA, map[int][]byte{40: {137}}), from6, nil},
		{"about a hidden error", hiddenError(), from6, nil},
		{"about ICMPv6 without type", edit(goldenUDP6[:40], map[int][]byte{5: {0, 58}}), from6, nil},
		{"later fragment", extended(44, fragment(17, 8)), from6, nil},
		{"headers past the end", extended(0, []byte{17, 9, 0, 0, 0, 0, 0, 0}), from6, nil},
		{"from unspecified", edit(goldenUDP6, map[int][]byte{8: zero}), from6, nil},
		{"from loopback", edit(goldenUDP6, map[int][]byte{8: loopback}), from6, nil},
		{"from multicast", edit(goldenUDP6, map[int][]byte{8: multicast}), from6, nil},
		{"to multicast", edit(goldenUDP6, map[int][]byte{24: multicast}), from6, nil},
		{"to unspecified", edit(goldenUDP6, map[int][]byte{24: zero}), from6, nil},
		{"truncated", goldenUDP6[:50], from6, nil},
		{"IPv4", goldenUDP4, from6, nil},
		{"we are IPv4", goldenUDP6, from4, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dst := slices.Repeat([]byte{0xee}, encap.MaxICMPLen)
			n := encap.ICMPv6Unreachable(dst, tt.orig, tt.from, encap.ICMPv6AddressUnreachable)
			if !bytes.Equal(dst[:n], tt.want) {
				t.Errorf("answer\n% x, want\n% x", dst[:n], tt.want)
			}
			want := tt.want
			if want != nil {
				want = goldenTooBig
			}
			n = encap.ICMPv6PacketTooBig(dst, tt.orig, tt.from, 1350)
			if !bytes.Equal(dst[:n], want) {
				t.Errorf("answer to a big packet\n% x, want\n% x", dst[:n], want)
			}
		})
	}
}

func TestICMPAnswersQueriesAndFirstFragments(t *testing.T) {
	dst := make([]byte, encap.MaxICMPLen)
	for _, orig := range [][]byte{
		edit(goldenICMP, map[int][]byte{20: {8}}),
		edit(goldenUDP4, map[int][]byte{6: {0x20}}),
	} {
		if encap.ICMPUnreachable(dst, orig, from4, 1) == 0 {
			t.Errorf("no answer to % x", orig)
		}
	}
	for _, orig := range [][]byte{
		edit(goldenICMPv6, map[int][]byte{40: {128}}),
		extended(44, fragment(17, 1)),
	} {
		if encap.ICMPv6Unreachable(dst, orig, from6, 3) == 0 {
			t.Errorf("no answer to % x", orig)
		}
	}
}

func TestICMPQuoteIsBounded(t *testing.T) {
	for _, size := range []int{500, 548, 549, 1232, 1233, 65535} {
		v4 := make([]byte, size)
		copy(v4, goldenUDP4[:20])
		encap.IPv4(v4).SetTotalLen(size)
		checkICMP(t, v4, min(28+size, 576))

		v6 := make([]byte, size)
		copy(v6, goldenUDP6[:40])
		encap.IPv6(v6).SetPayloadLen(size - 40)
		checkICMP(t, v6, min(48+size, 1280))
	}
}

type icmpBuilder func(dst, orig []byte, from netip.Addr) int

// icmpBuilders are those of the family of orig.
func icmpBuilders(orig []byte) (all []icmpBuilder, from netip.Addr) {
	if orig[0]>>4 == 6 {
		return []icmpBuilder{
			func(dst, orig []byte, from netip.Addr) int { return encap.ICMPv6Unreachable(dst, orig, from, 0) },
			func(dst, orig []byte, from netip.Addr) int { return encap.ICMPv6PacketTooBig(dst, orig, from, 1350) },
		}, from6
	}
	return []icmpBuilder{
		func(dst, orig []byte, from netip.Addr) int { return encap.ICMPUnreachable(dst, orig, from, 0) },
		func(dst, orig []byte, from netip.Addr) int {
			return encap.ICMPFragmentationNeeded(dst, orig, from, 1350)
		},
	}, from4
}

// checkICMP expects an answer of n bytes to orig, and none in a shorter dst.
func checkICMP(t *testing.T, orig []byte, n int) {
	t.Helper()
	builders, from := icmpBuilders(orig)
	for _, answer := range builders {
		dst := make([]byte, encap.MaxICMPLen)
		if got := answer(dst, orig, from); got != n {
			t.Errorf("%d bytes, want %d", got, n)
		}
		verifyICMP(t, dst[:n], orig)
		if got := answer(dst[:n-1], orig, from); got != 0 {
			t.Errorf("%d bytes in a short dst", got)
		}
	}
}

// verifyICMP expects a well-formed ICMP packet that quotes orig.
func verifyICMP(t testing.TB, b, orig []byte) {
	t.Helper()
	var message []byte
	var sum uint64
	if b[0]>>4 == 4 {
		p := mustIPv4(t, b)
		message = p.Payload()
		if !p.HeaderChecksumOK() || p.Protocol() != encap.ProtoICMP {
			t.Errorf("header % x", p[:20])
		}
	} else {
		p := mustIPv6(t, b)
		message = p.Payload()
		sum = p.PseudoHeaderSum(encap.ProtoICMPv6, len(message))
	}
	if encap.Checksum(message, sum) != 0 {
		t.Error("checksum of the message doesn't verify")
	}
	if !bytes.HasPrefix(orig, message[8:]) {
		t.Error("quote isn't the front of the original")
	}
}

// hiddenError is an ICMPv6 error behind an extension header.
func hiddenError() []byte {
	b := extended(60, hopByHop(58))
	b[48] = 1
	return b
}

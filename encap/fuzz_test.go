package encap_test

import (
	"bytes"
	"net/netip"
	"slices"
	"testing"

	"uvxlan/encap"
)

func seed(f *testing.F, extra ...[]byte) {
	for _, b := range slices.Concat([][]byte{
		nil, goldenFrame, goldenUDP4, goldenTCP4, goldenUDP6, goldenARPRequest,
		goldenNS, goldenProbe, goldenICMP, goldenICMPv6,
	}, extra) {
		f.Add(b)
	}
}

func FuzzFrameDecode(f *testing.F) {
	seed(f)
	f.Fuzz(func(t *testing.T, b []byte) {
		frame := staleFrame()
		if err := frame.Decode(b); err != nil {
			if len(b) >= encap.FrameHeaderLen {
				t.Fatal(err)
			}
			return
		}
		if !frame.VNI.Valid() || len(frame.Payload) != len(b)-encap.FrameHeaderLen {
			t.Fatalf("%+v", frame)
		}
		h := encap.MakeFrameHeader(frame.VNI, frame.Dst, frame.Src, frame.EtherType)
		if !bytes.Equal(h[8:], b[8:encap.FrameHeaderLen]) || frame.HasVNI && !bytes.Equal(h[4:7], b[4:7]) {
			t.Fatalf("header\n% x from\n% x", h, b)
		}
	})
}

func FuzzParseIPv4(f *testing.F) {
	seed(f, withIPOptions(goldenTCP4))
	f.Fuzz(func(t *testing.T, b []byte) {
		p, err := encap.ParseIPv4(slices.Clone(b))
		if err != nil {
			return
		}
		if len(p) != p.TotalLen() || len(p.Payload()) != p.TotalLen()-p.HeaderLen() || p.FragmentOffset() > 65528 {
			t.Fatalf("lengths of % x", p)
		}
		ok := p.HeaderChecksumOK()
		if p.SetECN(p.ECN() + 1); p.HeaderChecksumOK() != ok {
			t.Fatalf("SetECN turned the checksum %v: % x", !ok, p)
		}
		if p.UpdateChecksum(); !p.HeaderChecksumOK() {
			t.Fatalf("updated checksum doesn't verify: % x", p)
		}
		if !p.Src().Is4() || !p.Dst().Is4() {
			t.Fatal("addresses")
		}
	})
}

func FuzzParseIPv6(f *testing.F) {
	for _, tt := range transportTests {
		f.Add(tt.in)
	}
	seed(f)
	f.Fuzz(func(t *testing.T, b []byte) {
		p, err := encap.ParseIPv6(b)
		if err != nil {
			return
		}
		if len(p) != 40+p.PayloadLen() || p.FlowLabel() >= 1<<20 || !p.Src().Is6() || !p.Dst().Is6() {
			t.Fatalf("fields of % x", p)
		}
		proto, offset, _, ok := p.Transport()
		if ok && (offset < 40 || offset > len(p)) || !ok && (offset != 0 || proto != 0) {
			t.Fatalf("transport %d at %d of %d, %v", proto, offset, len(p), ok)
		}
	})
}

func FuzzTransportChecksum(f *testing.F) {
	for _, tt := range transportTests {
		f.Add(tt.in)
	}
	seed(f, goodAndPartial(), withIPOptions(goldenTCP4))
	f.Fuzz(func(t *testing.T, b []byte) {
		state, start, offset := encap.TransportChecksum(b)
		switch state {
		case encap.ChecksumNone:
			if start != 0 || offset != 0 {
				t.Fatalf("%v at %d+%d", state, start, offset)
			}
		case encap.ChecksumGood, encap.ChecksumPartial:
			verifyFixed(t, slices.Clone(b), state, start, offset)
		default:
			if start < 20 || start > len(b) {
				t.Fatalf("%v at %d", state, start)
			}
		}
	})
}

// verifyFixed completes a partial checksum in place, as an offload would, and
// compares the result with the naive sum.
func verifyFixed(t *testing.T, b []byte, state encap.ChecksumState, start, offset int) {
	t.Helper()
	proto := uint8(encap.ProtoTCP)
	if offset == 6 {
		proto = encap.ProtoUDP
	}
	var segment []byte
	var pseudo uint64
	if b[0]>>4 == 4 {
		p := mustIPv4(t, b)
		segment = p[start:]
		pseudo = encap.PseudoHeaderSum(p.Src(), p.Dst(), proto, len(segment))
	} else {
		p := mustIPv6(t, b)
		segment = p[start:]
		pseudo = encap.PseudoHeaderSum(p.Src(), p.Dst(), proto, len(segment))
	}
	if state == encap.ChecksumPartial {
		check := ^naiveFold(segment, 0)
		segment[offset], segment[offset+1] = byte(check>>8), byte(check)
	}
	if got := naiveFold(segment, encap.Fold(pseudo)); got != 0xffff {
		t.Fatalf("%v, but the sum is %04x", state, got)
	}
}

func FuzzChecksum(f *testing.F) {
	f.Add([]byte(nil), uint64(0), uint16(0))
	f.Add([]byte{0xff}, uint64(1<<64-1), uint16(1))
	f.Add(slices.Repeat([]byte{0xff}, 129), uint64(0xffff), uint16(64))
	f.Add(goldenTCP4, uint64(0x8333), uint16(20))
	f.Fuzz(func(t *testing.T, b []byte, initial uint64, cut uint16) {
		start := naiveFold([]byte{
			byte(initial >> 56), byte(initial >> 48), byte(initial >> 40), byte(initial >> 32),
			byte(initial >> 24), byte(initial >> 16), byte(initial >> 8), byte(initial),
		}, 0)
		want := naiveFold(b, start)
		if got := encap.Fold(encap.Sum(b, initial)); got != want {
			t.Fatalf("sum %04x, want %04x", got, want)
		}
		if got := encap.Checksum(b, initial); got != ^want {
			t.Fatalf("checksum %04x, want %04x", got, ^want)
		}
		at := min(int(cut)&^1, len(b)&^1)
		if got := encap.Fold(encap.Sum(b[at:], encap.Sum(b[:at], initial))); got != want {
			t.Fatalf("chained at %d: %04x, want %04x", at, got, want)
		}
	})
}

func FuzzFlowHash(f *testing.F) {
	for _, tt := range transportTests {
		f.Add(tt.in)
	}
	seed(f)
	f.Fuzz(func(t *testing.T, b []byte) {
		hash := encap.FlowHash(b)
		again := slices.Concat([]byte{0}, b)[1:]
		if p, err := encap.ParseIPv4(again); err == nil {
			p.SetTTL(p.TTL() + 1)
			p.SetID(p.ID() + 1)
			p.SetECN(p.ECN() + 1)
		} else if p, err := encap.ParseIPv6(again); err == nil {
			p[7]++
			p[3]++
			p.SetECN(p.ECN() + 1)
		}
		if got := encap.FlowHash(again); got != hash {
			t.Fatalf("%#08x and %#08x", hash, got)
		}
	})
}

func FuzzARPReply(f *testing.F) {
	seed(f, goldenARPReply)
	f.Fuzz(func(t *testing.T, b []byte) {
		ours := ours4
		if len(b) >= encap.ARPLen {
			ours = netip.AddrFrom4([4]byte(b[24:28]))
		}
		var dst [encap.ARPLen]byte
		switch n := encap.ARPReply(dst[:], b, ours, ourMAC); n {
		case 0:
			if dst != [encap.ARPLen]byte{} {
				t.Fatal("dst written without a reply")
			}
		case encap.ARPLen:
			target := encap.MAC(dst[18:24])
			if target != encap.ARPSender(b) || target.IsGroup() || encap.ARPReply(b, dst[:], ours, ourMAC) != 0 {
				t.Fatalf("reply % x", dst)
			}
		default:
			t.Fatalf("%d bytes", n)
		}
	})
}

func FuzzNeighborAdvertisement(f *testing.F) {
	seed(f, goldenNA)
	f.Fuzz(func(t *testing.T, b []byte) {
		ours := ours6
		b = slices.Clone(b)
		if len(b) >= 64 {
			ours = netip.AddrFrom16([16]byte(b[48:64]))
			// Most mutations spoil the checksum; judge what lies behind it.
			if p, err := encap.ParseIPv6(b); err == nil && len(p) >= 64 {
				icmpv6(p)
			}
		}
		dst := make([]byte, encap.NeighborAdvertisementLen)
		n := encap.NeighborAdvertisement(dst, b, ours, ourMAC)
		if n == 0 {
			return
		}
		p, question := mustIPv6(t, dst[:n]), mustIPv6(t, b)
		probe := question.Src().IsUnspecified()
		if p.Src() != ours || p.HopLimit() != 255 || p.Dst().IsMulticast() != probe || question.HopLimit() != 255 {
			t.Fatalf("header % x", p[:40])
		}
		if solicited := p[44]&0x40 != 0; solicited == probe {
			t.Fatalf("flags %02x to %v", p[44], p.Dst())
		}
		if encap.Checksum(p[40:], p.PseudoHeaderSum(encap.ProtoICMPv6, len(p)-40)) != 0 {
			t.Fatal("checksum doesn't verify")
		}
	})
}

func FuzzICMPErrors(f *testing.F) {
	for _, tt := range transportTests {
		f.Add(tt.in)
	}
	seed(f, goldenTooLong, goldenTooBig, slices.Concat(goldenUDP4, make([]byte, 1400)))
	f.Fuzz(func(t *testing.T, b []byte) {
		for version, longest := range map[byte]int{4: 576, 6: 1280} {
			builders, from := icmpBuilders([]byte{version << 4})
			for _, answer := range builders {
				dst := make([]byte, encap.MaxICMPLen)
				n := answer(dst, b, from)
				if n == 0 {
					continue
				}
				verifyICMP(t, dst[:n], b)
				if n > longest || answer(make([]byte, encap.MaxICMPLen), dst[:n], from) != 0 {
					t.Fatalf("%d bytes, or an answer to an answer", n)
				}
			}
		}
	})
}

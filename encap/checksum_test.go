package encap_test

import (
	"encoding/binary"
	"math/rand/v2"
	"net/netip"
	"testing"

	"uvxlan/encap"
)

// naiveFold is RFC 1071 taken literally: 16-bit words, one by one.
func naiveFold(b []byte, initial uint16) uint16 {
	sum := uint32(initial)
	for i := 0; i < len(b); i += 2 {
		word := uint32(b[i]) << 8
		if i+1 < len(b) {
			word |= uint32(b[i+1])
		}
		if sum += word; sum > 0xffff {
			sum -= 0xffff
		}
	}
	return uint16(sum)
}

func TestChecksumRFC1071(t *testing.T) {
	// The example of RFC 1071 section 3.
	b := []byte{0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7}
	if got := encap.Fold(encap.Sum(b, 0)); got != 0xddf2 {
		t.Errorf("sum %04x, want ddf2", got)
	}
	if got := encap.Checksum(b, 0); got != 0x220d {
		t.Errorf("checksum %04x, want 220d", got)
	}
}

func TestSumEveryLength(t *testing.T) {
	random := rand.New(rand.NewPCG(3, 4))
	b := make([]byte, 300)
	for i := range b {
		b[i] = byte(random.Uint32())
	}
	for n := range b {
		for offset := range min(8, len(b)-n) {
			part := b[offset : offset+n]
			if got, want := encap.Fold(encap.Sum(part, 0)), naiveFold(part, 0); got != want {
				t.Fatalf("length %d at %d: %04x, want %04x", n, offset, got, want)
			}
		}
	}
}

func TestSumExtremes(t *testing.T) {
	ones := make([]byte, 65535)
	for i := range ones {
		ones[i] = 0xff
	}
	for _, n := range []int{0, 1, 2, 7, 8, 9, 63, 64, 65, 128, 65534, 65535} {
		for _, initial := range []uint64{0, 1, 0xffff, 1<<64 - 2, 1<<64 - 1} {
			want := naiveFold(ones[:n], encap.Fold(initial))
			if got := encap.Fold(encap.Sum(ones[:n], initial)); got != want {
				t.Errorf("%d bytes of ff from %x: %04x, want %04x", n, initial, got, want)
			}
		}
	}
	if got := encap.Fold(encap.Sum(make([]byte, 100), 0)); got != 0 {
		t.Errorf("zeros sum to %04x", got)
	}
}

func TestSumChains(t *testing.T) {
	random := rand.New(rand.NewPCG(5, 6))
	b := make([]byte, 1501)
	for i := range b {
		b[i] = byte(random.Uint32())
	}
	whole := encap.Fold(encap.Sum(b, 0))
	for cut := 0; cut < len(b); cut += 2 {
		head := encap.Sum(b[:cut], 0)
		if got := encap.Fold(encap.Sum(b[cut:], head)); got != whole {
			t.Fatalf("chained at %d: %04x, want %04x", cut, got, whole)
		}
		if got := encap.Fold(encap.AddSums(encap.Sum(b[cut:], 0), head)); got != whole {
			t.Fatalf("joined at %d: %04x, want %04x", cut, got, whole)
		}
	}
}

// TestIncrementalUpdate replaces one word by subtraction (RFC 1624 equation 3)
// with the exported pieces, as segmentation does.
func TestIncrementalUpdate(t *testing.T) {
	random := rand.New(rand.NewPCG(7, 8))
	b := make([]byte, 200)
	for range 5000 {
		for i := range b {
			b[i] = byte(random.Uint32())
		}
		before := encap.Checksum(b, 0)
		at := 2 * random.IntN(len(b)/2)
		old := binary.BigEndian.Uint16(b[at:])
		replacement := uint16(random.Uint32())
		binary.BigEndian.PutUint16(b[at:], replacement)
		sum := encap.AddSums(uint64(^before)+uint64(^old), uint64(replacement))
		if got, want := ^encap.Fold(sum), encap.Checksum(b, 0); got != want {
			t.Fatalf("incremental %04x, full %04x", got, want)
		}
	}
}

func TestPseudoHeaderSum(t *testing.T) {
	v4, v6 := mustIPv4(t, goldenTCP4), mustIPv6(t, goldenUDP6)
	for _, tt := range []struct {
		name           string
		packet, direct uint64
		want           uint16
	}{
		{"IPv4", v4.PseudoHeaderSum(6, 25), encap.PseudoHeaderSum(v4.Src(), v4.Dst(), 6, 25), 0x8333},
		{"IPv6", v6.PseudoHeaderSum(17, 11), encap.PseudoHeaderSum(v6.Src(), v6.Dst(), 17, 11), 0xfa73},
	} {
		if p, d := encap.Fold(tt.packet), encap.Fold(tt.direct); p != tt.want || d != tt.want {
			t.Errorf("%s: method %04x, function %04x, want %04x", tt.name, p, d, tt.want)
		}
	}
	all := netip.MustParseAddr("ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff")
	if got := encap.Fold(encap.PseudoHeaderSum(all, all, 0, 0)); got != 0xffff {
		t.Errorf("all-ones addresses: %04x", got)
	}
}

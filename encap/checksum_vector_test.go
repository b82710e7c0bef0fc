package encap

import (
	"encoding/binary"
	"math/bits"
	"math/rand/v2"
	"slices"
	"strconv"
	"testing"
)

// plainSum adds words one by one.
func plainSum(b []byte, initial uint64) uint16 {
	sum := initial % 0xffff
	for ; len(b) >= 2; b = b[2:] {
		sum += uint64(binary.BigEndian.Uint16(b))
	}
	if len(b) == 1 {
		sum += uint64(b[0]) << 8
	}
	return uint16(sum % 0xffff)
}

// checkSum compares Sum with both references. Folded, a sum of zero modulo
// 0xffff is 0 only where all is zero.
func checkSum(t *testing.T, b []byte, initial uint64) {
	t.Helper()
	got, generic := Fold(Sum(b, initial)), Fold(sumGeneric(b, initial))
	if want := plainSum(b, initial); got != generic || got%0xffff != want {
		t.Fatalf("%d bytes from %x: %04x, generic %04x, plain %04x", len(b), initial, got, generic, want)
	}
	if n := len(b) &^ (vectorLen - 1); vectorMin != never && n > 0 {
		sum, generic := sumVectors(&b[0], n), sumGeneric(b[:n], 0)
		if bits.ReverseBytes16(Fold(sum)) != Fold(generic) {
			t.Fatalf("vectors of %d bytes: %x, generic %x", n, sum, generic)
		}
	}
}

func TestSumVectors(t *testing.T) {
	if vectorMin == never {
		t.Log("no vectors on this processor")
	}
	random := rand.New(rand.NewPCG(1, 2))
	mixed := make([]byte, 2200)
	for i := range mixed {
		mixed[i] = byte(random.Uint32())
	}
	ones := slices.Repeat([]byte{0xff}, len(mixed))
	// Words whose halves carry into each other at once.
	edges := slices.Repeat([]byte{0xff, 0xff, 0xff, 0xff, 1, 0, 0, 0}, len(mixed)/8)
	zeros := make([]byte, len(mixed))
	for n := range 2101 {
		for offset := range 32 {
			checkSum(t, mixed[offset:][:n], uint64(n))
		}
		for _, b := range [][]byte{ones, edges, zeros} {
			checkSum(t, b[n%8:][:n], 0)
			checkSum(t, b[n%8:][:n], 1<<64-1)
		}
	}
	checkSum(t, slices.Repeat([]byte{0xff}, 1<<24+31), 1<<64-1)
}

// TestSumVectorsStay looks for bytes that are read past the end or left out.
func TestSumVectorsStay(t *testing.T) {
	b := make([]byte, 700)
	for n := range 600 {
		for i := range b {
			b[i] = 0xff
		}
		clear(b[40:][:n])
		if got := Sum(b[40:][:n], 0); got != 0 {
			t.Fatalf("%d zeros: %x", n, got)
		}
		for i := range n {
			b[40+i] = 1
			if want := uint16(1) << (8 * (1 - i%2)); Fold(Sum(b[40:][:n], 0)) != want {
				t.Fatalf("byte %d of %d left out", i, n)
			}
			b[40+i] = 0
		}
	}
}

func FuzzSum(f *testing.F) {
	f.Add([]byte{}, uint64(0), uint8(0), uint16(0))
	f.Add(slices.Repeat([]byte{0xff}, 300), uint64(1<<64-1), uint8(1), uint16(2))
	f.Fuzz(func(t *testing.T, b []byte, initial uint64, skip uint8, times uint16) {
		b = slices.Repeat(b, 1+int(times)%64)
		checkSum(t, b[min(int(skip), len(b)):], initial)
	})
}

// BenchmarkSumKinds compares Sum with the portable one.
func BenchmarkSumKinds(b *testing.B) {
	for _, size := range []int{20, 64, 256, 1400, 9000, 65536} {
		data := make([]byte, size)
		for i := range data {
			data[i] = byte(i * 7)
		}
		for _, k := range []struct {
			name string
			sum  func([]byte, uint64) uint64
		}{{"generic", sumGeneric}, {"Sum", Sum}} {
			b.Run(k.name+"/"+strconv.Itoa(size), func(b *testing.B) {
				b.SetBytes(int64(size))
				var total uint64
				for b.Loop() {
					total = k.sum(data, total)
				}
			})
		}
	}
}

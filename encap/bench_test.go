package encap_test

import (
	"slices"
	"strconv"
	"testing"

	"uvxlan/encap"
)

func BenchmarkSum(b *testing.B) {
	for _, size := range []int{20, 64, 256, 1450, 65535} {
		b.Run(strconv.Itoa(size), func(b *testing.B) {
			data := slices.Repeat([]byte{0xa5}, size)
			b.SetBytes(int64(size))
			var sum uint64
			for b.Loop() {
				sum = encap.Sum(data, sum)
			}
		})
	}
}

func BenchmarkFlowHash(b *testing.B) {
	for _, bm := range []struct {
		name   string
		packet []byte
	}{{"IPv4", goldenTCP4}, {"IPv6", goldenUDP6}} {
		b.Run(bm.name, func(b *testing.B) {
			b.SetBytes(int64(len(bm.packet)))
			for b.Loop() {
				encap.FlowHash(bm.packet)
			}
		})
	}
}

func BenchmarkFrameDecode(b *testing.B) {
	var f encap.Frame
	b.SetBytes(int64(len(goldenFrame)))
	for b.Loop() {
		if err := f.Decode(goldenFrame); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkTransportChecksum(b *testing.B) {
	segment := make([]byte, 1450)
	copy(segment, goldenTCP4)
	encap.IPv4(segment).SetTotalLen(len(segment))
	b.SetBytes(int64(len(segment)))
	for b.Loop() {
		encap.TransportChecksum(segment)
	}
}

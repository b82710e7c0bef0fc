package encap

// vectorMin is the length in bytes from which sumVectors pays, out of reach
// where the processor has no AVX2.
var vectorMin = vectorLength(hasAVX2())

func vectorLength(avx2 bool) int {
	if avx2 {
		return 256
	}
	return never
}

// sumVectors adds the n bytes at p as little-endian 32-bit words; n is a
// multiple of 32 and below 2^34, lest the sum overflow.
//
//go:noescape
func sumVectors(p *byte, n int) uint64

// hasAVX2 asks the processor, and whether the operating system saves the
// registers (Intel SDM volume 1, section 14.7.1).
func hasAVX2() bool {
	const (
		osxsave, avx = 1 << 27, 1 << 28 // leaf 1, ECX
		avx2         = 1 << 5           // leaf 7, EBX
		saved        = 1<<1 | 1<<2      // XCR0: SSE and AVX state
	)
	if leaves, _, _, _ := cpuid(0, 0); leaves < 7 {
		return false
	}
	_, _, features, _ := cpuid(1, 0)
	if features&osxsave == 0 || features&avx == 0 || xgetbv()&saved != saved {
		return false
	}
	_, extended, _, _ := cpuid(7, 0)
	return extended&avx2 != 0
}

func cpuid(leaf, subleaf uint32) (eax, ebx, ecx, edx uint32)

// xgetbv returns the lower half of XCR0.
func xgetbv() uint32

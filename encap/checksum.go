package encap

import (
	"encoding/binary"
	"math/bits"
	"net/netip"
)

// Sum adds b, as big-endian 16-bit words, to initial and returns the
// one's-complement sum unfolded (RFC 1071). The result is some 64-bit number
// congruent to the true sum modulo 0xffff, zero only when every word was zero;
// compare sums after [Fold] only. It may be the initial of another Sum, and
// [AddSums] joins two.
//
// An odd last byte counts as the high byte of a word, so only the last of
// several chained parts may have an odd length.
func Sum(b []byte, initial uint64) uint64 {
	if len(b) < vectorMin {
		return sumGeneric(b, initial)
	}
	n := len(b) &^ (vectorLen - 1)
	acc := bits.ReverseBytes64(sumVectors(&b[0], n))
	return sumGeneric(b[n:], AddSums(initial, acc))
}

const (
	// vectorLen is the length in bytes of what sumVectors adds at a time.
	vectorLen = 32
	// never is a length that no slice has.
	never = int(^uint(0) >> 1)
)

// AddSums joins two unfolded sums with the end-around carry. A single 16- or
// 32-bit header field, in host form, is a sum too.
func AddSums(a, b uint64) uint64 {
	s, carry := bits.Add64(a, b, 0)
	return s + carry
}

// Fold reduces an unfolded sum to 16 bits without complementing it. The result
// is in host form: store it with binary.BigEndian.PutUint16.
func Fold(sum uint64) uint16 {
	sum = sum>>32 + sum&0xffffffff
	sum = sum>>32 + sum&0xffffffff
	sum = sum>>16 + sum&0xffff
	sum = sum>>16 + sum&0xffff
	return uint16(sum)
}

// Checksum returns the Internet checksum of b continued from initial, in host
// form: the complement of the folded sum. UDP stores a result of 0 as 0xffff
// (RFC 768).
func Checksum(b []byte, initial uint64) uint16 { return ^Fold(Sum(b, initial)) }

// PseudoHeaderSum returns the unfolded sum of the pseudo-header of a segment
// of length bytes, transport header included (RFC 9293 section 3.1, RFC 8200
// section 8.1). Both addresses are of one family. The methods of [IPv4] and
// [IPv6] do the same from a packet and are faster.
func PseudoHeaderSum(src, dst netip.Addr, proto uint8, length int) uint64 {
	if src.Is4() && dst.Is4() {
		return pseudoHeaderSum4(src.As4(), dst.As4(), proto, length)
	}
	s, d := src.As16(), dst.As16()
	return pseudoHeaderSum6(s[:], d[:], proto, length)
}

// PseudoHeaderSum is the function of that name for the addresses of p.
func (p IPv4) PseudoHeaderSum(proto uint8, length int) uint64 {
	return pseudoHeaderSum4([4]byte(p[12:16]), [4]byte(p[16:20]), proto, length)
}

// PseudoHeaderSum is the function of that name for the addresses of p. While
// a routing header has segments left, p's destination is not the final one and
// the sum is not the sender's.
func (p IPv6) PseudoHeaderSum(proto uint8, length int) uint64 {
	return pseudoHeaderSum6(p[8:24], p[24:40], proto, length)
}

func pseudoHeaderSum4(src, dst [4]byte, proto uint8, length int) uint64 {
	return uint64(binary.BigEndian.Uint32(src[:])) +
		uint64(binary.BigEndian.Uint32(dst[:])) +
		uint64(proto) + uint64(uint32(length))
}

func pseudoHeaderSum6(src, dst []byte, proto uint8, length int) uint64 {
	s, c := bits.Add64(binary.BigEndian.Uint64(src), binary.BigEndian.Uint64(src[8:]), 0)
	s, c = bits.Add64(s, binary.BigEndian.Uint64(dst), c)
	s, c = bits.Add64(s, binary.BigEndian.Uint64(dst[8:]), c)
	s, c = bits.Add64(s, uint64(proto)+uint64(uint32(length)), c)
	return s + c
}

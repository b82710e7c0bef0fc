package encap

import (
	"encoding/binary"
	"math/bits"
)

// sumGeneric is Sum in portable Go, and the reference for faster ones.
//
// It loads words in little-endian order, which costs nothing on the common
// processors, and swaps once at the end: a one's-complement sum commutes with
// the swap of its bytes (RFC 1071 section 2).
//
// A chain of Add64 that starts without carry never ends in all ones with the
// carry set, so adding that carry cannot overflow.
func sumGeneric(b []byte, initial uint64) uint64 {
	var acc, c uint64
	for len(b) >= 64 {
		acc, c = bits.Add64(acc, binary.LittleEndian.Uint64(b), 0)
		acc, c = bits.Add64(acc, binary.LittleEndian.Uint64(b[8:]), c)
		acc, c = bits.Add64(acc, binary.LittleEndian.Uint64(b[16:]), c)
		acc, c = bits.Add64(acc, binary.LittleEndian.Uint64(b[24:]), c)
		acc, c = bits.Add64(acc, binary.LittleEndian.Uint64(b[32:]), c)
		acc, c = bits.Add64(acc, binary.LittleEndian.Uint64(b[40:]), c)
		acc, c = bits.Add64(acc, binary.LittleEndian.Uint64(b[48:]), c)
		acc, c = bits.Add64(acc, binary.LittleEndian.Uint64(b[56:]), c)
		acc += c
		b = b[64:]
	}
	for len(b) >= 8 {
		acc, c = bits.Add64(acc, binary.LittleEndian.Uint64(b), 0)
		acc += c
		b = b[8:]
	}
	acc, c = bits.Add64(acc, tail(b), 0)
	return AddSums(initial, bits.ReverseBytes64(acc+c))
}

// tail loads fewer than eight bytes, little-endian, zeros behind them.
func tail(b []byte) uint64 {
	var w uint64
	if len(b)&4 != 0 {
		w = uint64(binary.LittleEndian.Uint32(b))
		b = b[4:]
	}
	var low uint64
	if len(b)&2 != 0 {
		low = uint64(binary.LittleEndian.Uint16(b))
		b = b[2:]
	}
	if len(b)&1 != 0 {
		// The byte starts a word of its own; only its parity matters.
		low += uint64(b[0])
	}
	return w + low
}

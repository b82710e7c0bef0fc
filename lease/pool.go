package lease

import (
	"net/netip"
	"slices"
)

// pool is the subnets of one family that may be allocated: those of the given
// length from first to last.
type pool struct {
	network     netip.Prefix
	bits        int
	first, last netip.Addr
}

func (p pool) contains(n netip.Prefix) bool {
	return n.IsValid() && n.Bits() == p.bits && n == n.Masked() &&
		!n.Addr().Less(p.first) && !p.last.Less(n.Addr())
}

// free returns, in ascending order, up to limit subnets that overlap nothing in
// taken.
func (p pool) free(taken []netip.Prefix, limit int) []netip.Prefix {
	taken = outermost(taken)
	var out []netip.Prefix
	next, ok := netip.PrefixFrom(p.first, p.bits), true
	for ok && len(out) < limit && !p.last.Less(next.Addr()) {
		for len(taken) > 0 && lastAddr(taken[0]).Less(next.Addr()) {
			taken = taken[1:]
		}
		if len(taken) > 0 && taken[0].Overlaps(next) {
			end := netip.PrefixFrom(lastAddr(taken[0]), p.bits)
			next, ok = following(end.Masked())
			continue
		}
		out = append(out, next)
		next, ok = following(next)
	}
	return out
}

// outermost returns the prefixes sorted and without those inside another, so
// that they are disjoint.
func outermost(in []netip.Prefix) []netip.Prefix {
	in = slices.Clone(in)
	slices.SortFunc(in, netip.Prefix.Compare)
	out := in[:0]
	for _, n := range in {
		if len(out) == 0 || !out[len(out)-1].Overlaps(n) {
			out = append(out, n)
		}
	}
	return out
}

// following returns the next subnet of the same length, false after the last
// one of the address family.
func following(n netip.Prefix) (netip.Prefix, bool) {
	a := lastAddr(n).Next()
	return netip.PrefixFrom(a, n.Bits()), a.IsValid()
}

// lastAddr returns the highest address of the prefix.
func lastAddr(n netip.Prefix) netip.Addr {
	b := n.Masked().Addr().AsSlice()
	for i := n.Bits(); i < len(b)*8; i++ {
		b[i/8] |= 0x80 >> (i % 8)
	}
	a, _ := netip.AddrFromSlice(b)
	return a
}

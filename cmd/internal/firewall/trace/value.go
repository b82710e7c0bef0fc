package trace

import (
	"bytes"
	"net/netip"
	"slices"
)

// span is all byte strings of one length from lo to hi, both included, in the
// order of bytes.Compare.
type span struct{ lo, hi []byte }

func (s span) contains(o span) bool {
	return bytes.Compare(s.lo, o.lo) <= 0 && bytes.Compare(o.hi, s.hi) <= 0
}

func (s span) meet(o span) (span, bool) {
	lo, hi := s.lo, s.hi
	if bytes.Compare(o.lo, lo) > 0 {
		lo = o.lo
	}
	if bytes.Compare(o.hi, hi) < 0 {
		hi = o.hi
	}
	return span{lo, hi}, bytes.Compare(lo, hi) <= 0
}

// value is what is known of a packet's field: it is in span, but not in except.
// The zero value is a field of any content and any length.
type value struct {
	span
	except *span
	// seen collects the parts of span that the field was compared with and that
	// it may or may not be in. It is nil if nobody asks.
	seen *[]span
}

// exactly returns a known field.
func exactly(b []byte) value { return value{span: span{b, b}} }

// anything returns an unknown field of n bytes.
func anything(n int) value {
	return value{span: span{make([]byte, n), slices.Repeat([]byte{0xff}, n)}}
}

func (v value) exact() bool { return v.lo != nil && bytes.Equal(v.lo, v.hi) }

// in tells whether the field is in a span of the same length.
func (v value) in(s span) tri {
	if len(v.lo) != len(s.lo) || len(s.hi) != len(s.lo) {
		return maybe
	}
	common, some := s.meet(v.span)
	switch {
	case !some, v.except != nil && v.except.contains(common):
		return no
	case s.contains(v.span):
		return yes
	}
	if v.seen != nil && v.contains(s) {
		*v.seen = append(*v.seen, s)
	}
	return maybe
}

func (v value) is(b []byte) tri { return v.in(span{b, b}) }

// slice returns n bytes of the field from an offset on.
func (v value) slice(offset, n int) value {
	switch {
	case v.lo == nil || offset+n > len(v.lo):
		return value{}
	case n == len(v.lo):
		return v
	case v.exact():
		return exactly(v.lo[offset : offset+n])
	case offset > 0:
		return anything(n)
	}
	out := value{span: span{v.lo[:n], v.hi[:n]}}
	if v.except != nil && zero(v.except.lo[n:]) && ones(v.except.hi[n:]) {
		out.except = &span{v.except.lo[:n], v.except.hi[:n]}
	}
	return out
}

// masked returns the field AND mask, XOR x.
func (v value) masked(mask, x []byte) value {
	n := len(mask)
	switch {
	case len(v.lo) < n || len(x) != n:
		return value{}
	case v.exact():
		return exactly(combine(v.lo[:n], mask, x))
	case len(v.lo) == n && ones(mask) && zero(x):
		return v
	case !leading(mask) || !zero(x):
		return value{}
	}
	v = v.slice(0, n)
	out := value{span: span{combine(v.lo, mask, x), combine(v.hi, mask, x)}}
	if v.except == nil {
		return out
	}
	host := make([]byte, n) // the bits that the mask takes away
	for i := range host {
		host[i] = ^mask[i]
	}
	if bytes.Equal(combine(v.except.lo, mask, x), v.except.lo) && bytes.Equal(combine(v.except.hi, host, x), host) {
		out.except = &span{v.except.lo, combine(v.except.hi, mask, x)}
	}
	return out
}

func combine(b, mask, x []byte) []byte {
	out := make([]byte, len(mask))
	for i := range out {
		out[i] = b[i]&mask[i] ^ x[i]
	}
	return out
}

// leading tells whether all ones of the mask come before its zeros.
func leading(mask []byte) bool {
	ended := false
	for _, b := range mask {
		for bit := byte(0x80); bit != 0; bit >>= 1 {
			if b&bit != 0 && ended {
				return false
			}
			ended = ended || b&bit == 0
		}
	}
	return true
}

func zero(b []byte) bool { return !slices.ContainsFunc(b, func(x byte) bool { return x != 0 }) }
func ones(b []byte) bool { return !slices.ContainsFunc(b, func(x byte) bool { return x != 0xff }) }

// addresses returns the span of a prefix.
func addresses(p netip.Prefix) span {
	lo := p.Masked().Addr().AsSlice()
	hi := slices.Clone(lo)
	for bit := p.Bits(); bit < len(hi)*8; bit++ {
		hi[bit/8] |= 0x80 >> (bit % 8)
	}
	return span{lo, hi}
}

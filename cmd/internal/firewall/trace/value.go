package trace

import (
	"bytes"
	"fmt"
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
	// among are all that the field may be, in order and without repetition; nil if
	// it may be all of the span.
	among [][]byte
	// derived remembers what was made of among, by how it was made.
	derived map[string]value
	// seen collects the parts of span that the field was compared with and that
	// it may or may not be in. It is nil if nobody asks.
	seen *[]span
	// met is set when the field is compared with something that it is or may be.
	// It is nil if nobody asks.
	met *bool
}

// exactly returns a known field.
func exactly(b []byte) value { return value{span: span{b, b}} }

// anything returns an unknown field of n bytes.
func anything(n int) value {
	return value{span: span{make([]byte, n), slices.Repeat([]byte{0xff}, n)}}
}

// oneOf returns a field that is one of several, which have one length.
func oneOf(all [][]byte) value {
	all = slices.Clone(all)
	slices.SortFunc(all, bytes.Compare)
	all = slices.CompactFunc(all, bytes.Equal)
	v := value{span: span{all[0], all[len(all)-1]}}
	if len(all) > 1 {
		v.among, v.derived = all, map[string]value{}
	}
	return v
}

// derive makes a field of each that v may be, once for each way.
func (v value) derive(way string, of func([]byte) []byte) value {
	if d, done := v.derived[way]; done {
		return d
	}
	all := make([][]byte, len(v.among))
	for i, b := range v.among {
		all[i] = of(b)
	}
	v.derived[way] = oneOf(all)
	return v.derived[way]
}

func (v value) exact() bool { return v.lo != nil && bytes.Equal(v.lo, v.hi) }

// in tells whether the field is in a span of the same length.
func (v value) in(s span) tri {
	is := v.within(s)
	if v.met != nil && is != no {
		*v.met = true
	}
	return is
}

func (v value) within(s span) tri {
	if len(v.lo) != len(s.lo) || len(s.hi) != len(s.lo) {
		return maybe
	}
	if v.among != nil {
		return v.some(s)
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

// some tells how many of what the field may be are in a span.
func (v value) some(s span) tri {
	from, _ := slices.BinarySearchFunc(v.among, s.lo, bytes.Compare)
	to, last := slices.BinarySearchFunc(v.among, s.hi, bytes.Compare)
	if last {
		to++
	}
	switch {
	case to <= from:
		return no
	case to-from == len(v.among):
		return yes
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
	case v.among != nil:
		return v.derive(fmt.Sprint(offset, n), func(b []byte) []byte { return b[offset : offset+n] })
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
	case v.among != nil:
		return v.derive("masked"+string(mask)+string(x), func(b []byte) []byte { return combine(b[:n], mask, x) })
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

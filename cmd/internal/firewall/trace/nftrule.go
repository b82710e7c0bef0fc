package trace

import (
	"encoding/binary"
	"slices"

	"golang.org/x/sys/unix"
)

// nftRule is a rule of nftables.
type nftRule struct {
	tables      *tables
	family      byte
	table       string
	expressions []expression
}

// expression is one instruction of a rule (linux/netfilter/nf_tables.h).
type expression struct {
	name string
	attributes
}

// silent are the expressions that don't affect whether a rule matches, apart
// from those that load and store.
var silent = []string{"counter", "log", "notrack", "flow_offload", "nat", "masq", "redir", "dup", "tproxy", "last", "secmark", "cttimeout", "ctexpect"}

const (
	metaL4Proto    = unix.NFT_META_L4PROTO
	objectCounter  = 1 // NFT_OBJECT_COUNTER
	lookupInvert   = 1 // NFT_LOOKUP_F_INV
	byteorderCount = 2
	fibSource      = 1 << 0 // NFTA_FIB_F_SADDR
	fibPresent     = 1 << 5 // NFTA_FIB_F_PRESENT
)

// acting are the expressions of silent that do something that shows.
var acting = []string{"log", "flow_offload", "dup", "tproxy", "secmark"}

func (r *nftRule) steps(s *state) ([]step, error) {
	m, regs := yes, registers{}
	defer func() { s.matched = m }()
	for _, e := range r.expressions {
		if m == no {
			return nil, nil
		}
		r.note(e, s)
		var steps []step
		var err error
		switch e.name {
		case "meta":
			r.meta(e, s, regs)
		case "ct":
			r.ct(e, s, regs)
		case "payload":
			r.payload(e, s, regs)
		case "fib":
			r.fib(e, s, regs)
		case "bitwise":
			regs.put(e.number(unix.NFTA_BITWISE_DREG), bitwise(e, regs))
		case "byteorder":
			regs.put(e.number(unix.NFTA_BYTEORDER_DREG), byteorder(e, regs))
		case "cmp":
			m = m.and(compare(e, regs))
		case "range":
			m = m.and(within(e, regs))
		case "match":
			m = m.and(matches(e.text(unix.NFTA_MATCH_NAME), e.number(unix.NFTA_MATCH_REV), e.get(unix.NFTA_MATCH_INFO), s))
		case "lookup":
			var is tri
			if is, steps, err = r.lookup(e, regs, m); err != nil {
				return nil, err
			}
			m = m.and(is)
		case "immediate":
			steps = immediate(e, regs, m)
		case "reject":
			steps = []step{{match: m, verdict: drops}}
		case "queue":
			steps = []step{{match: m, verdict: leaves}}
		case "target":
			steps = target(e.text(unix.NFTA_TARGET_NAME), s, m)
		case "objref":
			if e.number(unix.NFTA_OBJREF_IMM_TYPE) != objectCounter {
				m = m.and(maybe)
			}
		default:
			if !slices.Contains(silent, e.name) {
				m = m.and(maybe)
			}
		}
		if steps != nil {
			return steps, nil
		}
	}
	return nil, nil
}

// note says in the state what an expression does beside matching.
func (r *nftRule) note(e expression, s *state) {
	writes := map[string]uint16{
		"meta": unix.NFTA_META_SREG, "ct": unix.NFTA_CT_SREG, "payload": unix.NFTA_PAYLOAD_SREG, "exthdr": unix.NFTA_EXTHDR_SREG,
	}
	register, may := writes[e.name]
	switch {
	case e.name == "nat", e.name == "redir", e.name == "tproxy":
		s.translates = true
	case slices.Contains(acting, e.name), may && e.has(register):
		s.acts = true
	case e.name == "notrack":
		s.untracks = true
	case e.name == "dynset", e.name == "synproxy":
		s.acts = true
	}
}

// registers hold values by their offset in the kernel's register file.
type registers map[int]value

const registerSize, wideRegisterSize = 4, 16

// offset returns where a register lies. Registers 1 to 4 are the old ones, of
// 16 bytes each. Those from 8 on have 4 bytes each.
func offset(register uint32) int {
	if register < unix.NFT_REG32_00 {
		return (int(register) - unix.NFT_REG_1) * wideRegisterSize
	}
	return (int(register) - unix.NFT_REG32_00) * registerSize
}

// put stores values one after the other, from a register on.
func (r registers) put(register uint32, values ...value) {
	at := offset(register)
	for _, v := range values {
		for other := range r {
			if other >= at && other < at+padded(len(v.lo)) {
				delete(r, other)
			}
		}
		r[at] = v
		at += padded(len(v.lo))
	}
}

func padded(n int) int { return (n + registerSize - 1) / registerSize * registerSize }

// get returns the values in n bytes, from a register on.
func (r registers) get(register uint32, n int) (values []value) {
	for at := offset(register); n > 0; {
		v, is := r[at]
		if !is || v.lo == nil {
			return append(values, value{})
		}
		if len(v.lo) > n {
			v = v.slice(0, n)
		}
		values = append(values, v)
		at, n = at+padded(len(v.lo)), n-padded(len(v.lo))
	}
	return values
}

// first returns the value in a register. If nothing is known of it, that is a
// value of any length.
func (r registers) first(register uint32) value { return r[offset(register)] }

func (r *nftRule) meta(e expression, s *state, regs registers) {
	k := e.number(unix.NFTA_META_KEY)
	if e.has(unix.NFTA_META_SREG) {
		if k == unix.NFT_META_MARK {
			s.mark = regs.first(e.number(unix.NFTA_META_SREG))
		}
		return
	}
	v := value{}
	switch k {
	case unix.NFT_META_IIFNAME:
		v = s.in.name
	case unix.NFT_META_OIFNAME:
		v = s.out.name
	case unix.NFT_META_IIF:
		v = s.in.index
	case unix.NFT_META_OIF:
		v = s.out.index
	case unix.NFT_META_MARK:
		v = s.mark
	case metaL4Proto:
		v = s.protocol
	case unix.NFT_META_NFPROTO:
		v = exactly([]byte{unix.NFPROTO_IPV4})
		if s.v6 {
			v = exactly([]byte{unix.NFPROTO_IPV6})
		}
	case unix.NFT_META_PROTOCOL:
		v = exactly(network(unix.ETH_P_IP))
		if s.v6 {
			v = exactly(network(unix.ETH_P_IPV6))
		}
	}
	regs.put(e.number(unix.NFTA_META_DREG), v)
}

func (r *nftRule) ct(e expression, s *state, regs registers) {
	k := e.number(unix.NFTA_CT_KEY)
	if e.has(unix.NFTA_CT_SREG) {
		if k == unix.NFT_CT_MARK {
			s.connmark = regs.first(e.number(unix.NFTA_CT_SREG))
		}
		return
	}
	v := value{}
	switch k {
	case unix.NFT_CT_STATE:
		v = s.ctState
	case unix.NFT_CT_STATUS:
		v = s.ctStatus
	case unix.NFT_CT_MARK:
		v = s.connmark
	case unix.NFT_CT_DIRECTION:
		v = exactly([]byte{0}) // the original one
	}
	regs.put(e.number(unix.NFTA_CT_DREG), v)
}

func (r *nftRule) payload(e expression, s *state, regs registers) {
	if e.has(unix.NFTA_PAYLOAD_SREG) {
		return // it writes
	}
	at, n := int(e.number(unix.NFTA_PAYLOAD_OFFSET)), int(e.number(unix.NFTA_PAYLOAD_LEN))
	values := []value{{}}
	switch e.number(unix.NFTA_PAYLOAD_BASE) {
	case unix.NFT_PAYLOAD_NETWORK_HEADER:
		values = s.header(at, n)
	case unix.NFT_PAYLOAD_TRANSPORT_HEADER:
		values = []value{s.transport(at, n)}
	}
	regs.put(e.number(unix.NFTA_PAYLOAD_DREG), values...)
}

// fib looks addresses up in the routes.
func (r *nftRule) fib(e expression, s *state, regs registers) {
	v, flags := value{}, e.number(unix.NFTA_FIB_FLAGS)
	switch result := e.number(unix.NFTA_FIB_RESULT); {
	case result == unix.NFT_FIB_RESULT_ADDRTYPE && flags&fibSource != 0:
		v = exactly(native(s.srcType))
	case result == unix.NFT_FIB_RESULT_ADDRTYPE:
		v = exactly(native(s.dstType))
	case !s.sameWay || flags&fibSource == 0:
	case flags&fibPresent != 0:
		v = exactly([]byte{1})
	case result == unix.NFT_FIB_RESULT_OIF:
		v = s.in.index
	case result == unix.NFT_FIB_RESULT_OIFNAME:
		v = s.in.name
	}
	regs.put(e.number(unix.NFTA_FIB_DREG), v)
}

func bitwise(e expression, regs registers) value {
	mask, x := e.value(unix.NFTA_BITWISE_MASK), e.value(unix.NFTA_BITWISE_XOR)
	if len(mask) == 0 || len(mask) != len(x) {
		return value{}
	}
	return regs.first(e.number(unix.NFTA_BITWISE_SREG)).masked(mask, x)
}

// byteorder reverses numbers of 2, 4 or 8 bytes, unless both byte orders are
// the same.
func byteorder(e expression, regs registers) value {
	v := regs.first(e.number(unix.NFTA_BYTEORDER_SREG))
	n, size := int(e.number(unix.NFTA_BYTEORDER_LEN)), int(e.number(unix.NFTA_BYTEORDER_SIZE))
	if !v.exact() || len(v.lo) < n || size < byteorderCount || n%size != 0 {
		return value{}
	}
	b := slices.Clone(v.lo[:n])
	if binary.NativeEndian.Uint16([]byte{1, 0}) == 1 {
		for at := 0; at < n; at += size {
			slices.Reverse(b[at : at+size])
		}
	}
	return exactly(b)
}

func compare(e expression, regs registers) tri {
	data := e.value(unix.NFTA_CMP_DATA)
	values := regs.get(e.number(unix.NFTA_CMP_SREG), len(data))
	op := e.number(unix.NFTA_CMP_OP)
	if op == unix.NFT_CMP_EQ || op == unix.NFT_CMP_NEQ {
		is := equal(values, span{data, data})
		if op == unix.NFT_CMP_NEQ {
			return is.not()
		}
		return is
	}
	if len(values) != 1 {
		return maybe
	}
	v, n := values[0], len(data)
	lowest, highest := make([]byte, n), slices.Repeat([]byte{0xff}, n)
	switch op {
	case unix.NFT_CMP_LTE:
		return v.in(span{lowest, data})
	case unix.NFT_CMP_GT:
		return v.in(span{lowest, data}).not()
	case unix.NFT_CMP_GTE:
		return v.in(span{data, highest})
	case unix.NFT_CMP_LT:
		return v.in(span{data, highest}).not()
	}
	return maybe
}

// equal compares consecutive values with the parts of a key's span.
func equal(values []value, with span) tri {
	is, at := yes, 0
	for _, v := range values {
		n := len(v.lo)
		if v.lo == nil || at+n > len(with.lo) || at+n > len(with.hi) {
			return is.and(maybe)
		}
		is = is.and(v.in(span{with.lo[at : at+n], with.hi[at : at+n]}))
		at += padded(n)
	}
	return is
}

func within(e expression, regs registers) tri {
	s := span{e.value(unix.NFTA_RANGE_FROM_DATA), e.value(unix.NFTA_RANGE_TO_DATA)}
	is := maybe
	if values := regs.get(e.number(unix.NFTA_RANGE_SREG), len(s.lo)); len(values) == 1 {
		is = values[0].in(s)
	}
	if e.number(unix.NFTA_RANGE_OP) == unix.NFT_RANGE_NEQ {
		return is.not()
	}
	return is
}

// lookup tells whether a set has the registers' values. For a map of verdicts
// it returns the steps.
func (r *nftRule) lookup(e expression, regs registers, m tri) (tri, []step, error) {
	s, err := r.tables.set(r.family, r.table, e.text(unix.NFTA_LOOKUP_SET))
	if err != nil {
		return no, nil, err
	}
	found := no
	var steps []step
	for _, el := range s.elements {
		is := maybe
		if !el.rest {
			is = equal(regs.get(e.number(unix.NFTA_LOOKUP_SREG), len(el.keys.lo)), el.keys)
		}
		if is == no {
			continue
		}
		found = found.or(is)
		if el.verdict != nil {
			if st, ok := verdictStep(el.verdict, m.and(is)); ok {
				steps = append(steps, st)
			}
		}
	}
	if e.number(unix.NFTA_LOOKUP_FLAGS)&lookupInvert != 0 {
		return found.not(), nil, nil
	}
	if !e.has(unix.NFTA_LOOKUP_DREG) {
		return found, nil, nil
	}
	if e.number(unix.NFTA_LOOKUP_DREG) != unix.NFT_REG_VERDICT {
		regs.put(e.number(unix.NFTA_LOOKUP_DREG), value{})
		return found, nil, nil
	}
	// A sure match comes first, since no other element can match then.
	slices.SortStableFunc(steps, func(a, b step) int { return int(b.match - a.match) })
	if found == no {
		return no, nil, nil
	}
	return found, append([]step{}, steps...), nil
}

// immediate loads a verdict, or a value.
func immediate(e expression, regs registers, m tri) []step {
	register, data := e.number(unix.NFTA_IMMEDIATE_DREG), e.get(unix.NFTA_IMMEDIATE_DATA)
	if register != unix.NFT_REG_VERDICT {
		regs.put(register, exactly(data.get(unix.NFTA_DATA_VALUE)))
		return nil
	}
	st, ok := verdictStep(data.get(unix.NFTA_DATA_VERDICT), m)
	if !ok {
		return []step{}
	}
	return []step{st}
}

// The kernel's verdicts (linux/netfilter.h and linux/netfilter/nf_tables.h).
const (
	nfDrop, nfAccept = 0, 1
	nftJump, nftGoto = -3, -4
	nftReturn        = -5
	nftContinue      = -1
	nftBreak         = -2
)

// verdictStep returns what a verdict does with the packet, or false if the
// packet goes on with the next rule.
func verdictStep(v attributes, m tri) (step, bool) {
	st := step{match: m, chain: v.text(unix.NFTA_VERDICT_CHAIN)}
	switch int32(v.number(unix.NFTA_VERDICT_CODE)) {
	case nfDrop:
		st.verdict = drops
	case nfAccept:
		st.verdict = accepts
	case nftJump:
		st.verdict = jumps
	case nftGoto:
		st.verdict = goesTo
	case nftReturn:
		st.verdict = returns
	case nftContinue, nftBreak:
		return st, false
	default:
		st.verdict = leaves
	}
	return st, true
}

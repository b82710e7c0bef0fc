package trace

import (
	"errors"
	"fmt"
	"slices"

	"golang.org/x/sys/unix"
)

// tables are the nftables tables of the network namespace. Each part of them is
// read when it is needed.
type tables struct {
	*conversation
	chains map[string][]rule // by family, table and name
	sets   map[string]*set   // the same
}

func openTables() (*tables, error) {
	c, err := openConversation()
	if err != nil {
		return nil, err
	}
	return &tables{c, map[string][]rule{}, map[string]*set{}}, nil
}

// families are nftables' names for the families whose chains see IP packets.
var families = map[byte]string{unix.NFPROTO_IPV4: "ip", unix.NFPROTO_IPV6: "ip6", unix.NFPROTO_INET: "inet", unix.NFPROTO_NETDEV: "netdev"}

// meets tells whether a kind of packets meets a base chain. The devices are those of
// a chain at ingress or egress.
type meets func(family byte, h hook, chainType string, devices []string) bool

// forwards are the chains that forwarded packets meet and that may drop them.
func forwards(_ byte, h hook, chainType string, _ []string) bool {
	return slices.Contains(hooks, h) && chainType != "nat"
}

// bases returns the base chains of a family, and of all families, that packets
// meet, in no particular order.
func (t *tables) bases(v6 bool, want meets) (bases []base, err error) {
	dormant, err := t.dormant()
	if err != nil {
		return nil, fmt.Errorf("list nftables' tables: %w", err)
	}
	chains, err := t.ask(unix.NFT_MSG_GETCHAIN, unix.NFPROTO_UNSPEC, unix.NLM_F_DUMP, nil)
	if err != nil {
		return nil, fmt.Errorf("list nftables' chains: %w", err)
	}
	own := byte(unix.NFPROTO_IPV4)
	if v6 {
		own = unix.NFPROTO_IPV6
	}
	var errs []error
	for _, c := range chains {
		if c.family != own && c.family != unix.NFPROTO_INET && c.family != unix.NFPROTO_NETDEV || dormant[key(c.family, c.text(unix.NFTA_CHAIN_TABLE))] {
			continue
		}
		at := c.get(unix.NFTA_CHAIN_HOOK)
		h := hook(at.number(unix.NFTA_HOOK_HOOKNUM))
		switch {
		case at == nil:
			continue
		case c.family != unix.NFPROTO_NETDEV:
		case h == netdevIngress:
			h = ingress
		case h == netdevEgress:
			h = egress
		default:
			continue
		}
		if !want(c.family, h, c.text(unix.NFTA_CHAIN_TYPE), devices(at)) {
			continue
		}
		b, err := t.base(c, h)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		bases = append(bases, b)
	}
	return bases, errors.Join(errs...)
}

// netdevIngress and netdevEgress are the hooks of family netdev
// (linux/netfilter_netdev.h, NF_NETDEV_INGRESS and NF_NETDEV_EGRESS).
const (
	netdevIngress hook = 0
	netdevEgress  hook = 1
)

// devices are the names of the interfaces that a chain's hook is on; none if it is
// on all.
func devices(hook attributes) (names []string) {
	if hook.has(unix.NFTA_HOOK_DEV) {
		names = append(names, hook.text(unix.NFTA_HOOK_DEV))
	}
	_ = hook.get(hookDevices).each(func(_ uint16, data []byte) error {
		if name := unix.ByteSliceToString(data); !slices.Contains(names, name) {
			names = append(names, name)
		}
		return nil
	})
	return names
}

// hookDevices is the list of the interfaces (linux/netfilter/nf_tables.h,
// NFTA_HOOK_DEVS).
const hookDevices = 4

// missing tells whether an error is what a kernel without nftables returns.
func missing(err error) bool {
	return errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EPROTONOSUPPORT) || errors.Is(err, unix.EINVAL)
}

// generation returns a number that is different after every change of the
// rules.
func (t *tables) generation() (uint32, error) {
	told, err := t.ask(unix.NFT_MSG_GETGEN, unix.NFPROTO_UNSPEC, 0, nil)
	if err != nil || len(told) == 0 {
		return 0, err
	}
	return told[0].number(unix.NFTA_GEN_ID), nil
}

func key(family byte, names ...string) string { return fmt.Sprint(family, names) }

// dormant returns the tables that are switched off.
func (t *tables) dormant() (map[string]bool, error) {
	all, err := t.ask(unix.NFT_MSG_GETTABLE, unix.NFPROTO_UNSPEC, unix.NLM_F_DUMP, nil)
	if err != nil {
		return nil, err
	}
	off := map[string]bool{}
	for _, m := range all {
		if m.number(unix.NFTA_TABLE_FLAGS)&unix.NFT_TABLE_F_DORMANT != 0 {
			off[key(m.family, m.text(unix.NFTA_TABLE_NAME))] = true
		}
	}
	return off, nil
}

func (t *tables) base(c message, h hook) (base, error) {
	table, name := c.text(unix.NFTA_CHAIN_TABLE), c.text(unix.NFTA_CHAIN_NAME)
	b := base{
		hook:  h,
		drop:  Drop{Family: families[c.family], Table: table, Base: name},
		chain: func(name string) ([]rule, error) { return t.rules(c.family, table, name) },
	}
	if c.number(unix.NFTA_CHAIN_POLICY) == 0 && c.has(unix.NFTA_CHAIN_POLICY) { // NF_DROP
		b.policy = drops
	}
	var err error
	b.rules, err = b.chain(name)
	return b, err
}

// rules returns the rules of a chain.
func (t *tables) rules(family byte, table, chain string) (rules []rule, err error) {
	id := key(family, table, chain)
	if rules, known := t.chains[id]; known {
		return rules, nil
	}
	all, err := t.ask(unix.NFT_MSG_GETRULE, family, unix.NLM_F_DUMP,
		attributes{}.with(unix.NFTA_RULE_TABLE, table).with(unix.NFTA_RULE_CHAIN, chain))
	if err != nil {
		return nil, fmt.Errorf("list the rules of chain %s of table %s: %w", chain, table, err)
	}
	for _, m := range all {
		r := &nftRule{tables: t, family: family, table: table}
		err := m.get(unix.NFTA_RULE_EXPRESSIONS).each(func(_ uint16, data []byte) error {
			e := attributes(data)
			r.expressions = append(r.expressions, expression{e.text(unix.NFTA_EXPR_NAME), e.get(unix.NFTA_EXPR_DATA)})
			return nil
		})
		if err != nil {
			return nil, fmt.Errorf("read a rule of chain %s of table %s: %w", chain, table, err)
		}
		rules = append(rules, r)
	}
	t.chains[id] = rules
	return rules, nil
}

// set is a set or a map.
type set struct{ elements []element }

// element is one element of a set. It has the keys of a span, or all keys that
// no other element has. In a map it also has what the keys map to.
type element struct {
	keys    span
	rest    bool
	verdict attributes // nil if there is none
	fields  bool       // its spans are those of each field of the key
	ends    bool       // it begins no span, the one before has ended
}

// set reads a set.
func (t *tables) set(family byte, table, name string) (*set, error) {
	id := key(family, table, name)
	if s := t.sets[id]; s != nil {
		return s, nil
	}
	told, err := t.ask(unix.NFT_MSG_GETSET, family, 0, attributes{}.with(unix.NFTA_SET_TABLE, table).with(unix.NFTA_SET_NAME, name))
	if err != nil || len(told) == 0 {
		return nil, fmt.Errorf("read set %s of table %s: %w", name, table, err)
	}
	all, err := t.ask(unix.NFT_MSG_GETSETELEM, family, unix.NLM_F_DUMP,
		attributes{}.with(unix.NFTA_SET_ELEM_LIST_TABLE, table).with(unix.NFTA_SET_ELEM_LIST_SET, name))
	if err != nil {
		return nil, fmt.Errorf("list the elements of set %s of table %s: %w", name, table, err)
	}
	s := &set{}
	for _, m := range all {
		err := m.get(unix.NFTA_SET_ELEM_LIST_ELEMENTS).each(func(_ uint16, data []byte) error { s.add(data); return nil })
		if err != nil {
			return nil, fmt.Errorf("read set %s of table %s: %w", name, table, err)
		}
	}
	if told[0].number(unix.NFTA_SET_FLAGS)&unix.NFT_SET_INTERVAL != 0 {
		s.pair()
	}
	t.sets[id] = s
	return s, nil
}

const (
	elementKeyEnd   = 10 // linux/netfilter/nf_tables.h, NFTA_SET_ELEM_KEY_END
	elementCatchall = 2  // NFT_SET_ELEM_CATCHALL
)

func (s *set) add(a attributes) {
	flags := a.number(unix.NFTA_SET_ELEM_FLAGS)
	e := element{rest: flags&elementCatchall != 0, ends: flags&unix.NFT_SET_ELEM_INTERVAL_END != 0}
	e.keys.lo = a.value(unix.NFTA_SET_ELEM_KEY)
	e.keys.hi = e.keys.lo
	if a.has(elementKeyEnd) {
		e.keys.hi, e.fields = a.value(elementKeyEnd), true
	}
	e.verdict = a.get(unix.NFTA_SET_ELEM_DATA).get(unix.NFTA_DATA_VERDICT)
	s.elements = append(s.elements, e)
}

// pair turns elements into spans. Until then each says where an interval
// begins, or that the one before has ended.
func (s *set) pair() {
	if slices.ContainsFunc(s.elements, func(e element) bool { return e.fields }) {
		return // they are spans already
	}
	slices.SortStableFunc(s.elements, func(a, b element) int { return slices.Compare(a.keys.lo, b.keys.lo) })
	var spans []element
	for i, e := range s.elements {
		if e.rest {
			spans = append(spans, e)
			continue
		}
		if e.ends {
			continue
		}
		e.keys.hi = slices.Repeat([]byte{0xff}, len(e.keys.lo))
		if i+1 < len(s.elements) && !s.elements[i+1].rest {
			e.keys.hi = before(s.elements[i+1].keys.lo)
		}
		spans = append(spans, e)
	}
	s.elements = spans
}

// before returns the number before b, which isn't 0.
func before(b []byte) []byte {
	b = slices.Clone(b)
	for i := len(b) - 1; i >= 0; i-- {
		b[i]--
		if b[i] != 0xff {
			break
		}
	}
	return b
}

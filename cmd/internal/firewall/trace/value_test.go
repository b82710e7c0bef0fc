package trace

import (
	"net/netip"
	"testing"
)

func prefix(s string) span { return addresses(netip.MustParsePrefix(s)) }

// peers is an unknown address of the overlay that isn't this host's.
func peers() value {
	return Range{netip.MustParsePrefix("10.42.0.0/16"), netip.MustParsePrefix("10.42.7.0/24")}.value()
}

func TestValueIn(t *testing.T) {
	for _, c := range []struct {
		what string
		v    value
		s    span
		want tri
	}{
		{"the same", peers(), prefix("10.42.0.0/16"), yes},
		{"more", peers(), prefix("10.0.0.0/8"), yes},
		{"all", peers(), prefix("0.0.0.0/0"), yes},
		{"elsewhere", peers(), prefix("10.43.0.0/16"), no},
		{"a part", peers(), prefix("10.42.8.0/24"), maybe},
		{"the part that is out", peers(), prefix("10.42.7.0/24"), no},
		{"within that", peers(), prefix("10.42.7.9/32"), no},
		{"more than that", peers(), prefix("10.42.0.0/21"), maybe},
		{"another length", peers(), prefix("2001:db8::/32"), maybe},
		{"unknown", value{}, prefix("10.42.0.0/16"), maybe},
		{"exact", exactly([]byte{10, 42, 1, 1}), prefix("10.42.0.0/16"), yes},
		{"not that", port{anything(4), value{}}.name, span{make([]byte, 4), []byte{0xff, 0xff, 0xff, 0xff}}, yes},
	} {
		if got := c.v.in(c.s); got != c.want {
			t.Errorf("%s: %d, want %d", c.what, got, c.want)
		}
	}
}

func TestValueMasked(t *testing.T) {
	mask := func(bits int) []byte {
		p := netip.PrefixFrom(netip.IPv4Unspecified(), bits)
		hi := addresses(p).hi
		for i := range hi {
			hi[i] = ^hi[i]
		}
		return hi
	}
	none := make([]byte, 4)
	for _, c := range []struct {
		what string
		v    value
		mask []byte
		is   []byte
		want tri
	}{
		{"its network", peers(), mask(16), []byte{10, 42, 0, 0}, yes},
		{"a wider one", peers(), mask(8), []byte{10, 0, 0, 0}, yes},
		{"another", peers(), mask(16), []byte{10, 43, 0, 0}, no},
		{"a part", peers(), mask(24), []byte{10, 42, 8, 0}, maybe},
		{"the part that is out", peers(), mask(24), []byte{10, 42, 7, 0}, no},
		{"some of what is out", peers(), mask(25), []byte{10, 42, 7, 128}, no},
		{"more than what is out", peers(), mask(23), []byte{10, 42, 6, 0}, maybe},
		{"no network's mask", peers(), []byte{0, 0, 0, 255}, []byte{0, 0, 0, 1}, maybe},
		{"exact bits", exactly(native(0x4002)), native(0x4000), native(0x4000), yes},
		{"other bits", exactly(native(2)), native(0x4000), native(0x4000), no},
	} {
		if got := c.v.masked(c.mask, none).is(c.is); got != c.want {
			t.Errorf("%s: %d, want %d", c.what, got, c.want)
		}
	}
}

// Nftables loads no more bytes of an address than it compares.
func TestValueSlice(t *testing.T) {
	for _, c := range []struct {
		what      string
		v         value
		offset, n int
		is        []byte
		want      tri
	}{
		{"the network's bytes", peers(), 0, 2, []byte{10, 42}, yes},
		{"the part that is out", peers(), 0, 3, []byte{10, 42, 7}, no},
		{"a part", peers(), 0, 3, []byte{10, 42, 8}, maybe},
		{"the last byte", peers(), 3, 1, []byte{1}, maybe},
		{"of a name", Interface{Name: "docker0"}.port().name, 0, 6, []byte("docker"), yes},
		{"of another name", Interface{Name: "eth0"}.port().name, 0, 6, []byte("docker"), no},
		{"of the name that it isn't", Interface{Name: "flannel.1", Not: true}.port().name, 0, 16, name("flannel.1"), no},
		{"of what that begins with", Interface{Name: "flannel.1", Not: true}.port().name, 0, 7, []byte("flannel"), maybe},
		{"too much", exactly([]byte{1}), 0, 2, []byte{1, 0}, maybe},
	} {
		if got := c.v.slice(c.offset, c.n).is(c.is); got != c.want {
			t.Errorf("%s: %d, want %d", c.what, got, c.want)
		}
	}
}

// A set of intervals has elements that begin an interval and elements that end
// one.
func TestSetPairs(t *testing.T) {
	s := &set{elements: []element{
		{keys: span{lo: []byte{10, 0}}}, {keys: span{lo: []byte{11, 0}}, ends: true}, {keys: span{lo: []byte{200, 0}}}, {rest: true},
	}}
	s.pair()
	for _, c := range []struct {
		key  []byte
		want tri
	}{{[]byte{9, 255}, no}, {[]byte{10, 0}, yes}, {[]byte{10, 255}, yes}, {[]byte{11, 0}, no}, {[]byte{255, 255}, yes}} {
		is := no
		for _, e := range s.elements {
			if !e.rest {
				is = is.or(exactly(c.key).in(e.keys))
			}
		}
		if is != c.want {
			t.Errorf("%v: %d, want %d", c.key, is, c.want)
		}
	}
}

// A message that is cut off is no rule.
func TestAttributes(t *testing.T) {
	whole := attributes{}.with(1, "table").with(2|1<<15, "chain")
	if whole.text(1) != "table" || whole.text(2) != "chain" || whole.has(3) || whole.number(1) != 0 {
		t.Errorf("it has %q, %q", whole.text(1), whole.text(2))
	}
	for n := 1; n <= len(whole); n++ {
		count := 0
		err := whole[:n].each(func(uint16, []byte) error { count++; return nil })
		if first, both := n >= 10 && n <= 12, n >= 22; (err == nil) != (first || both) || both != (count == 2) {
			t.Errorf("the first %d bytes are %d attributes, %v", n, count, err)
		}
		if whole[:n].has(2) != (n >= 22) {
			t.Errorf("the first %d bytes have the second: %t", n, n < 22)
		}
	}
}

// A table of iptables-legacy that is cut off is refused.
func TestLegacyCutOff(t *testing.T) {
	for _, v6 := range []bool{false, true} {
		for n := 1; n < 400; n += 7 {
			table := &legacyTable{v6: v6}
			if err := table.parse(make([]byte, n)); err == nil {
				t.Errorf("%d zero bytes are %d entries", n, len(table.entries))
			}
		}
	}
}

// fixed is a rule for the walker's tests that always is the same step.
type fixed step

func (f fixed) steps(*state) ([]step, error) { return []step{step(f)}, nil }
func (f fixed) text() string                 { return "fixed" }

func TestWalk(t *testing.T) {
	chains := map[string][]rule{
		"accepts": {fixed{match: yes, verdict: accepts}},
		"drops":   {fixed{match: yes, verdict: drops}},
		"may":     {fixed{match: maybe, verdict: accepts}, fixed{match: yes, verdict: drops}},
		"returns": {fixed{match: yes, verdict: returns}, fixed{match: yes, verdict: drops}},
		"perhaps": {fixed{match: maybe, verdict: returns}, fixed{match: yes, verdict: drops}},
		"loops":   {fixed{match: yes, verdict: jumps, chain: "loops"}},
	}
	for _, c := range []struct {
		what   string
		rules  []rule
		policy verdict
		at     string // where it is surely dropped
		may    bool   // it may have been accepted before
		err    bool
	}{
		{what: "nothing"},
		{what: "the policy", policy: drops, at: "base"},
		{what: "accepted before the policy", rules: []rule{fixed{match: yes, verdict: accepts}}, policy: drops},
		{what: "perhaps accepted", rules: []rule{fixed{match: maybe, verdict: accepts}}, policy: drops, at: "base", may: true},
		{what: "perhaps dropped", rules: []rule{fixed{match: maybe, verdict: drops}}},
		{what: "a jump", rules: []rule{fixed{match: yes, verdict: jumps, chain: "drops"}}, at: "drops"},
		{what: "a jump perhaps", rules: []rule{fixed{match: maybe, verdict: jumps, chain: "drops"}}},
		{what: "accepted after a jump perhaps", rules: []rule{fixed{match: maybe, verdict: jumps, chain: "accepts"}}, policy: drops, at: "base", may: true},
		{what: "a chain that may accept", rules: []rule{fixed{match: yes, verdict: jumps, chain: "may"}}, at: "may", may: true},
		{what: "a chain that returns", rules: []rule{fixed{match: yes, verdict: jumps, chain: "returns"}, fixed{match: yes, verdict: accepts}}},
		{what: "a chain that may return", rules: []rule{fixed{match: yes, verdict: jumps, chain: "perhaps"}, fixed{match: yes, verdict: accepts}}},
		{what: "goto doesn't come back", rules: []rule{fixed{match: yes, verdict: goesTo, chain: "returns"}, fixed{match: yes, verdict: drops}}},
		{what: "goto and the policy", rules: []rule{fixed{match: yes, verdict: goesTo, chain: "returns"}}, policy: drops, at: "base"},
		{what: "goto perhaps", rules: []rule{fixed{match: maybe, verdict: goesTo, chain: "returns"}, fixed{match: yes, verdict: drops}}},
		{what: "somebody else decides", rules: []rule{fixed{match: yes, verdict: leaves}}, policy: drops},
		{what: "for ever", rules: []rule{fixed{match: yes, verdict: jumps, chain: "loops"}}, err: true},
	} {
		w := walker{base: base{
			drop: Drop{Base: "base"}, rules: c.rules, policy: c.policy,
			chain: func(name string) ([]rule, error) { return chains[name], nil },
		}}
		at, err := w.run()
		got := ""
		if at != nil {
			got = at.Chain
		}
		if got != c.at || w.mayAccept != c.may && c.at != "" || (err != nil) != c.err {
			t.Errorf("%s: dropped at %q, perhaps accepted before: %t, %v", c.what, got, w.mayAccept, err)
		}
	}
}

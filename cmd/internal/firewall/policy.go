package firewall

import (
	"net/netip"
	"slices"
)

// Policy says which rules a host has for one address family.
type Policy struct {
	// Network is the overlay's and Subnet the host's part of it, of the same
	// family.
	Network, Subnet netip.Prefix
	// Masquerade gives what leaves the overlay, and what comes into it from
	// elsewhere, an address of the host as its source.
	Masquerade bool
	// RandomFully picks the source ports of masqueraded connections at random,
	// where iptables can, so that two of them seldom want the same.
	RandomFully bool
	// Forward accepts the overlay's packets where the host forwards.
	Forward bool
}

// Family is an address family.
type Family int

// The two families.
const (
	IPv4 Family = iota
	IPv6
)

// FamilyOf returns the family of a network.
func FamilyOf(p netip.Prefix) Family {
	if p.Addr().Is4() {
		return IPv4
	}
	return IPv6
}

// multicast is what never gets another source.
func (f Family) multicast() netip.Prefix {
	if f == IPv4 {
		return netip.PrefixFrom(netip.AddrFrom4([4]byte{224}), 4)
	}
	return netip.PrefixFrom(netip.AddrFrom16([16]byte{0xff}), 8)
}

// mark is the bit by which others, Kubernetes among them, ask for masquerading
// of their own.
const mark = 0x4000

type verdict int

const (
	accepts verdict = iota
	returns
	masquerades
	masqueradesRandomly
)

// rule is what one rule says. A zero prefix matches everything.
type rule struct {
	marked         bool // only packets that carry mark
	src, dst       netip.Prefix
	notSrc, notDst bool // all but src, all but dst
	then           verdict
}

// shared tells rules that every network has alike: they come first and stay
// while any other rule does.
func (r rule) shared() bool { return r.marked }

// purpose is what a chain is for.
type purpose int

const (
	masquerading purpose = iota
	forwarding
)

// chain is what one chain is to have.
type chain struct {
	purpose purpose
	want    []rule
	// earlier are rules that a run with other flags or another subnet may have
	// left.
	earlier []rule
}

// chains returns what the host is to have now, given what it may have had. A
// policy whose Network isn't valid is nothing.
func chains(now Policy, before ...Policy) []chain {
	masq, forward := chain{purpose: masquerading}, chain{purpose: forwarding}
	for _, p := range append([]Policy{now}, before...) {
		if p.Network.IsValid() && p.Subnet.IsValid() {
			masq.earlier = append(append(masq.earlier, p.masquerade(masquerades)...), p.masquerade(masqueradesRandomly)...)
		}
		if p.Network.IsValid() {
			forward.earlier = append(forward.earlier, p.forward()...)
		}
	}
	if now.Masquerade && now.RandomFully {
		masq.want = now.masquerade(masqueradesRandomly)
	} else if now.Masquerade {
		masq.want = now.masquerade(masquerades)
	}
	if now.Forward {
		forward.want = now.forward()
	}
	return []chain{masq, forward}
}

// masquerade returns flannel's rules, in order.
func (p Policy) masquerade(then verdict) []rule {
	return []rule{
		{marked: true, then: returns},
		// Between the overlay's containers the source stays.
		{src: p.Subnet, dst: p.Network, then: returns},
		{src: p.Network, dst: p.Subnet, then: returns},
		// What was let in to our own containers keeps its source too.
		{src: p.Network, notSrc: true, dst: p.Subnet, then: returns},
		{src: p.Network, dst: FamilyOf(p.Network).multicast(), notDst: true, then: then},
		// Answers to what we send to other hosts' containers must come back to
		// us, so they get an address of the overlay.
		{src: p.Network, notSrc: true, dst: p.Network, then: then},
	}
}

func (p Policy) forward() []rule {
	return []rule{{src: p.Network, then: accepts}, {dst: p.Network, then: accepts}}
}

// plan compares a chain with what it has, in order; key tells by which text two
// rules are the same. It returns the places of what must go, and what must be
// appended then: nothing of both when all is well.
func (c chain) plan(have []string, key func(rule) string) (remove []int, add []rule) {
	common, ours := c.keys(key)
	var want []rule
	early := map[string]bool{} // common, and before all of ours
	for _, r := range c.want {
		if !r.shared() {
			want = append(want, r)
		}
	}
	right := true
	for at, h := range have {
		switch {
		case common[h] && len(remove) == 0:
			early[h] = true
		case ours[h]:
			right = right && len(remove) < len(want) && key(want[len(remove)]) == h
			remove = append(remove, at)
		}
	}
	for _, r := range c.want {
		if r.shared() && !early[key(r)] {
			add = append(add, r)
		}
	}
	if right && len(remove) == len(want) && len(add) == 0 {
		return nil, nil
	}
	return remove, append(add, want...)
}

// keys tells the rules that every network has alike from those that are this
// network's alone, by their keys.
func (c chain) keys(key func(rule) string) (common, ours map[string]bool) {
	common, ours = map[string]bool{}, map[string]bool{}
	for _, r := range append(slices.Clone(c.earlier), c.want...) {
		if r.shared() {
			common[key(r)] = true
		} else {
			ours[key(r)] = true
		}
	}
	return common, ours
}

// idle tells whether the chain has nothing to do: none of its rules is wanted,
// and have, what remains in it, is at most what every network has alike.
func (c chain) idle(have []string, key func(rule) string) bool {
	common, ours := c.keys(key)
	return len(c.want) == 0 && !slices.ContainsFunc(have, func(h string) bool { return !common[h] && !ours[h] })
}

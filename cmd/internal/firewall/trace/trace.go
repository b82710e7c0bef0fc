package trace

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
)

// Packet is the first packet of a new connection that the host forwards. It
// goes straight to the server's address: no address is translated, and no mark
// is set.
type Packet struct {
	Src, Dst Range
	// In and Out are the interfaces by which the packet comes and goes.
	In, Out Interface
	// Each also asks for single addresses of Dst to which packets are dropped
	// before they are routed.
	Each bool
}

// Range is an unknown address in an IPv4 or IPv6 prefix.
type Range struct {
	In netip.Prefix
	// NotIn is a part of In that the address isn't in. It is invalid if there is
	// none.
	NotIn netip.Prefix
}

// Interface is what is known of an interface: it is the one with this name and
// number or, with Not, it is any other one.
type Interface struct {
	Name  string
	Index int
	Not   bool
}

// Drop is a place where the rules drop or reject a packet.
type Drop struct {
	// Legacy says that a table of iptables-legacy does it, not one of nftables.
	Legacy bool
	// Family is nftables' word for the table's family: "ip", "ip6" or "inet".
	Family string
	Table  string
	// Base is the base chain, with which the kernel begins. Chain is the chain
	// that drops.
	Base, Chain string
	// Only is the one address of Dst to which packets are dropped. It is invalid
	// if they are dropped to all.
	Only netip.Addr
	// Rule is the text of the rule, as far as it is understood. It is empty if
	// the policy of Base drops.
	Rule string
	// Some says that an earlier rule might have accepted the packet, depending on
	// its ports and protocol. Only a TCP connection to a port that no rule names
	// is surely dropped.
	Some bool
}

// hook is a point at which the kernel has packets judged (linux/netfilter.h,
// enum nf_inet_hooks).
type hook int

const (
	preRouting  hook = 0
	input       hook = 1
	forward     hook = 2
	output      hook = 3
	postRouting hook = 4
	ingress     hook = 5 // of family inet; netdev's has number 0
	egress      hook = 6 // of family netdev, whose number is 1
)

// hooks are the hooks that a forwarded packet comes to and at which rules
// usually drop.
var hooks = []hook{preRouting, forward}

// chain returns iptables' name for the hook's chain.
func (h hook) chain() string {
	return [...]string{preRouting: "PREROUTING", input: "INPUT", forward: "FORWARD", output: "OUTPUT", postRouting: "POSTROUTING", ingress: "INGRESS", egress: "EGRESS"}[h]
}

// mostAddresses is how many single addresses are looked at.
const mostAddresses = 256

// Rules are the rules of a network namespace. Findings are remembered until the
// rules change. The zero value remembers nothing. Only one goroutine at a time
// may use it.
type Rules struct {
	generation uint32 // of nftables' rules
	known      map[Packet][]Drop
}

// Forward takes packets that the host is to forward. It tells, for each in
// turn, where the rules drop it. Each chain of a hook has its say, so there may
// be several places. Forward looks at the calling thread's network namespace.
// The drops are valid even with an error, which says what could not be read.
func (r *Rules) Forward(packets ...Packet) ([][]Drop, error) {
	drops, err := r.nftables(packets)
	errs := []error{err}
	legacy := map[bool][]base{}
	for i, p := range packets {
		v6 := !p.Src.In.Addr().Is4()
		if _, read := legacy[v6]; !read {
			if legacy[v6], err = legacyBases(v6, hooks, legacyTables); err != nil {
				errs = append(errs, err)
			}
		}
		more, err := judge(legacy[v6], p)
		errs, drops[i] = append(errs, err), append(drops[i], more...)
	}
	return drops, errors.Join(errs...)
}

// nftables follows the packets through nftables' chains.
func (r *Rules) nftables(packets []Packet) ([][]Drop, error) {
	drops := make([][]Drop, len(packets))
	t, err := openTables()
	if err != nil {
		return drops, err
	}
	defer t.close()
	generation, err := t.generation()
	if missing(err) {
		return drops, nil
	}
	if err != nil {
		return drops, fmt.Errorf("read nftables' generation: %w", err)
	}
	if r.generation != generation || r.known == nil {
		r.generation, r.known = generation, map[Packet][]Drop{}
	}
	var errs []error
	for i, p := range packets {
		found, known := r.known[p]
		if !known {
			bases, err := t.bases(!p.Src.In.Addr().Is4(), forwards)
			if found, err = judge(bases, p, err); err != nil {
				errs = append(errs, err)
			} else {
				r.known[p] = found
			}
		}
		drops[i] = slices.Clone(found)
	}
	return drops, errors.Join(errs...)
}

// judge follows the packet through base chains. Its error includes those in
// before.
func judge(bases []base, p Packet, before ...error) (drops []Drop, err error) {
	errs := before
	for _, b := range bases {
		d, err := b.judge(p)
		if err != nil {
			errs = append(errs, fmt.Errorf("chain %s of table %s: %w", b.drop.Base, b.drop.Table, err))
		}
		drops = append(drops, d...)
	}
	return drops, errors.Join(errs...)
}

// judge follows the packet through a base chain.
func (b base) judge(p Packet) ([]Drop, error) {
	var seen []span
	for _, common := range []bool{false, true} {
		w := walker{base: b, packet: newState(p, b.hook, common)}
		if p.Each && b.hook == preRouting {
			w.packet.dst.seen = &seen
		}
		end, err := w.run()
		if err != nil {
			return nil, err
		}
		if end != nil && !w.mayAccept {
			end.Some = common
			return []Drop{*end}, nil
		}
	}
	return b.each(p, seen)
}

// each follows packets to single addresses through the chain. The addresses are
// the ones that its rules have compared.
func (b base) each(p Packet, seen []span) (drops []Drop, err error) {
	done := map[netip.Addr]bool{}
	for _, s := range seen {
		a, ok := netip.AddrFromSlice(s.lo)
		if !ok || done[a] || !slices.Equal(s.lo, s.hi) || len(done) == mostAddresses {
			continue
		}
		done[a] = true
		w := walker{base: b, packet: newState(p, b.hook, false)}
		w.packet.dst = exactly(s.lo)
		end, err := w.run()
		if err != nil {
			return drops, err
		}
		if end != nil && !w.mayAccept {
			end.Only = a
			drops = append(drops, *end)
		}
	}
	return drops, nil
}

package trace

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"
)

// Tunnel is the UDP datagrams between the host and others that carry packets of
// theirs.
type Tunnel struct {
	// Local is the host's address. Port is where datagrams go to, both ways; they
	// come from any port that isn't reserved.
	Local netip.Addr
	Port  uint16
	// Link is the interface by which they come and go.
	Link Interface
	// Remotes are the other hosts' addresses, of Local's family.
	Remotes []netip.Addr
}

// Effect is what rules do with datagrams.
type Effect int

// The effects.
const (
	// Dropped: the datagrams are dropped or rejected.
	Dropped Effect = iota
	// Diverted: something else decides, such as a program.
	Diverted
	// Translated: they get another address or port.
	Translated
	// Named: a rule that names their port does something else with them than to
	// accept them.
	Named
)

// Concern is a place where rules do something with datagrams.
type Concern struct {
	Drop
	Effect Effect
	// May says that the rule may or may not match.
	May bool
	// Out says that it concerns datagrams that go out, not those that come in.
	Out bool
}

// Datagrams tells what the rules do with a host's datagrams. Findings are
// remembered until the rules or the datagrams change. The zero value remembers
// nothing. Only one goroutine at a time may use it.
type Datagrams struct {
	generation uint32 // of nftables' rules
	tunnel     Tunnel
	known      []Concern // nil if nothing is
	whole      bool      // known is
}

// Concerns tells where the rules of the calling thread's network namespace do more
// with a tunnel's datagrams than to accept them, on their way from the interface to
// the socket and back. Those who count all packets, or mark them, aren't told of;
// neither is who gives them the interface's own address, or leaves them out of the
// tracking of connections. The concerns are valid even with an error, which says
// what could not be read.
func (d *Datagrams) Concerns(t Tunnel) ([]Concern, error) {
	found, err := d.nftables(t)
	errs := []error{err}
	legacy, err := legacyBases(!t.Local.Is4(), datagramHooks, append([]string{legacyNAT}, legacyTables...))
	errs = append(errs, err)
	more, err := survey(legacy, t)
	return append(slices.Clone(found), more...), errors.Join(append(errs, err)...)
}

// datagramHooks are the hooks of datagrams to and from sockets of the host.
var datagramHooks = []hook{preRouting, input, output, postRouting}

// meets are the chains that the tunnel's datagrams meet.
func (t Tunnel) meets(_ byte, h hook, _ string, devices []string) bool {
	if h == ingress || h == egress {
		return len(devices) == 0 || slices.Contains(devices, t.Link.Name)
	}
	return slices.Contains(datagramHooks, h)
}

func (d *Datagrams) nftables(t Tunnel) ([]Concern, error) {
	tables, err := openTables()
	if err != nil {
		return nil, err
	}
	defer tables.close()
	generation, err := tables.generation()
	if missing(err) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read nftables' generation: %w", err)
	}
	if d.whole && d.generation == generation && d.tunnel.equal(t) {
		return d.known, nil
	}
	bases, err := tables.bases(!t.Local.Is4(), t.meets)
	found, surveyed := survey(bases, t)
	err = errors.Join(err, surveyed)
	d.generation, d.tunnel, d.known, d.whole = generation, t, found, err == nil
	return found, err
}

func (t Tunnel) equal(o Tunnel) bool {
	return t.Local == o.Local && t.Port == o.Port && t.Link == o.Link && slices.Equal(t.Remotes, o.Remotes)
}

// survey follows the datagrams through base chains.
func survey(bases []base, t Tunnel) (found []Concern, err error) {
	var errs []error
	packets := map[bool]*state{}
	for _, out := range []bool{false, true} {
		packets[out] = t.state(out)
	}
	for _, b := range bases {
		s := *packets[b.hook.goesOut()]
		v := surveyor{base: b, packet: &s, named: new(bool)}
		s.sport.met, s.dport.met = v.named, v.named
		if err := v.run(); err != nil {
			errs = append(errs, fmt.Errorf("chain %s of table %s: %w", b.drop.Base, b.drop.Table, err))
		}
		found = append(found, v.found...)
	}
	return found, errors.Join(errs...)
}

// goesOut tells whether datagrams come to the hook on their way out.
func (h hook) goesOut() bool { return h == output || h == postRouting || h == egress }

// firstPort is the first port that isn't reserved (RFC 6335, section 6).
const firstPort = 1024

// state is a datagram that goes out, or comes in.
func (t Tunnel) state(out bool) *state {
	own, link := exactly(t.Local.AsSlice()), t.Link.port()
	nowhere := port{exactly(name("")), exactly(native(0))}
	remotes := [][]byte{t.Local.AsSlice()} // where there are none, of the same network
	if len(t.Remotes) > 0 {
		remotes = remotes[:0]
		for _, a := range t.Remotes {
			remotes = append(remotes, a.AsSlice())
		}
	}
	s := &state{
		v6: !t.Local.Is4(), src: oneOf(remotes), dst: own, in: link, out: nowhere,
		protocol: exactly([]byte{udp}), flags: anything(1),
		sport: value{span: span{network(firstPort), network(0xffff)}}, dport: exactly(network(t.Port)),
		mark: exactly(native(0)), connmark: exactly(native(0)),
		ctState: exactly(native(stateNew)), ctStatus: exactly(native(0)),
		srcType: unix.RTN_UNICAST, dstType: unix.RTN_LOCAL, sameWay: true,
	}
	if out {
		s.src, s.dst, s.in, s.out = s.dst, s.src, nowhere, link
		s.srcType, s.dstType, s.sameWay = unix.RTN_LOCAL, unix.RTN_UNICAST, false
	}
	return s
}

// surveyor follows a datagram through a base chain and takes note of what rules may
// do with it.
type surveyor struct {
	base   base
	packet *state
	named  *bool // the rule at hand compares the datagram's ports
	ended  bool  // the datagram's way may have ended before
	found  []Concern
}

func (v *surveyor) run() error {
	decided, err := v.walk(v.base.drop.Base, v.base.rules, false, true, 0)
	if err != nil || decided || v.base.policy != drops {
		return err
	}
	at := v.base.drop
	at.Chain = at.Base
	v.note(Concern{Drop: at, Effect: Dropped, May: v.ended})
	return nil
}

// walk follows the datagram through a chain. It tells whether the datagram's way
// surely ends there. named says that the chain is one for the port, and certain that
// the datagram surely comes to it.
func (v *surveyor) walk(chain string, rules []rule, named, certain bool, depth int) (decided bool, err error) {
	if depth > deepest {
		return false, errDeep
	}
	leaves := false // it may have left the chain, undecided
	for _, r := range rules {
		s := v.packet
		s.matched, s.acts, s.translates, s.untracks, *v.named = no, false, false, false, false
		steps, err := r.steps(s)
		if err != nil {
			return false, err
		}
		if s.matched == no {
			continue
		}
		named := named || *v.named
		v.judge(chain, r, steps, named, certain && !leaves)
		for _, st := range steps {
			if st.match == no {
				continue
			}
			ends, gone, err := v.take(st, named, certain && !leaves && st.match == yes, depth)
			switch {
			case err != nil:
				return false, err
			case st.match == yes && ends:
				return !leaves, nil
			case st.match == yes && gone:
				return false, nil
			}
			leaves, v.ended = leaves || gone, v.ended || ends
			if st.match == yes {
				break
			}
		}
	}
	return false, nil
}

// take follows a step. It tells whether the datagram's way ends with it, and else
// whether the datagram leaves the chain.
func (v *surveyor) take(st step, named, certain bool, depth int) (ends, gone bool, err error) {
	switch st.verdict {
	case returns:
		return false, true, nil
	case jumps, goesTo:
		rules, err := v.base.chain(st.chain)
		if err != nil {
			return false, false, err
		}
		ends, err := v.walk(st.chain, rules, named, certain, depth+1)
		return ends, st.verdict == goesTo && !ends, err
	}
	return true, false, nil
}

// judge takes note of what a rule does that matches the datagram, or may.
func (v *surveyor) judge(chain string, r rule, steps []step, named, certain bool) {
	at := v.base.drop
	at.Chain, at.Rule = chain, r.text()
	c := Concern{Drop: at, May: !certain || v.ended || v.packet.matched != yes}
	is := func(x verdict) bool {
		return slices.ContainsFunc(steps, func(s step) bool { return s.match != no && s.verdict == x })
	}
	switch {
	case v.packet.translates:
		c.Effect = Translated
	case is(drops):
		c.Effect = Dropped
	case is(leaves):
		c.Effect = Diverted
	case named && (v.packet.acts || len(steps) == 0 && !v.packet.untracks):
		c.Effect = Named
	default:
		return
	}
	v.note(c)
}

func (v *surveyor) note(c Concern) {
	c.Out = v.base.hook.goesOut()
	if !slices.Contains(v.found, c) {
		v.found = append(v.found, c)
	}
}

package trace

import "errors"

// tri says whether something holds.
type tri int

const (
	no tri = iota
	maybe
	yes
)

func (t tri) not() tri { return yes - t }

func (t tri) and(o tri) tri { return min(t, o) }

func (t tri) or(o tri) tri { return max(t, o) }

func sure(is bool) tri {
	if is {
		return yes
	}
	return no
}

// verdict is what a rule does with what it matches.
type verdict int

const (
	accepts verdict = iota
	drops
	jumps
	goesTo
	returns
	// leaves hands the packet to something else that decides, such as a program.
	leaves
)

// step is what may become of a packet at a rule.
type step struct {
	match   tri
	verdict verdict
	chain   string // where it jumps or goes to
}

// rule is one rule of a chain.
type rule interface {
	// steps returns what may become of the packet, in order. Nothing follows the
	// first step that is sure. It also notes in the state what the rule changes
	// about the packet.
	steps(*state) ([]step, error)
	// text returns the rule in the words of its tool.
	text() string
}

// base is a base chain, one with which the kernel begins.
type base struct {
	hook  hook
	drop  Drop // with what all drops of the chain have in common
	rules []rule
	// policy is what becomes of packets that no rule decides.
	policy verdict
	// chain returns the rules of a chain that a rule jumps to.
	chain func(name string) ([]rule, error)
}

// deepest is how deeply jumps may be nested. The kernel allows no more
// (nf_tables.h, NFT_JUMP_STACK_SIZE).
const deepest = 16

var errDeep = errors.New("its jumps are nested too deeply")

// walker follows one packet through a base chain.
type walker struct {
	base   base
	packet *state
	// mayAccept says that the packet may have been accepted on the way.
	mayAccept bool
}

// run returns where the packet is dropped, nil if it surely or perhaps isn't.
func (w *walker) run() (*Drop, error) {
	end, err := w.walk(w.base.drop.Base, w.base.rules, true, 0)
	switch {
	case err != nil:
		return nil, err
	case end.at != nil:
		return end.at, nil
	case !end.decided && w.base.policy == drops:
		at := w.base.drop
		at.Chain = at.Base
		return &at, nil
	}
	return nil, nil
}

// end is how a chain ends for a packet that surely comes to it.
type end struct {
	decided bool  // otherwise it falls out of the chain, or may
	at      *Drop // where it is dropped
}

// walk follows the packet through a chain. Unless certain is set, the packet
// may not come to it.
func (w *walker) walk(name string, rules []rule, certain bool, depth int) (end, error) {
	if depth > deepest {
		return end{}, errDeep
	}
	for _, r := range rules {
		steps, err := r.steps(w.packet)
		if err != nil {
			return end{}, err
		}
		for _, s := range steps {
			here := certain && s.match == yes
			e, gone, err := w.take(name, r, s, here, depth)
			if err != nil {
				return end{}, err
			}
			switch {
			case s.match == yes && (e.decided || gone):
				return e, nil
			case gone:
				certain = false // it may have left the chain
			}
			if s.match == yes {
				break
			}
		}
	}
	return end{}, nil
}

// take follows a step. It also tells whether the packet leaves the chain
// undecided.
func (w *walker) take(name string, r rule, s step, certain bool, depth int) (e end, gone bool, err error) {
	switch s.verdict {
	case accepts, leaves:
		if !certain {
			w.mayAccept = true
		}
		return end{decided: true}, false, nil
	case drops:
		e.decided = true
		if certain {
			at := w.base.drop
			at.Chain, at.Rule = name, r.text()
			e.at = &at
		}
		return e, false, nil
	case returns:
		return end{}, true, nil
	}
	rules, err := w.base.chain(s.chain)
	if err != nil {
		return end{}, false, err
	}
	e, err = w.walk(s.chain, rules, certain, depth+1)
	return e, s.verdict == goesTo, err
}

package onlink

import (
	"net/netip"
	"sync/atomic"
	"time"

	"uvxlan/tunnel/nexthop"
)

// Hop is the way to one host of the underlay, shared by all peers behind it.
// Workers read the link and leave word of what they used and what was refused;
// paths decides.
type Hop struct {
	addr    netip.Addr                // immutable
	link    atomic.Pointer[Neighbour] // nil: by VXLAN
	used    atomic.Bool               // packets went to the host, by either path
	refusal atomic.Pointer[refusal]

	// guarded by the mutex of paths
	subnets map[netip.Prefix]struct{}
	known   bool // the underlay was looked at
	next    nexthop.Hop
	path    Path
	retry   time.Time     // when a refused link is tried again; zero if none was
	wait    time.Duration // before that
}

// refusal is why the kernel took no frame for a link.
type refusal struct{ err error }

// Direct is the neighbour to send frames to, nil for VXLAN.
func (h *Hop) Direct() *Neighbour {
	if h == nil {
		return nil
	}
	if !h.used.Load() { // seldom written, so that workers share the line
		h.used.Store(true)
	}
	return h.link.Load()
}

// Neighbour is what Direct is, for who sends nothing by it.
func (h *Hop) Neighbour() *Neighbour {
	if h == nil {
		return nil
	}
	return h.link.Load()
}

// Use marks the host as one that packets go to, so that its MAC is looked after.
func (h *Hop) Use() {
	if h != nil {
		h.used.Store(true)
	}
}

// refuse takes the host off the link, unless it is on another by now.
func (h *Hop) refuse(l *Neighbour, err error) {
	if h.link.CompareAndSwap(l, nil) {
		h.refusal.Store(&refusal{err})
	}
}

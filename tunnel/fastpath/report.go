package fastpath

import (
	"net/netip"

	"uvxlan/tunnel/internal/tcprog"
)

// Report is how a fast path is at a moment.
type Report struct {
	// On says that packets are carried; otherwise Reason says why not.
	On     bool
	Reason string
	// Link is the underlay's interface.
	Link string
	// Attached is how the programs are attached: "tcx" or "clsact", empty if they
	// aren't at the moment.
	Attached string
	// Superpackets says that TCP superpackets to peers with an IPv4 address pass the
	// underlay in VXLAN unsplit; all others are the workers'.
	Superpackets bool
	// Relay is the interface by which TCP superpackets that arrive by VXLAN for a bridge go
	// to lose the tunnel's marks, empty if there is none. Where the kernel needs one and
	// there can't be any, NoRelay says why: such packets are the workers'.
	Relay, NoRelay string
	// Peers is how many of the router's peers the programs have, and Excluded how many
	// they don't have.
	Peers, Excluded int
	// LeftTx and LeftRx count packets of each direction that were left to the workers,
	// by reason. Every reason is there; all are 0 after Close or Release.
	LeftTx, LeftRx map[string]uint64
}

// Report tells how the fast path is.
func (f *FastPath) Report() Report {
	f.mu.Lock()
	defer f.mu.Unlock()
	r := Report{
		On: f.offLocked() == "", Reason: f.offLocked(), Link: f.link.name, Attached: f.attached.kind(),
		Superpackets: f.view.superpackets && f.locals[0].Addr().Is4(), NoRelay: f.relay.why,
		LeftTx: map[string]uint64{}, LeftRx: map[string]uint64{},
	}
	if f.relay.relay != nil {
		r.Relay = f.relay.name
	}
	for _, m := range f.members {
		if m.reason == "" {
			r.Peers++
		} else {
			r.Excluded++
		}
	}
	var left tcprog.Left
	if f.ended == "" {
		var err error
		if left, err = f.programs.Left(); err != nil {
			f.log.Error("read the fast path's counters", "error", err)
		}
	}
	for _, reason := range tcprog.Reasons() {
		r.LeftTx[reason.String()] = left.Tx[reason]
		r.LeftRx[reason.String()] = left.Rx[reason]
	}
	return r
}

// Carries tells whether the peer of a subnet is one that packets are carried for, and
// otherwise why not, in words.
func (f *FastPath) Carries(subnet netip.Prefix) (ok bool, reason string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	m := f.members[subnet.Masked()]
	switch {
	case m == nil:
		return false, "there is no such peer"
	case f.offLocked() != "":
		return false, f.offLocked()
	}
	return m.reason == "", m.reason
}

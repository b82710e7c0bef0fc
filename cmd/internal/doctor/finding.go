package doctor

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"
)

// Severity says how much harm a finding does.
type Severity int

// The severities, the least first.
const (
	// Warning: packets pass, but not as well as they should, or not for long.
	Warning Severity = iota + 1
	// Fault: packets don't pass.
	Fault
)

// String is the severity in a word.
func (s Severity) String() string {
	if s == Fault {
		return "fault"
	}
	return "warning"
}

// MarshalText implements [encoding.TextMarshaler], with String's word.
func (s Severity) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// Finding is one thing that is wrong.
type Finding struct {
	Severity Severity `json:"severity"`
	// Kind names what is wrong for programs, such as "port-blocked-out". One kind has
	// one remedy.
	Kind string `json:"kind"`
	// Peers are those that it concerns; none if it concerns the whole host.
	Peers []Host `json:"peers,omitempty"`
	// What is wrong, how that is known, in one line, and what mends it, best a
	// command; the Remedy is empty where nobody can tell. The Evidence is of the first
	// of several peers.
	What     string `json:"what"`
	Evidence string `json:"evidence"`
	Remedy   string `json:"remedy,omitempty"`

	joint bool // it is of the Peers together, not of each
}

// Host is one of the cluster's.
type Host struct {
	Subnet   netip.Prefix `json:"subnet"`
	PublicIP netip.Addr   `json:"public_ip"`
}

// String is the host in words, such as "192.168.14.22 (172.7.22.0/24)".
func (h Host) String() string { return fmt.Sprintf("%s (%s)", h.PublicIP, h.Subnet) }

// Report is all that was found out.
type Report struct {
	// Started is when the doctor began, and Took how long it took.
	Started time.Time     `json:"started"`
	Took    time.Duration `json:"took_ns"`
	// Daemon is the state of this host's: "ready", "not ready" or "not running".
	Daemon string `json:"daemon"`
	// Host is this one, nil where the daemon doesn't know its lease.
	Host *Host `json:"host,omitempty"`
	// Findings are what is wrong, in order of harm.
	Findings []Finding `json:"findings"`
	// Peers are what was measured, in order of their subnets.
	Peers []PeerReport `json:"peers"`
}

// PeerReport is what was measured of a peer.
type PeerReport struct {
	Host
	// Path is how packets to it travel, as [control.Peer] has it.
	Path string `json:"path"`
	// Overlay are the echoes to its VTEP by the overlay, and Underlay those to its
	// address beside it.
	Overlay  Echoes `json:"overlay"`
	Underlay Echoes `json:"underlay"`
	// ClockOffset is how much its clock is ahead of ours; nil where it doesn't say.
	ClockOffset *time.Duration `json:"clock_offset_ns,omitempty"`
}

// Echoes are what became of echo requests to an address.
type Echoes struct {
	Sent     int `json:"sent"`
	Received int `json:"received"`
	// RTT is the median round-trip time, 0 without any.
	RTT time.Duration `json:"rtt_ns,omitempty"`
	// MTU is the longest packet, in bytes, that may not be fragmented and is
	// answered; 0 where that wasn't looked for. Back is how long the longest answer
	// was that came in one piece.
	MTU  int `json:"mtu,omitempty"`
	Back int `json:"mtu_back,omitempty"`
	// Error is what came instead of an answer, in words.
	Error string `json:"error,omitempty"`
}

// Worst is the highest severity among the findings, 0 if there are none.
func (r *Report) Worst() (worst Severity) {
	for _, f := range r.Findings {
		worst = max(worst, f.Severity)
	}
	return worst
}

// named is how many peers a finding names; of more their number is told.
const named = 3

// arrange puts findings in order of harm: faults first, those of the whole host
// first, and of peers those that concern most of them. Findings of several peers that
// are alike but for the peer become one.
func arrange(all []Finding) []Finding {
	type likeness struct {
		severity           Severity
		kind, what, remedy string
	}
	var out []Finding
	at, several := map[likeness]int{}, map[int]bool{}
	for _, f := range all {
		key := likeness{f.Severity, f.Kind, f.What, f.Remedy}
		i, known := at[key]
		if known && len(f.Peers) > 0 && len(out[i].Peers) > 0 {
			for _, p := range f.Peers {
				if slices.Contains(out[i].Peers, p) {
					continue
				}
				if !several[i] {
					several[i] = true
					out[i].Evidence = fmt.Sprintf("of %s: %s", out[i].Peers[0].PublicIP, out[i].Evidence)
				}
				out[i].Peers = append(out[i].Peers, p)
			}
			continue
		}
		f.Peers = slices.Clone(f.Peers)
		at[key] = len(out)
		out = append(out, f)
	}
	slices.SortStableFunc(out, func(a, b Finding) int {
		aHost, bHost := len(a.Peers) == 0, len(b.Peers) == 0
		switch {
		case a.Severity != b.Severity:
			return cmp.Compare(b.Severity, a.Severity)
		case aHost != bHost && aHost:
			return -1
		case aHost != bHost:
			return 1
		}
		return cmp.Compare(len(b.Peers), len(a.Peers))
	})
	return out
}

// Subject names whom the finding concerns.
func (f Finding) Subject() string {
	if len(f.Peers) == 0 {
		return "this host"
	}
	var words []string
	for _, p := range f.Peers[:min(len(f.Peers), named)] {
		words = append(words, p.String())
	}
	text := strings.Join(words, ", ")
	if len(f.Peers) > 1 && !f.joint {
		text = "each of " + text
	}
	if more := len(f.Peers) - named; more > 0 {
		text += fmt.Sprintf(" and %d more peers", more)
	}
	return text
}

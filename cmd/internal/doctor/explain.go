package doctor

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"uvxlan/cmd/internal/control"
	"uvxlan/cmd/internal/probe"
)

// ErrNoPeer says that a destination is none of the overlay's.
var ErrNoPeer = errors.New("no peer has it")

// Explanation tells of the way to one destination.
type Explanation struct {
	// Destination is what was asked for: an address, or a peer's subnet.
	Destination string `json:"destination"`
	// Steps are the way there, in the order in which packets take it.
	Steps []Step `json:"steps"`
	// Findings are what is wrong with it, in order of harm.
	Findings []Finding `json:"findings"`
}

// Step is one thing on the way, in words.
type Step struct {
	Name string `json:"name"`
	Text string `json:"text"`
}

// Explain follows the way to a destination: an address of a peer's container, a peer's
// own address, or its subnet. It needs root, and must be called in the host's network
// namespace. The error is [ErrNoPeer] for a destination that is no peer's.
func Explain(ctx context.Context, o Options, destination string) (*Explanation, error) {
	s, err := begin(ctx, o)
	if err != nil {
		return nil, err
	}
	defer s.close()
	e := &Explanation{Destination: destination}
	if s.x == nil { // no daemon runs
		e.Findings = arrange(s.report.Findings)
		return e, nil
	}
	at, p, err := s.resolve(destination)
	if err != nil {
		return nil, err
	}
	s.peers = []*evidence{p}
	s.examineAll(ctx)
	var reached *outcome
	by := s.x.overlay[at.Is6()]
	if s.status.Device == "" {
		by = s.x.beside[at.Is6()] // host-gw has no addresses of its own
	}
	if by != nil && at != p.vtep() && at != p.PublicIP {
		r := s.x.echoes(ctx, by, at)
		reached = &r
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	s.judge(ctx)
	s.report.Findings = slices.DeleteFunc(s.report.Findings, func(f Finding) bool {
		return len(f.Peers) > 0 && !slices.Contains(f.Peers, p.Host)
	})
	e.Steps = s.steps(at, p, reached)
	if reached != nil && reached.dead() && p.overlay.Received+p.underlay.Received > 0 && !p.overlay.dead() {
		s.find(Finding{
			Severity: Warning, Kind: "container-silent", Peers: []Host{p.Host}, What: fmt.Sprintf("its host answers, but %s doesn't", at),
			Evidence: fmt.Sprintf("%s: %s", at, reached.words()),
			Remedy:   "on that host: see that a container has the address, and run uvxlan doctor to see that the host forwards packets",
		})
	}
	e.Findings = arrange(s.report.Findings)
	return e, nil
}

// resolve finds the peer of a destination, and the address that packets go to.
func (s *session) resolve(destination string) (netip.Addr, *evidence, error) {
	subnet, prefixErr := netip.ParsePrefix(destination)
	addr, addrErr := netip.ParseAddr(destination)
	if prefixErr != nil && addrErr != nil {
		return addr, nil, fmt.Errorf("%q: %w: name an address, or a peer's subnet as in 10.5.52.0/24", destination, ErrNoPeer)
	}
	for _, p := range s.peers {
		switch {
		case prefixErr == nil && p.Subnet == subnet.Masked():
			return p.vtep(), p, nil
		case addrErr == nil && p.PublicIP == addr:
			return p.vtep(), p, nil
		case addrErr == nil && p.Subnet.Contains(addr):
			return addr, p, nil
		}
	}
	why := "uvxlan peers lists them"
	if l := s.status.Lease; l != nil && addrErr == nil {
		switch {
		case l.Subnet.Contains(addr), l.SubnetV6.Contains(addr), addr == s.status.PublicIP:
			why = "it is this host's own"
		case s.status.Network.Contains(addr), s.status.NetworkV6.Contains(addr):
			why = "it lies in the overlay's network, and no host has a lease for it (uvxlan leases)"
		}
	}
	return addr, nil, fmt.Errorf("%s: %w: %s", destination, ErrNoPeer, why)
}

// steps are the way to a peer's address.
func (s *session) steps(at netip.Addr, p *evidence, reached *outcome) []Step {
	inner := neighbourOf(at)
	steps := []Step{
		{"peer", s.peerWords(p)},
		{"route", routeWords(at, inner)},
		{"table entry", entryWords(p)},
		{"path", pathWords(p.peer)},
		{"next hop", p.neigh.words()},
	}
	if s.status.Port != 0 {
		steps = append(steps, Step{"firewall", s.ruleWords()})
	}
	steps = append(steps, Step{"beside the overlay", p.underlay.words()})
	if p.overlay.Sent > 0 {
		steps = append(steps, Step{"by the overlay", p.overlay.words() + s.x.trafficWords(p)})
	}
	if reached != nil {
		steps = append(steps, Step{at.String(), reached.words()})
	}
	return steps
}

func (s *session) peerWords(p *evidence) string {
	words := p.String()
	switch l := p.lease; {
	case l == nil:
	case l.Reserved:
		words += ", a reservation"
	case !l.Expires.IsZero():
		words += ", lease ends in " + control.Round(time.Until(l.Expires))
	}
	return words
}

func routeWords(at netip.Addr, n neighbour) string {
	if n.err != nil {
		return fmt.Sprintf("none to %s: %v", at, n.err)
	}
	return fmt.Sprintf("%s %s", at, n.route)
}

func entryWords(p *evidence) string {
	words := fmt.Sprintf("%s to %s", p.Subnet, p.PublicIP)
	if p.peer.MAC != "" {
		words += ", VTEP MAC " + p.peer.MAC
	}
	if p.peer.PathMTU > 0 {
		words += fmt.Sprintf(", packets of up to %d bytes in one piece", p.peer.PathMTU)
	}
	return words
}

// pathWords say how packets travel, and why not otherwise.
func pathWords(p control.Peer) string {
	words := p.Path
	switch {
	case p.Path == control.PathForeign, p.Path == control.PathNone:
	case p.Fast:
		words += ", carried by the fast path"
	case p.Path == control.PathVXLAN, p.NextMAC != "":
		words += ", carried by the workers"
	default:
		words += ", carried by the kernel's routes"
	}
	if p.Link != "" {
		words += ", via " + strings.TrimSpace(p.Link+" "+p.NextMAC)
	}
	if p.Reason != "" {
		words += "; " + p.Reason
	}
	if p.FastReason != "" {
		words += "; not fast: " + p.FastReason
	}
	return words
}

func (n neighbour) words() string {
	if n.err != nil {
		return fmt.Sprintf("none: %v", n.err)
	}
	words := fmt.Sprintf("%s on %s", n.hop, n.link)
	if !n.onLink {
		words = fmt.Sprintf("gateway %s on %s", n.hop, n.link)
	}
	if n.state != "" {
		words += ", " + strings.TrimSpace(n.state+" "+n.mac)
	}
	return words
}

func (s *session) ruleWords() string {
	if s.rulesErr != nil {
		return fmt.Sprintf("not known: %v", s.rulesErr)
	}
	if len(s.rules[false])+len(s.rules[true]) == 0 {
		return fmt.Sprintf("lets frames pass both ways (UDP port %d)", s.status.Port)
	}
	var words []string
	for _, r := range slices.Concat(s.rules[false], s.rules[true]) {
		words = append(words, r.What)
	}
	return strings.Join(words, "; ")
}

// words say what became of echoes.
func (o outcome) words() string {
	if o.Sent == 0 {
		return "not asked"
	}
	words := fmt.Sprintf("%d of %d echoes answered", o.Received, o.Sent)
	if o.RTT > 0 {
		words += " in " + o.RTT.Round(time.Microsecond).String()
	}
	if o.MTU > 0 {
		words += fmt.Sprintf(", up to %d bytes in one piece", o.MTU)
	}
	if o.Back > 0 && o.Back < o.MTU {
		words += fmt.Sprintf(", back up to %d", o.Back)
	}
	if o.err != nil && !errors.Is(o.err, probe.ErrNoAnswer) {
		words += "; " + o.Error
	}
	return words
}

// trafficWords say what was seen on the host's interfaces.
func (x *examiner) trafficWords(p *evidence) string {
	var out, in int
	for _, s := range x.tap.sightings(func(s *sighting) bool { return s.frame != nil }) {
		switch {
		case s.out && s.dst == p.PublicIP:
			out++
		case !s.out && p.Subnet.Contains(s.frame.src):
			in++
		}
	}
	return fmt.Sprintf("; %d frames were seen to leave for it, %d to come", out, in)
}

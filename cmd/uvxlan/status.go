package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"time"

	"uvxlan/cmd/internal/control"
)

// socketFlag adds the flag of a command that asks the daemon.
func socketFlag(fs *flag.FlagSet) *string {
	return fs.String("control-socket", control.DefaultSocket, "`path` of the daemon's control socket")
}

// hint adds what to do when no daemon answers.
func hint(err error) error {
	if errors.Is(err, control.ErrNotRunning) {
		return fmt.Errorf("%w: start it, or say where its socket is with -control-socket", err)
	}
	return err
}

// defineStatus shows how the daemon on this host is.
func defineStatus(fs *flag.FlagSet) action {
	socket, output := socketFlag(fs), outputFlag(fs, os.Stdout)
	probe := fs.Bool("ready", false, "print in one line whether the host's containers are connected, or why not, for a readiness probe")
	alive := fs.Bool("alive", false, "exit with 0 if the daemon answers, ready or not, for a liveness probe")
	return func(ctx context.Context, _ []string) error {
		p, err := output()
		if err != nil {
			return err
		}
		s, err := control.NewClient(*socket).Status(ctx)
		if err != nil {
			return hint(err)
		}
		if (*probe || *alive) && !p.json {
			fmt.Fprintln(p.out, probeLine(s))
		} else if err := p.status(s); err != nil {
			return err
		}
		if !s.Ready && !*alive {
			return errSilent
		}
		return nil
	}
}

// probeLine is what a probe shows to people.
func probeLine(s control.Status) string {
	if s.Ready {
		return "ready"
	}
	return "not ready: " + or(strings.Join(s.Reasons, "; "), "it starts")
}

func (p *printer) status(s control.Status) error {
	if p.json {
		return p.writeJSON(s)
	}
	rows := [][]string{{"state", p.state(s)}}
	for _, r := range s.Reasons {
		rows = append(rows, []string{"reason", p.paint(red, r)})
	}
	for _, n := range s.Notes {
		rows = append(rows, []string{"note", p.paint(yellow, n)})
	}
	rows = append(rows,
		[]string{"daemon", fmt.Sprintf("%s, pid %d, up for %s", s.Version, s.PID, control.Round(s.Now.Sub(s.Started)))},
		[]string{"model", or(s.Model, "not known yet")},
		[]string{"host", fmt.Sprintf("%s on %s", both(s.PublicIP, s.PublicIPv6), or(s.Interface, "no interface yet"))},
	)
	if s.Network.IsValid() {
		rows = append(rows, []string{"network", fmt.Sprintf("%s, MTU %d bytes", both(s.Network, s.NetworkV6), s.MTU)})
	}
	if s.Device != "" {
		rows = append(rows, []string{"device", s.Device})
	}
	if s.FastPath != nil {
		rows = append(rows, []string{"fast path", s.FastPath.Words()})
	}
	registry, _ := s.Leases()
	rows = append(rows,
		[]string{"lease", s.LeaseWords()},
		[]string{strings.ToLower(registry), s.RegistryWords()},
		[]string{"watch", s.WatchWords()},
		[]string{"peers", s.PeersWords()},
	)
	if s.Traffic != nil {
		rows = append(rows, traffic(s.Traffic)...)
	}
	return p.table(rows)
}

// both are an IPv4 and an IPv6 address or network, of which there may be none.
func both[T interface {
	IsValid() bool
	String() string
}](v4, v6 T) string {
	if !v6.IsValid() {
		return v4.String()
	}
	return v4.String() + " and " + v6.String()
}

func (p *printer) state(s control.Status) string {
	switch {
	case !s.Ready:
		return p.paint(red, "not ready")
	case len(s.Notes) > 0:
		return p.paint(yellow, "ready, with notes")
	}
	return p.paint(green, "ready")
}

func traffic(t *control.Traffic) [][]string {
	var on []string
	for _, name := range slices.Sorted(maps.Keys(t.Offloads)) {
		if t.Offloads[name] {
			on = append(on, name)
		}
	}
	rows := [][]string{
		{"offloads", or(strings.Join(on, " "), "none")},
		{"sent", direction(t.Sent)},
		{"received", direction(t.Received)},
		{"direct", fmt.Sprintf("%d packets sent without VXLAN", t.Direct)},
		{"dropped", fmt.Sprintf("%d packets", t.Dropped())},
	}
	for _, reason := range slices.Sorted(maps.Keys(t.Drops)) {
		if n := t.Drops[reason]; n > 0 {
			rows = append(rows, []string{"  " + reason, fmt.Sprint(n)})
		}
	}
	return rows
}

func direction(d control.Direction) string {
	return fmt.Sprintf("%d packets, %s, in %d datagrams", d.Packets, size(d.Bytes), d.Datagrams)
}

// definePeers lists the peers of the daemon on this host.
func definePeers(fs *flag.FlagSet) action {
	socket, output := socketFlag(fs), outputFlag(fs, os.Stdout)
	return func(ctx context.Context, _ []string) error {
		p, err := output()
		if err != nil {
			return err
		}
		peers, err := control.NewClient(*socket).Peers(ctx)
		if err != nil {
			return hint(err)
		}
		return p.peers(peers, time.Now())
	}
}

func (p *printer) peers(peers []control.Peer, now time.Time) error {
	if p.json {
		return p.writeJSON(peers)
	}
	rows := [][]string{{"SUBNET", "PUBLIC IP", p.paint(plain, "PATH"), "CARRIER", "MTU", p.paint(plain, "RTT"), "LOSS", "HEARD", "SINCE", "WHY"}}
	for _, peer := range peers {
		mtu, since := "route's", "start"
		switch {
		case peer.PathMTU > 0:
			mtu = fmt.Sprint(peer.PathMTU)
		case peer.Path == control.PathNone:
			mtu = "none"
		}
		if !peer.Since.IsZero() {
			since = control.Round(now.Sub(peer.Since))
		}
		rows = append(rows, []string{peer.Subnet.String(), peer.PublicIP.String(), p.paint(pathColour(peer.Path), peer.Path), carrier(peer), mtu,
			p.roundTrip(peer.Health), loss(peer.Health), heard(peer, now), since, why(peer, now)})
	}
	if err := p.table(rows); err != nil {
		return err
	}
	if len(peers) > 0 && !peers[0].AsOf.IsZero() {
		fmt.Fprintln(p.out, p.paint(yellow, "stale: leases as of "+control.Round(now.Sub(peers[0].AsOf))+" ago, they are not watched"))
	}
	return nil
}

func pathColour(path string) colour {
	switch path {
	case control.PathDirect:
		return green
	case control.PathNone:
		return red
	}
	return plain
}

// carrier says who carries a peer's packets: the fast path, the workers, or the
// kernel by its routes, which none of the daemon's counters see.
func carrier(p control.Peer) string {
	switch {
	case p.Fast:
		return "fast"
	case p.Path == control.PathVXLAN, p.Path == control.PathDirect && p.NextMAC != "":
		return "workers"
	case p.Path == control.PathNone:
		return "nobody"
	}
	return "kernel"
}

// roundTrip is the round-trip time, or why there is none.
func (p *printer) roundTrip(h *control.Health) string {
	switch {
	case h == nil:
		return p.paint(plain, "not asked")
	case h.State == control.HealthSilent:
		return p.paint(red, "silent")
	case h.State == control.HealthAnswers:
		return p.paint(plain, latency(time.Duration(h.RTTSeconds*float64(time.Second))))
	case h.Problem != "":
		return p.paint(yellow, "unknown")
	}
	return p.paint(plain, "not yet")
}

// latency is a time in three digits at most.
func latency(d time.Duration) string {
	unit := time.Nanosecond
	for d >= 1000*unit {
		unit *= 10
	}
	return d.Round(unit).String()
}

// loss is the share of the last requests without an answer.
func loss(h *control.Health) string {
	switch {
	case h == nil:
		return "not asked"
	case h.Loss.Of == 0:
		return "not yet"
	}
	return fmt.Sprintf("%d%%", (100*h.Loss.Missed+h.Loss.Of/2)/h.Loss.Of)
}

// heard is when anything last came from a peer.
func heard(p control.Peer, now time.Time) string {
	if p.LastHeard.IsZero() {
		return "never"
	}
	return control.Round(now.Sub(p.LastHeard)) + " ago"
}

// ailing says what the peer's health lacks; nothing of one that is well.
func ailing(p control.Peer, now time.Time) (words string) {
	h := p.Health
	switch {
	case h == nil:
		return ""
	case h.State == control.HealthUnknown:
		return h.Problem
	case h.FullSize == control.FullSizeLost:
		return fmt.Sprintf("packets of %d bytes get lost, short ones pass", h.FullSizeBytes)
	case h.State != control.HealthSilent:
		return ""
	case h.LastAnswer.IsZero():
		words = "it never answered"
	default:
		words = "it last answered " + control.Round(now.Sub(h.LastAnswer)) + " ago"
	}
	if h.Problem != control.NoAnswer {
		words += ", " + h.Problem
	}
	if p.LastHeard.After(h.Since) {
		words += ", but its packets come: the way to it is blocked, or it refuses pings"
	}
	return words
}

// why says what ails the peer, where a direct path leads, or why it isn't one, and why
// the fast path doesn't carry it, if it might.
func why(p control.Peer, now time.Time) string {
	var words []string
	if w := ailing(p, now); w != "" {
		words = append(words, w)
	}
	switch {
	case p.Path == control.PathDirect:
		words = append(words, strings.TrimSpace("via "+p.Link+" "+p.NextMAC))
	case p.Reason != "":
		words = append(words, p.Reason)
	case p.Path == control.PathVXLAN:
		words = append(words, "direct routing is off")
	}
	if p.FastReason != "" {
		words = append(words, "not fast: "+p.FastReason)
	}
	return strings.Join(words, "; ")
}

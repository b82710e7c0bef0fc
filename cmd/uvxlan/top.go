package main

import (
	"cmp"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"
	"time"

	"uvxlan/cmd/internal/control"
	"uvxlan/internal/cli"
)

// top shows rates again and again, until its count is reached, ctx ends or the
// user has enough.
type top struct {
	client   *control.Client
	printer  *printer
	interval time.Duration
	count    int // 0: without end
	screen   *screen
}

// defineTop shows the traffic with the peers of the daemon on this host.
func defineTop(fs *flag.FlagSet) action {
	socket, output := socketFlag(fs), outputFlag(fs, os.Stdout)
	count := fs.Int("n", 0, "`number` of times to show it (default: until q or Ctrl-C)")
	interval := fs.Duration("interval", time.Second, "`time` that each rate is the mean of")
	return func(ctx context.Context, _ []string) error {
		p, err := output()
		if err != nil {
			return err
		}
		if *count < 0 {
			return cli.Usagef("-n %d: must not be negative", *count)
		}
		if *interval <= 0 {
			return cli.Usagef("-interval %s: must be more than 0", *interval)
		}
		t := top{client: control.NewClient(*socket), printer: p, interval: *interval, count: *count}
		return t.run(ctx, os.Stdin, os.Stdout)
	}
}

func (t *top) run(ctx context.Context, in, out *os.File) error {
	before, err := takeSample(ctx, t.client)
	if err != nil {
		return hint(err)
	}
	if !t.printer.json && cli.IsTerminal(in) && cli.IsTerminal(out) {
		var cancel context.CancelFunc
		ctx, cancel = context.WithCancel(ctx)
		defer cancel()
		if t.screen, err = openScreen(in, out, cancel); err != nil {
			return err
		}
		defer t.screen.close()
		if err := t.show(between(sample{}, before)); err != nil {
			return err
		}
	}
	return t.loop(ctx, before)
}

func (t *top) loop(ctx context.Context, before sample) error {
	tick := time.NewTicker(t.interval)
	defer tick.Stop()
	for n := 0; t.count == 0 || n < t.count; n++ {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
		now, err := takeSample(ctx, t.client)
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil && t.screen == nil:
			return hint(err)
		case err != nil: // it may come back
			err = t.screen.draw([]string{hint(err).Error()})
		default:
			err = t.show(between(before, now))
		}
		if err != nil {
			return err
		}
		before = now
	}
	return nil
}

// show draws the rates on the screen, or prints them, in JSON on a line.
func (t *top) show(r rates) error {
	p := t.printer
	if p.json {
		return json.NewEncoder(p.out).Encode(r)
	}
	var text strings.Builder
	part := printer{out: &text, colour: p.colour}
	if err := part.rates(r); err != nil {
		return err
	}
	if t.screen != nil {
		return t.screen.draw(strings.Split(strings.TrimSuffix(text.String(), "\n"), "\n"))
	}
	_, err := io.WriteString(p.out, text.String()+"\n")
	return err
}

// rates writes what is of the whole host first, then the peers, the busiest
// first, so that what doesn't fit the screen matters least.
func (p *printer) rates(r rates) error {
	s := r.status
	head := fmt.Sprintf("%s  %s  %s", p.state(s), or(s.Model, "not known yet"), r.Time.Format(time.TimeOnly))
	if s.Lease != nil {
		head = s.Lease.Subnet.String() + "  " + head
	}
	fmt.Fprintln(p.out, head)
	fmt.Fprintf(p.out, "sent %spkt/s %sbit/s  received %spkt/s %sbit/s  peers %d\n",
		short(r.Sent.Packets), short(r.Sent.Bits), short(r.Received.Packets), short(r.Received.Bits), len(r.Peers))
	fmt.Fprintln(p.out, "dropped", r.drops())
	if words := uncounted(r.Peers); words != "" {
		fmt.Fprintln(p.out, words)
	}
	fmt.Fprintln(p.out)
	peers := slices.Clone(r.Peers)
	slices.SortStableFunc(peers, func(a, b peerRates) int { return cmp.Compare(b.bits(), a.bits()) })
	rows := [][]string{{"SUBNET", "PUBLIC IP", p.paint(plain, "PATH"), "SENT pkt/s", "bit/s", "RECEIVED pkt/s", "bit/s", p.paint(plain, "RTT"), "LAST SEEN"}}
	for _, peer := range peers {
		rows = append(rows, p.peerRow(peer, r.Time))
	}
	return p.table(rows)
}

func (p *printer) peerRow(peer peerRates, now time.Time) []string {
	row := []string{peer.Subnet.String(), peer.PublicIP.String(), p.paint(pathColour(peer.Path), peer.way())}
	for _, r := range []*rate{peer.Sent, peer.Received} {
		if r == nil {
			row = append(row, "-", "-")
		} else {
			row = append(row, short(r.Packets), short(r.Bits))
		}
	}
	seen := "-"
	if !peer.LastSeen.IsZero() {
		seen = control.Round(now.Sub(peer.LastSeen))
	}
	return append(row, p.roundTrip(peer.Health), seen)
}

// drops tells of the packets dropped in total.
func (r *rates) drops() string {
	var total uint64
	var now float64
	var reasons []string
	for _, reason := range slices.Sorted(maps.Keys(r.Drops)) {
		if d := r.Drops[reason]; d.Total > 0 {
			total, now = total+d.Total, now+d.PerSecond
			reasons = append(reasons, fmt.Sprintf("%s %d", reason, d.Total))
		}
	}
	if total == 0 {
		return "none"
	}
	return fmt.Sprintf("%spkt/s, since the start %d: %s", short(now), total, strings.Join(reasons, ", "))
}

// uncounted says what traffic isn't in the numbers.
func uncounted(peers []peerRates) string {
	for _, p := range peers {
		switch {
		case p.Sent == nil:
			return "the packets take routes of the kernel, which counts them"
		case p.Path == control.PathDirect:
			return "what arrives directly is taken and counted by the kernel"
		}
	}
	return ""
}

// short writes a number in three digits, with a unit's prefix and the space
// before it.
func short(f float64) string {
	const prefixes = "kMGT"
	if f < 999.5 {
		return fmt.Sprintf("%.3g ", f)
	}
	i := -1
	for f >= 999.5 && i < len(prefixes)-1 {
		f, i = f/1000, i+1
	}
	return fmt.Sprintf("%.3g %c", f, prefixes[i])
}

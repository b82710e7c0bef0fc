package report

import (
	"fmt"
	"io"
	"strings"

	"uvxlan/bench/scenario"
)

// Target is a figure that must be reached, on every machine.
type Target struct {
	What     string
	Underlay string
	Scenario string
	Metric   scenario.Metric
	// System is judged by the ratio of its metric to that of To. If To is empty, it
	// is judged by the metric itself; if From is set, by what its metric exceeds
	// To's From by.
	System, To string
	From       scenario.Metric
	// Limit is the least figure, or the largest if the metric is one of which less
	// is better.
	Limit float64
	// Seen is the medians on the machines that it was measured on until now.
	Seen Range
}

// Range is from the least to the most; the zero value means that there is none.
type Range struct{ Min, Max float64 }

// with makes the range reach to a value.
func (r Range) with(v float64) Range {
	if r == (Range{}) {
		return Range{v, v}
	}
	return Range{min(r.Min, v), max(r.Max, v)}
}

const (
	ugro, unic, uveth, uplain = "nic-gro", "nic", "veth", "nic-plain"
)

// Targets is what the project promises: the limits hold on each of the machines of
// Seen, with some room, since ratios move with the machine. What each packet costs
// comes first, since it moves least. nic-gro was measured on one machine only.
var Targets = []Target{
	{What: "CPU per GB, TCP 1 stream, to kernel VXLAN", Underlay: ugro, Scenario: "tcp1", Metric: scenario.CPUPerGB, System: "uvxlan", To: "kernel", Limit: 1.5, Seen: Range{0.97, 1.32}},
	{What: "CPU per GB, TCP 1 stream, to kernel VXLAN", Underlay: unic, Scenario: "tcp1", Metric: scenario.CPUPerGB, System: "uvxlan", To: "kernel", Limit: 1.05, Seen: Range{0.5, 0.95}},
	{What: "CPU per GB, TCP 1 stream, to kernel VXLAN", Underlay: uveth, Scenario: "tcp1", Metric: scenario.CPUPerGB, System: "uvxlan", To: "kernel", Limit: 1.15, Seen: Range{1.03, 1.08}},
	{What: "CPU per packet, UDP 64 B, to kernel VXLAN", Underlay: ugro, Scenario: "udp64", Metric: scenario.CPUPerPacket, System: "uvxlan", To: "kernel", Limit: 1.05, Seen: Range{0.92, 1.01}},
	{What: "CPU per packet, UDP 64 B, to kernel VXLAN", Underlay: uveth, Scenario: "udp64", Metric: scenario.CPUPerPacket, System: "uvxlan", To: "kernel", Limit: 1.1, Seen: Range{0.92, 0.97}},
	{What: "TCP 1 stream, to kernel VXLAN", Underlay: ugro, Scenario: "tcp1", Metric: scenario.Rate, System: "uvxlan", To: "kernel", Limit: 1, Seen: Range{1.03, 1.42}},
	{What: "TCP 1 stream, to kernel VXLAN", Underlay: unic, Scenario: "tcp1", Metric: scenario.Rate, System: "uvxlan", To: "kernel", Limit: 1.2, Seen: Range{1.37, 3.24}},
	{What: "TCP 1 stream, to kernel VXLAN", Underlay: uveth, Scenario: "tcp1", Metric: scenario.Rate, System: "uvxlan", To: "kernel", Limit: 0.85, Seen: Range{0.92, 0.94}},
	{What: "TCP 1 stream, to kernel VXLAN", Underlay: uplain, Scenario: "tcp1", Metric: scenario.Rate, System: "uvxlan", To: "kernel", Limit: 0.7, Seen: Range{0.78, 1.25}},
	{What: "TCP 4 streams, to kernel VXLAN", Underlay: ugro, Scenario: "tcp4", Metric: scenario.Rate, System: "uvxlan", To: "kernel", Limit: 1.2, Seen: Range{1.32, 1.77}},
	{What: "TCP 4 streams, to kernel VXLAN", Underlay: uveth, Scenario: "tcp4", Metric: scenario.Rate, System: "uvxlan", To: "kernel", Limit: 0.75, Seen: Range{0.83, 0.97}},
	{What: "UDP 64 B received, to kernel VXLAN", Underlay: ugro, Scenario: "udp64", Metric: scenario.Received, System: "uvxlan", To: "kernel", Limit: 1, Seen: Range{1.07, 1.13}},
	{What: "UDP 64 B received, to kernel VXLAN", Underlay: uveth, Scenario: "udp64", Metric: scenario.Received, System: "uvxlan", To: "kernel", Limit: 1, Seen: Range{1.1, 1.14}},
	{What: "RTT p50 idle, to kernel VXLAN", Underlay: ugro, Scenario: "rtt", Metric: scenario.P50, System: "uvxlan", To: "kernel", Limit: 1.1, Seen: Range{0.93, 0.96}},
	{What: "RTT p50 idle, to kernel VXLAN", Underlay: uveth, Scenario: "rtt", Metric: scenario.P50, System: "uvxlan", To: "kernel", Limit: 1.1, Seen: Range{0.88, 0.89}},
	{What: "TCP from kernel VXLAN to uvxlan, to kernel VXLAN", Underlay: ugro, Scenario: "tcp1", Metric: scenario.Rate, System: "kernel-to-uvxlan", To: "kernel", Limit: 0.6, Seen: Range{0.66, 0.84}},
	{What: "TCP from kernel VXLAN to uvxlan, to kernel VXLAN", Underlay: unic, Scenario: "tcp1", Metric: scenario.Rate, System: "kernel-to-uvxlan", To: "kernel", Limit: 0.6, Seen: Range{0.69, 1.17}},
	{What: "TCP from uvxlan to kernel VXLAN, to kernel VXLAN", Underlay: ugro, Scenario: "tcp1", Metric: scenario.Rate, System: "uvxlan-to-kernel", To: "kernel", Limit: 0.9, Seen: Range{1.34, 1.43}},
	{What: "CPU per GB, TCP 1 stream, by the workers, to kernel VXLAN", Underlay: uveth, Scenario: "tcp1", Metric: scenario.CPUPerGB, System: "uvxlan-no-fastpath", To: "kernel", Limit: 2.8, Seen: Range{1.3, 2.5}},
	{What: "TCP 1 stream, by the workers, to kernel VXLAN", Underlay: uveth, Scenario: "tcp1", Metric: scenario.Rate, System: "uvxlan-no-fastpath", To: "kernel", Limit: 0.35, Seen: Range{0.39, 0.97}},
	{What: "UDP 64 B received, by the workers, to kernel VXLAN", Underlay: uveth, Scenario: "udp64", Metric: scenario.Received, System: "uvxlan-no-fastpath", To: "kernel", Limit: 1, Seen: Range{1.1, 2.2}},
	{What: "UDP 64 B received, by the workers, to wireguard-go", Underlay: unic, Scenario: "udp64", Metric: scenario.Received, System: "uvxlan-no-fastpath", To: "wireguard-go", Limit: 3, Seen: Range{5, 5}},
	{What: "TCP 1 stream, to wireguard-go", Underlay: unic, Scenario: "tcp1", Metric: scenario.Rate, System: "uvxlan", To: "wireguard-go", Limit: 2, Seen: Range{2.5, 3.6}},
	{What: "TCP 1 stream, by the workers, to a packet at a time", Underlay: unic, Scenario: "tcp1", Metric: scenario.Rate, System: "uvxlan-no-fastpath", To: "uvxlan-off", Limit: 5, Seen: Range{6.4, 11.95}},
	{What: "RTT p50 idle, by the workers, to a packet at a time", Underlay: unic, Scenario: "rtt", Metric: scenario.P50, System: "uvxlan-no-fastpath", To: "uvxlan-off", Limit: 1.2, Seen: Range{1, 1.09}},
	{What: "UDP 64 B received, without joining UDP, to with it", Underlay: ugro, Scenario: "udp64", Metric: scenario.Received, System: "uvxlan-no-udp", To: "uvxlan-no-fastpath", Limit: 0.4, Seen: Range{0.59, 0.87}},
	{What: "TCP 1 stream, direct, to kernel host-gw", Underlay: uveth, Scenario: "tcp1", Metric: scenario.Rate, System: "uvxlan-direct", To: "host-gw", Limit: 0.75, Seen: Range{0.9, 0.95}},
	{What: "TCP 1 stream, direct by the workers, to VXLAN by them", Underlay: uveth, Scenario: "tcp1", Metric: scenario.Rate, System: "uvxlan-direct-no-fastpath", To: "uvxlan-no-fastpath", Limit: 1.05, Seen: Range{1.16, 1.4}},
	{What: "UDP 64 B received, direct by the workers, to VXLAN by them", Underlay: uveth, Scenario: "udp64", Metric: scenario.Received, System: "uvxlan-direct-no-fastpath", To: "uvxlan-no-fastpath", Limit: 0.9, Seen: Range{1.01, 2}},
	{What: "TCP 1 stream, DirectMode route, to kernel host-gw", Underlay: uveth, Scenario: "tcp1", Metric: scenario.Rate, System: "uvxlan-route", To: "host-gw", Limit: 0.85, Seen: Range{0.94, 1.1}},
	{What: "TCP 1 stream, uvxlan's host-gw, to kernel host-gw", Underlay: uveth, Scenario: "tcp1", Metric: scenario.Rate, System: "uvxlan-host-gw", To: "host-gw", Limit: 0.9, Seen: Range{0.97, 1.09}},
	{What: "gap between packets in beside a slow peer, p99.9, to kernel VXLAN", Underlay: ugro, Scenario: "slow-peer", Metric: scenario.GapP999, System: "uvxlan", To: "kernel", Limit: 1.5},
	{What: "packets in that are lost beside a slow peer", Underlay: ugro, Scenario: "slow-peer", Metric: scenario.InboundLost, System: "uvxlan", Limit: 0},
	{What: "gap between packets in behind a slow link, p99.9, to kernel VXLAN", Underlay: ugro, Scenario: "slow-link", Metric: scenario.GapP999, System: "uvxlan", To: "kernel", Limit: 1.5},
	{What: "packets in that are lost behind a slow link", Underlay: ugro, Scenario: "slow-link", Metric: scenario.InboundLost, System: "uvxlan", Limit: 0},
	{What: "resident, 2 workers, idle", Underlay: ugro, Scenario: "memory", Metric: scenario.MemoryIdle, System: "uvxlan-2-workers", Limit: 20},
	{What: "resident, 8 workers loaded, beyond 1 worker idle", Underlay: ugro, Scenario: "memory", Metric: scenario.MemoryLoaded, System: "uvxlan-8-workers", To: "uvxlan-1-worker", From: scenario.MemoryIdle, Limit: 48},
}

// plain reports whether the target compares uvxlan as it is with kernel VXLAN, with
// nothing special beside.
func (t Target) plain() bool {
	system, _, _ := strings.Cut(t.System, ":") // without the build's label
	return system == "uvxlan" && t.To == "kernel" && t.Scenario != "slow-peer" && t.Scenario != "slow-link"
}

// show is the target's figure as text.
func (t Target) show(v float64) string {
	if t.To == "" || t.From != (scenario.Metric{}) {
		return Value(v, t.Metric)
	}
	return ratio(v)
}

// Result is what became of a target.
type Result struct {
	Target
	Figure *Spread
}

// Met reports whether the median reaches the target.
func (c Result) Met() bool {
	if c.Metric.Lower {
		return c.Figure.Median <= c.Limit
	}
	return c.Figure.Median >= c.Limit
}

// Check holds the run against the targets. Where several builds took part, label is
// that of the one to judge. What the run doesn't have is left out.
func (r *Report) Check(label string) (results []Result) {
	for _, t := range Targets {
		t.System, t.To = r.labelled(t.System, label), r.labelled(t.To, label)
		if figure := r.figure(t); figure != nil {
			results = append(results, Result{t, figure})
		}
	}
	return results
}

// labelled is the system's name as the run has it.
func (r *Report) labelled(name, label string) string {
	if r.has(name) || label == "" || name == "" {
		return name
	}
	return name + ":" + label
}

// figure is what the target judges; nil if the run doesn't have it.
func (r *Report) figure(t Target) *Spread {
	row := r.Find(t.Underlay, t.Scenario, t.Metric, t.System)
	switch {
	case row == nil:
		return nil
	case t.To == "":
		return row.Values.spread()
	case t.From == (scenario.Metric{}):
		return r.Ratio(t.Underlay, t.Scenario, t.Metric, t.System, t.To)
	}
	from := r.Find(t.Underlay, t.Scenario, t.From, t.To)
	if from == nil {
		return nil
	}
	return row.Values.minus(from.Values).spread()
}

func (r *Report) has(system string) bool {
	for _, s := range r.Systems {
		if s.Name == system {
			return true
		}
	}
	return false
}

// checks is the results as a table. "seen" is from the least median of the machines
// to the most, this one's included.
func (r *Report) checks(results []Result) grid {
	g := grid{{"what must be shown", "underlay", "limit", "measured", "min - max", "seen", "busy", ""}}
	for _, c := range results {
		limit, verdict := "at least ", "ok"
		if c.Metric.Lower {
			limit = "at most "
		}
		if !c.Met() {
			verdict = "missed"
		}
		g = append(g, []string{
			c.What, c.Underlay, limit + c.show(c.Limit), c.show(c.Figure.Median), interval(c.Figure, c.show), c.seen(), r.busyRuns(c), verdict,
		})
	}
	return g.without("busy")
}

// busyRuns says how many of a result's runs were made on a busy machine; empty if
// none was.
func (r *Report) busyRuns(c Result) string {
	busy, all := r.busy(c.Underlay, c.Scenario, c.System)
	if c.To != "" {
		b, a := r.busy(c.Underlay, c.Scenario, c.To)
		busy, all = busy+b, all+a
	}
	return few(busy, all)
}

// seen is the range over the machines, this one included.
func (c Result) seen() string {
	all := c.Seen.with(c.Figure.Median)
	if c.show(all.Min) == c.show(all.Max) {
		return c.show(all.Min)
	}
	return c.show(all.Min) + " - " + c.show(all.Max)
}

// WriteChecks writes the results as a table for a terminal.
func (r *Report) WriteChecks(w io.Writer, results []Result) error {
	if len(results) == 0 {
		_, err := fmt.Fprintln(w, "\nnothing of what must be shown is in this run")
		return err
	}
	fmt.Fprintln(w)
	return r.checks(results).text(w)
}

package report

import (
	"fmt"
	"io"

	"uvxlan/bench/scenario"
)

// Target is a ratio that must be reached.
type Target struct {
	What string
	// Underlays are those that it must be reached on.
	Underlays  []string
	Scenario   string
	Metric     scenario.Metric
	System, To string
	// Limit is the least ratio, or the largest if the metric is one of which less
	// is better.
	Limit float64
}

var (
	veth  = []string{"veth"}
	usual = []string{"veth", "nic"}
	every = []string{"veth", "nic", "nic-plain"}
)

// Targets is what the project promises. What should be equal has 5 % of noise.
var Targets = []Target{
	{"TCP 1 stream, to kernel VXLAN", []string{"nic"}, "tcp1", scenario.Rate, "uvxlan", "kernel", 1.2},
	{"TCP 1 stream, to kernel VXLAN", []string{"veth"}, "tcp1", scenario.Rate, "uvxlan", "kernel", 0.65},
	{"TCP 4 streams, to kernel VXLAN", []string{"nic"}, "tcp4", scenario.Rate, "uvxlan", "kernel", 0.85},
	{"TCP 1 stream, to kernel VXLAN", []string{"nic-plain"}, "tcp1", scenario.Rate, "uvxlan", "kernel", 0.9},
	{"UDP 64 B received, to kernel VXLAN", usual, "udp64", scenario.Received, "uvxlan", "kernel", 1.3},
	{"UDP 64 B received, to wireguard-go", every, "udp64", scenario.Received, "uvxlan", "wireguard-go", 4},
	{"TCP 1 stream, to wireguard-go", every, "tcp1", scenario.Rate, "uvxlan", "wireguard-go", 3},
	{"TCP 1 stream, to a packet at a time", every, "tcp1", scenario.Rate, "uvxlan", "uvxlan-off", 8},
	{"TCP from kernel VXLAN to uvxlan, to kernel-kernel", []string{"nic"}, "tcp1", scenario.Rate, "kernel-to-uvxlan", "kernel", 0.9},
	{"TCP 1 stream, direct, to kernel host-gw", veth, "tcp1", scenario.Rate, "uvxlan-direct", "host-gw", 0.6},
	{"TCP 1 stream, direct, to VXLAN", veth, "tcp1", scenario.Rate, "uvxlan-direct", "uvxlan", 1.05},
	{"TCP 4 streams, direct, to VXLAN", veth, "tcp4", scenario.Rate, "uvxlan-direct", "uvxlan", 1.4},
	{"UDP 64 B received, direct, to VXLAN", veth, "udp64", scenario.Received, "uvxlan-direct", "uvxlan", 1},
	{"TCP 1 stream, DirectMode route, to kernel host-gw", veth, "tcp1", scenario.Rate, "uvxlan-route", "host-gw", 0.95},
	{"TCP 1 stream, uvxlan's host-gw, to kernel host-gw", veth, "tcp1", scenario.Rate, "uvxlan-host-gw", "host-gw", 0.95},
	{"RTT p50 idle, to a packet at a time", every, "rtt", scenario.P50, "uvxlan", "uvxlan-off", 1.05},
}

// Result is what became of a target.
type Result struct {
	Target
	Underlay string
	Ratio    *Spread
}

// Met reports whether the median reaches the target.
func (c Result) Met() bool {
	if c.Metric.Lower {
		return c.Ratio.Median <= c.Limit
	}
	return c.Ratio.Median >= c.Limit
}

// Check holds the run against the targets, each on each of its underlays.
// Where several builds took part, label is that of the one to judge. What
// the run doesn't have is left out.
func (r *Report) Check(label string) (results []Result) {
	labelled := func(name string) string {
		if r.has(name) || label == "" {
			return name
		}
		return name + ":" + label
	}
	for _, t := range Targets {
		for _, u := range t.Underlays {
			ratio := r.Ratio(u, t.Scenario, t.Metric, labelled(t.System), labelled(t.To))
			if ratio != nil {
				results = append(results, Result{t, u, ratio})
			}
		}
	}
	return results
}

func (r *Report) has(system string) bool {
	for _, s := range r.Systems {
		if s.Name == system {
			return true
		}
	}
	return false
}

// checks is the results as a table.
func checks(results []Result) grid {
	g := grid{{"what must be shown", "underlay", "limit", "measured", "min - max", ""}}
	for _, c := range results {
		limit, verdict := "at least ", "ok"
		if c.Metric.Lower {
			limit = "at most "
		}
		if !c.Met() {
			verdict = "missed"
		}
		g = append(g, []string{
			c.What, c.Underlay, limit + ratio(c.Limit), ratio(c.Ratio.Median), interval(c.Ratio, ratio), verdict,
		})
	}
	return g
}

// WriteChecks writes the results as a table for a terminal.
func WriteChecks(w io.Writer, results []Result) error {
	if len(results) == 0 {
		_, err := fmt.Fprintln(w, "\nnothing of what must be shown is in this run")
		return err
	}
	fmt.Fprintln(w)
	return checks(results).text(w)
}

package report

import (
	"fmt"
	"math"
)

// Run is one measurement.
type Run struct {
	Underlay string `json:"underlay"`
	Scenario string `json:"scenario"`
	System   string `json:"system"`
	// Repetition counts from 0.
	Repetition int `json:"repetition"`
	Conditions
}

// Conditions is what else the machine did. Shares are of the time of all CPUs, in
// per cent.
type Conditions struct {
	// LoadBefore and Load are the load average over a minute, before the run and at
	// its end. They have the bench's own runs in them.
	LoadBefore float64 `json:"load_before"`
	Load       float64 `json:"load"`
	// BusyBefore is what others used just before the run, when nothing of the bench
	// ran.
	BusyBefore float64 `json:"busy_before"`
	// StealBefore and Steal are what the virtual machine's host gave to its other
	// guests meanwhile, before the run and during it.
	StealBefore float64 `json:"steal_before"`
	Steal       float64 `json:"steal"`
}

// More than these is a busy machine's. A tick of the kernel's CPU accounting is 5 %
// of what two CPUs have in the time before a run.
const (
	busyLimit  = 10.0
	stealLimit = 5.0
)

// Busy reports whether others used so much of the machine that the run's figures
// may be theirs. The load average doesn't count, since the runs before raise it.
func (c Conditions) Busy() bool {
	return c.BusyBefore > busyLimit || max(c.StealBefore, c.Steal) > stealLimit
}

// busy counts a system's runs of a scenario, and those of them on a busy machine.
func (r *Report) busy(underlay, scenarioName, system string) (busy, all int) {
	for _, run := range r.Runs {
		if run.Underlay != underlay || run.Scenario != scenarioName || run.System != system {
			continue
		}
		all++
		if run.Busy() {
			busy++
		}
	}
	return busy, all
}

// few shows a part of all; nothing if there is none.
func few(part, all int) string {
	if part == 0 {
		return ""
	}
	return fmt.Sprintf("%d of %d", part, all)
}

// conditions sums up what else the machine did, in a few sentences; empty if
// nothing is known.
func (r *Report) conditions() string {
	if len(r.Runs) == 0 {
		return ""
	}
	busy := 0
	var before, steal Series
	for i, run := range r.Runs {
		before, steal = before.set(i, run.BusyBefore), steal.set(i, max(run.StealBefore, run.Steal))
		if run.Busy() {
			busy++
		}
	}
	b, s := before.spread(), steal.spread()
	return fmt.Sprintf("Load average %.2f before the first run. Before each run others used %.0f %% of the CPUs in the median, %.0f %% at most; "+
		"steal was %.1f %%, %.1f %% at most. %d of %d runs were made on a busy machine, which is more than %.0f %% or %.0f %% of these.",
		r.Runs[0].LoadBefore, b.Median, math.Ceil(b.Max), s.Median, s.Max, busy, len(r.Runs), busyLimit, stealLimit)
}

// Package report turns the values of a benchmark run into medians, ratios,
// tables and a chart.
package report

import (
	"uvxlan/bench/scenario"
)

// Report is all of one run.
type Report struct {
	Machine   Machine    `json:"machine"`
	Seconds   float64    `json:"seconds_per_run"`
	Repeat    int        `json:"repeat"`
	Stopped   bool       `json:"stopped,omitempty"` // before the end
	Underlays []Underlay `json:"underlays"`
	Systems   []System   `json:"systems"`
	Scenarios []Scenario `json:"scenarios"`
	// Baseline is the system that the ratios are to.
	Baseline string   `json:"baseline"`
	Runs     []Run    `json:"runs"`
	Rows     []*Row   `json:"rows"`
	Failures []string `json:"failures,omitempty"`
}

// Underlay is one of the kinds that were used.
type Underlay struct {
	Name  string `json:"name"`
	About string `json:"about"`
}

// System is one of those that took part, or were left out.
type System struct {
	Name    string `json:"name"`
	About   string `json:"about"`
	LeftOut string `json:"left_out,omitempty"` // why
}

// Scenario is one of those that were run.
type Scenario struct {
	Name  string `json:"name"`
	About string `json:"about"`
}

// Row is one metric of one system in one scenario on one underlay.
type Row struct {
	Underlay string `json:"underlay"`
	Scenario string `json:"scenario"`
	Metric   string `json:"metric"`
	Unit     string `json:"unit"`
	Lower    bool   `json:"lower_is_better,omitempty"`
	Plain    bool   `json:"no_ratio,omitempty"`
	System   string `json:"system"`
	// Values is in the order of the repetitions.
	Values Series  `json:"values"`
	Spread *Spread `json:"summary,omitempty"`
	Ratio  *Spread `json:"ratio_to_baseline,omitempty"`
}

// Add records a run and its values.
func (r *Report) Add(run Run, s scenario.Sample) {
	r.Runs = append(r.Runs, run)
	for _, m := range scenario.Metrics {
		v, ok := s[m]
		if !ok {
			continue
		}
		row := r.Find(run.Underlay, run.Scenario, m, run.System)
		if row == nil {
			row = &Row{
				Underlay: run.Underlay, Scenario: run.Scenario, System: run.System,
				Metric: m.Name, Unit: m.Unit, Lower: m.Lower, Plain: m.Plain,
			}
			r.Rows = append(r.Rows, row)
		}
		row.Values = row.Values.set(run.Repetition, v)
	}
}

// Find returns the row, nil if there is none.
func (r *Report) Find(underlay, scenarioName string, m scenario.Metric, system string) *Row {
	for _, row := range r.Rows {
		if row.Underlay == underlay && row.Scenario == scenarioName && row.System == system && row.is(m) {
			return row
		}
	}
	return nil
}

func (row *Row) is(m scenario.Metric) bool { return row.Metric == m.Name && row.Unit == m.Unit }

// Ratio compares two systems, repetition by repetition: what disturbs the
// machine for longer than a run disturbs both. It is nil if they have no
// repetition in common.
func (r *Report) Ratio(underlay, scenarioName string, m scenario.Metric, system, to string) *Spread {
	a, b := r.Find(underlay, scenarioName, m, system), r.Find(underlay, scenarioName, m, to)
	if a == nil || b == nil {
		return nil
	}
	return a.Values.ratio(b.Values).spread()
}

// Finish summarizes what was added and puts the rows in order.
func (r *Report) Finish() {
	r.sort()
	for _, row := range r.Rows {
		row.Spread = row.Values.spread()
		row.Ratio = nil
		if row.Plain || row.System == r.Baseline {
			continue
		}
		row.Ratio = r.Ratio(row.Underlay, row.Scenario, scenario.Metric{Name: row.Metric, Unit: row.Unit}, row.System, r.Baseline)
	}
}

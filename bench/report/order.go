package report

import (
	"cmp"
	"slices"

	"uvxlan/bench/scenario"
)

// sort puts the rows in the order of the scenarios, metrics and systems; the
// underlays stay as they came.
func (r *Report) sort() {
	var underlays []string
	for _, row := range r.Rows {
		if !slices.Contains(underlays, row.Underlay) {
			underlays = append(underlays, row.Underlay)
		}
	}
	key := func(row *Row) [4]int {
		return [4]int{
			slices.Index(underlays, row.Underlay),
			slices.IndexFunc(r.Scenarios, func(s Scenario) bool { return s.Name == row.Scenario }),
			slices.IndexFunc(scenario.Metrics, func(m scenario.Metric) bool { return m.Name == row.Metric && m.Unit == row.Unit }),
			slices.IndexFunc(r.Systems, func(s System) bool { return s.Name == row.System }),
		}
	}
	slices.SortStableFunc(r.Rows, func(a, b *Row) int {
		x, y := key(a), key(b)
		for i := range x {
			if c := cmp.Compare(x[i], y[i]); c != 0 {
				return c
			}
		}
		return 0
	})
}

package report

import (
	"fmt"
	"io"
	"math"
	"slices"
	"strings"
	"text/tabwriter"

	"uvxlan/bench/scenario"
)

// grid is a table of text, whose first row is its head.
type grid [][]string

// grid is the rows of one underlay; a cell that would repeat the one above it
// is empty. What a UDP test lost stands beside what arrived, which says little
// without it. "busy" counts the runs on a busy machine.
func (r *Report) grid(underlay string) grid {
	g := grid{{"scenario", "metric", "system", "median", "min - max", "lost", "to " + r.Baseline, "min - max", "busy"}}
	var scenarioName, metric string
	for _, row := range r.Rows {
		if row.Underlay != underlay || row.Spread == nil || row.is(scenario.Loss) && r.beside(row, scenario.Received) != nil {
			continue
		}
		line := []string{
			row.Scenario, row.Metric + ", " + row.Unit, row.System,
			number(row.Spread.Median), interval(row.Spread, number), r.lost(row), "", "", few(r.busy(row.Underlay, row.Scenario, row.System)),
		}
		if row.Ratio != nil {
			line[6], line[7] = ratio(row.Ratio.Median), interval(row.Ratio, ratio)
		}
		if row.Scenario == scenarioName {
			line[0] = ""
			if line[1] == metric {
				line[1] = ""
			} else {
				metric = line[1]
			}
		} else {
			scenarioName, metric = row.Scenario, line[1]
		}
		g = append(g, line)
	}
	return g.without("lost").without("busy")
}

// lost is the loss of what the row says was received; empty if it says no such thing.
func (r *Report) lost(row *Row) string {
	if !row.is(scenario.Received) {
		return ""
	}
	loss := r.beside(row, scenario.Loss)
	if loss == nil || loss.Spread == nil {
		return ""
	}
	return number(loss.Spread.Median) + " %"
}

// beside is the row of another metric of the same runs.
func (r *Report) beside(row *Row, m scenario.Metric) *Row {
	return r.Find(row.Underlay, row.Scenario, m, row.System)
}

// without leaves out the column if nothing is in it.
func (g grid) without(column string) grid {
	i := slices.Index(g[0], column)
	if i < 0 || slices.ContainsFunc(g[1:], func(line []string) bool { return line[i] != "" }) {
		return g
	}
	var out grid
	for _, line := range g {
		out = append(out, slices.Delete(slices.Clone(line), i, i+1))
	}
	return out
}

func (r *Report) underlays() []string {
	var all []string
	for _, row := range r.Rows {
		if len(all) == 0 || all[len(all)-1] != row.Underlay {
			all = append(all, row.Underlay)
		}
	}
	return all
}

// Text writes the tables for a terminal.
func (r *Report) Text(w io.Writer) error {
	if words := r.conditions(); words != "" {
		if _, err := fmt.Fprintf(w, "\n%s\n", words); err != nil {
			return err
		}
	}
	for _, u := range r.underlays() {
		if _, err := fmt.Fprintf(w, "\nunderlay %s\n\n", u); err != nil {
			return err
		}
		if err := r.grid(u).text(w); err != nil {
			return err
		}
	}
	return nil
}

func (g grid) text(w io.Writer) error {
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, line := range g {
		fmt.Fprintln(tw, strings.Join(line, "\t"))
	}
	return tw.Flush()
}

// number shows three digits that count.
func number(v float64) string {
	if v == 0 {
		return "0"
	}
	digits := 2 - int(math.Floor(math.Log10(math.Abs(v))))
	return fmt.Sprintf("%.*f", min(max(digits, 0), 3), v)
}

// Value shows a value with its unit.
func Value(v float64, m scenario.Metric) string { return number(v) + " " + m.Unit }

func ratio(v float64) string { return fmt.Sprintf("%.2f", v) }

func interval(s *Spread, show func(float64) string) string {
	if s.N == 1 {
		return ""
	}
	return show(s.Min) + " - " + show(s.Max)
}

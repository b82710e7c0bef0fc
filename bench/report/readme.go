package report

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
)

// The lines between which a README has what was measured: all of it, or in short.
const (
	readmeBegin = "<!-- measured: go run ./bench -check -t 2s -readme bench/README.md,README.md -->"
	shortBegin  = "<!-- measured, in short: go run ./bench -check -t 2s -readme bench/README.md,README.md -->"
	readmeEnd   = "<!-- measured: end -->"
)

var errMarks = errors.New("there are no two comments that mark the place of what was measured: " + readmeBegin + " or " + shortBegin + ", and " + readmeEnd)

// WriteReadme replaces what is between the two comments in the file, by the whole
// table or by the short one, as the first comment says.
func (r *Report) WriteReadme(file string, results []Result) error {
	content, err := os.ReadFile(file)
	if err != nil {
		return fmt.Errorf("write README: %w", err)
	}
	text, begin, table := string(content), readmeBegin, r.readme
	if !strings.Contains(text, begin) {
		begin, table = shortBegin, short
	}
	before, rest, ok := strings.Cut(text, begin+"\n")
	_, after, ended := strings.Cut(rest, readmeEnd+"\n")
	if !ok || !ended {
		return fmt.Errorf("write README: %s: %w", file, errMarks)
	}
	out := before + begin + "\n" + table(results) + readmeEnd + "\n" + after
	if err := os.WriteFile(file, []byte(out), 0o644); err != nil {
		return fmt.Errorf("write README: %w", err)
	}
	return nil
}

// short is what uvxlan has beside kernel VXLAN: the ranges over the machines, with an
// underlay a column.
func short(results []Result) string {
	const to = ", to kernel VXLAN"
	underlays := []string{ugro, unic, uveth}
	g := grid{{""}}
	for _, u := range underlays {
		g[0] = append(g[0], "`"+u+"`")
	}
	lines := map[string][]string{}
	for _, c := range results {
		name, ok := strings.CutSuffix(c.What, to)
		column := slices.Index(underlays, c.Underlay) + 1
		if c.plain() && ok && column > 0 {
			if lines[name] == nil {
				lines[name] = append([]string{name}, make([]string, len(underlays))...)
				g = append(g, lines[name])
			}
			lines[name][column] = c.seen()
		}
	}
	var b strings.Builder
	fmt.Fprintln(&b)
	g.markdown(&b)
	fmt.Fprintln(&b)
	return b.String()
}

// readme is what was measured, for those who decide whether to use it: the range
// over the machines, and this run's values.
func (r *Report) readme(results []Result) string {
	g := grid{{"", "underlay", "over machines", "this run, min - max", "uvxlan", "compared with", "busy"}}
	for _, c := range results {
		g = append(g, []string{
			c.What, "`" + c.Underlay + "`", c.seen(), strings.TrimSuffix(c.show(c.Figure.Median)+", "+interval(c.Figure, c.show), ", "),
			r.value(c, c.System), r.value(c, c.To), r.busyRuns(c),
		})
	}
	g = g.without("busy")
	var b strings.Builder
	fmt.Fprintf(&b, "\n%s; %s of %gs, %s.\n", r.Machine, r.repetitions(), r.Seconds, r.Machine.Time.Format("2006-01-02"))
	if words := r.conditions(); words != "" {
		fmt.Fprintf(&b, "%s\n", words)
	}
	fmt.Fprintln(&b)
	g.markdown(&b)
	fmt.Fprintln(&b)
	for _, u := range r.Underlays {
		fmt.Fprintf(&b, "- `%s`: %s\n", u.Name, u.About)
	}
	fmt.Fprintln(&b)
	return b.String()
}

// repetitions says how many runs a figure is of.
func (r *Report) repetitions() string {
	if r.Repeat == 1 {
		return "one run"
	}
	return fmt.Sprintf("medians of %d runs", r.Repeat)
}

// value is a system's own median, with what UDP lost; empty if there is no system.
func (r *Report) value(c Result, system string) string {
	m := c.Metric
	if system == c.To && c.From.Name != "" {
		m = c.From
	}
	row := r.Find(c.Underlay, c.Scenario, m, system)
	if row == nil || row.Spread == nil {
		return ""
	}
	words := Value(row.Spread.Median, m)
	if lost := r.lost(row); lost != "" {
		words += ", " + lost + " lost"
	}
	return words
}

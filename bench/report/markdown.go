package report

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
)

// Markdown writes the whole report, with the chart of that file name.
func (r *Report) Markdown(w io.Writer, chart string, results []Result) error {
	var b strings.Builder
	fmt.Fprintf(&b, "# uvxlan bench, %s\n\n", r.Machine.Time.Format("2006-01-02 15:04"))
	r.markdownHead(&b)
	fmt.Fprintf(&b, "\n![chart](%s)\n", chart)
	if len(results) > 0 {
		fmt.Fprintf(&b, "\n## What must be shown\n\n")
		r.checks(results).markdown(&b)
	}
	for _, u := range r.underlays() {
		fmt.Fprintf(&b, "\n## Underlay %s\n\n", u)
		r.grid(u).markdown(&b)
	}
	r.markdownTail(&b)
	_, err := io.WriteString(w, b.String())
	return err
}

func (r *Report) markdownHead(b *strings.Builder) {
	m := r.Machine
	fmt.Fprintf(b, "%s. ", m)
	fmt.Fprintf(b, "Medians of %d interleaved runs of %gs; ratios are of runs side by side.\n", r.Repeat, r.Seconds)
	if words := r.conditions(); words != "" {
		fmt.Fprintf(b, "\n%s\n", words)
	}
	if r.Stopped {
		fmt.Fprintf(b, "\n**Stopped before the end.**\n")
	}
	fmt.Fprintln(b)
	for _, name := range slices.Sorted(maps.Keys(m.Versions)) {
		fmt.Fprintf(b, "- %s: %s\n", name, m.Versions[name])
	}
}

func (r *Report) markdownTail(b *strings.Builder) {
	fmt.Fprintf(b, "\n## Underlays\n\n")
	for _, u := range r.Underlays {
		fmt.Fprintf(b, "- `%s`: %s\n", u.Name, u.About)
	}
	fmt.Fprintf(b, "\n## Systems\n\n")
	for _, s := range r.Systems {
		fmt.Fprintf(b, "- `%s`: %s", s.Name, s.About)
		if s.LeftOut != "" {
			fmt.Fprintf(b, " (left out: %s)", s.LeftOut)
		}
		fmt.Fprintln(b)
	}
	fmt.Fprintf(b, "\n## Scenarios\n\n")
	for _, s := range r.Scenarios {
		fmt.Fprintf(b, "- `%s`: %s\n", s.Name, s.About)
	}
	if len(r.Failures) > 0 {
		fmt.Fprintf(b, "\n## Failures\n\n")
	}
	for _, f := range r.Failures {
		fmt.Fprintf(b, "- %s\n", f)
	}
}

func (g grid) markdown(b *strings.Builder) {
	for i, line := range g {
		fmt.Fprintf(b, "| %s |\n", strings.Join(line, " | "))
		if i == 0 {
			fmt.Fprintf(b, "|%s\n", strings.Repeat("---|", len(line)))
		}
	}
}

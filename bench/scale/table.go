package scale

import (
	"fmt"
	"io"
	"text/tabwriter"
	"time"
)

// Row is one figure. Without a Goal there is none to meet.
type Row struct {
	What, Value, Range, Goal string
	Met                      bool
}

// Table is the figures in their order.
type Table struct{ Rows []Row }

func (t *Table) add(r Row) { t.Rows = append(t.Rows, r) }

// Missed tells whether a goal was missed.
func (t *Table) Missed() bool {
	for _, r := range t.Rows {
		if r.Goal != "" && !r.Met {
			return true
		}
	}
	return false
}

// Write prints the table.
func (t *Table) Write(w io.Writer) error {
	tab := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, r := range t.Rows {
		verdict := ""
		switch {
		case r.Goal != "" && r.Met:
			verdict = "ok: " + r.Goal
		case r.Goal != "":
			verdict = "MISSED: " + r.Goal
		}
		fmt.Fprintf(tab, "%s\t%s\t%s\t%s\n", r.What, r.Value, r.Range, verdict)
	}
	return tab.Flush()
}

func milliseconds(d time.Duration) string {
	if d < 10*time.Millisecond {
		return fmt.Sprintf("%.2f ms", float64(d)/float64(time.Millisecond))
	}
	return fmt.Sprintf("%.0f ms", float64(d)/float64(time.Millisecond))
}

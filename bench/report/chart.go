package report

import (
	"fmt"
	"os"
	"slices"
	"strings"

	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"
	"gonum.org/v1/plot/vg/vgsvg"

	"uvxlan/bench/scenario"
)

// Lengths of the chart, in points. It is as wide as a slide.
const (
	chartWidth  = 960
	chartMargin = 24
	headHeight  = 64
	footHeight  = 22
	panelHead   = 52 // of a row, the gap to the next included
	panelBars   = 32
	barHeight   = 17
	maxColumns  = 4
)

// charted are the scenarios that tell most.
var charted = []string{"tcp1", "tcp4", "udp64", "rtt"}

// Chart writes an SVG: a row of panels for each underlay, a column for each of
// the scenarios that tell most. It writes nothing if there is nothing to show.
func (r *Report) Chart(file string) error {
	columns := r.columns()
	if len(columns) == 0 {
		return nil
	}
	f, err := os.Create(file)
	if err != nil {
		return fmt.Errorf("write chart: %w", err)
	}
	defer f.Close()
	rows, height := r.layout(columns)
	svg := vgsvg.NewWith(vgsvg.UseWH(chartWidth, height))
	c := draw.New(svg)
	c.SetColor(white)
	c.Fill(c.Path())
	r.drawHead(c)
	top := height - headHeight
	for _, row := range rows {
		for i, p := range row.panels {
			width := vg.Length(chartWidth-2*chartMargin) / vg.Length(len(columns))
			left := chartMargin + width*vg.Length(i)
			area := draw.Crop(c, left, left+width-chartWidth, top-row.height, top-height)
			if err := p.draw(area); err != nil {
				return fmt.Errorf("draw chart: %w", err)
			}
		}
		top -= row.height
	}
	if _, err := svg.WriteTo(f); err != nil {
		return fmt.Errorf("write chart: %w", err)
	}
	return f.Close()
}

// columns returns the scenarios to draw.
func (r *Report) columns() []Scenario {
	var columns []Scenario
	for _, s := range r.Scenarios {
		if slices.Contains(charted, s.Name) {
			columns = append(columns, s)
		}
	}
	if len(columns) == 0 {
		columns = r.Scenarios
	}
	return columns[:min(len(columns), maxColumns)]
}

// chartRow is the panels of one underlay.
type chartRow struct {
	height vg.Length
	panels []*panel
}

func (r *Report) layout(columns []Scenario) (rows []chartRow, height vg.Length) {
	height = headHeight + footHeight
	for _, u := range r.underlays() {
		var row chartRow
		bars := 0
		for _, c := range columns {
			p := r.panel(u, c)
			bars = max(bars, len(p.bars))
			row.panels = append(row.panels, p)
		}
		if bars == 0 {
			continue
		}
		for _, p := range row.panels {
			p.slots = bars
		}
		row.height = panelHead + vg.Length(bars)*barHeight
		height += row.height
		rows = append(rows, row)
	}
	return rows, height
}

// panel collects the bars of one scenario on one underlay: its first metric.
func (r *Report) panel(underlay string, c Scenario) *panel {
	p := &panel{title: title(c), underlay: underlay}
	for _, row := range r.Rows {
		if row.Underlay != underlay || row.Scenario != c.Name || row.Spread == nil {
			continue
		}
		if p.metric == (scenario.Metric{}) {
			p.metric = scenario.Metric{Name: row.Metric, Unit: row.Unit, Lower: row.Lower}
		}
		if row.Metric == p.metric.Name && row.Unit == p.metric.Unit {
			p.bars = append(p.bars, bar{row.System, *row.Spread, row.Ratio})
		}
	}
	return p
}

// title is the scenario's description up to what only the curious need.
func title(c Scenario) string {
	parts := strings.SplitN(c.About, ", ", 3)
	return strings.Join(parts[:min(len(parts), 2)], ", ")
}

func (r *Report) drawHead(c draw.Canvas) {
	y := c.Max.Y - chartMargin
	c.FillText(style(17, true, ink), vg.Point{X: chartMargin, Y: y - 6}, "uvxlan and its alternatives: container to container, two hosts")
	note := fmt.Sprintf("Median of %d interleaved runs of %gs, lines from least to most; in parentheses the ratio to %s.",
		r.Repeat, r.Seconds, r.Baseline)
	c.FillText(style(8, false, faint), vg.Point{X: chartMargin, Y: y - 22}, note)
	c.FillText(style(8, false, faint), vg.Point{X: chartMargin, Y: footHeight / 2}, r.Machine.String()+", "+r.Machine.Time.Format("2006-01-02"))
}

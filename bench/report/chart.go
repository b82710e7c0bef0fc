package report

import (
	"fmt"
	"image/color"
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
	gutter      = 28 // between two columns
	headHeight  = 64
	legendLine  = 12
	wider       = 1.2 // than in our font a text may be in a viewer's
	panelHead   = 52  // of a row, the gap to the next included
	panelBars   = 32
	barHeight   = 17
	maxColumns  = 4
)

// column is what a column of panels shows.
type column struct {
	scenario string
	metric   scenario.Metric
}

// charted is what tells most.
var charted = []column{
	{"tcp1", scenario.CPUPerGB}, {"tcp1", scenario.Rate}, {"udp64", scenario.Received}, {"rtt", scenario.P50},
}

// Chart writes an SVG: a row of panels for each underlay, a column for each
// metric that tells most. It writes nothing if there is nothing to show.
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
			left, right := across(i, len(columns))
			area := draw.Crop(c, left, right-chartWidth, top-row.height, top-height)
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

// across is where the i-th of n columns begins and ends.
func across(i, n int) (left, right vg.Length) {
	width := (chartWidth - 2*chartMargin - vg.Length(n-1)*gutter) / vg.Length(n)
	left = chartMargin + (width+gutter)*vg.Length(i)
	return left, left + width
}

// columns returns what to draw: of a run without all that is usually charted, the
// main metric of each scenario.
func (r *Report) columns() []column {
	var columns []column
	for _, c := range charted {
		if r.measured(c) {
			columns = append(columns, c)
		}
	}
	if len(columns) > 0 {
		return columns
	}
	for _, s := range scenario.All() {
		if c := (column{s.Name, s.Main}); r.measured(c) {
			columns = append(columns, c)
		}
	}
	return columns[:min(len(columns), maxColumns)]
}

func (r *Report) measured(c column) bool {
	return slices.ContainsFunc(r.Rows, func(row *Row) bool { return row.Scenario == c.scenario && row.is(c.metric) && row.Spread != nil })
}

// chartRow is the panels of one underlay.
type chartRow struct {
	height vg.Length
	panels []*panel
}

func (r *Report) layout(columns []column) (rows []chartRow, height vg.Length) {
	height = headHeight + r.legendHeight()
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

// panel collects the bars of one metric on one underlay.
func (r *Report) panel(underlay string, c column) *panel {
	p := &panel{title: r.title(c), underlay: underlay, metric: c.metric}
	for _, row := range r.Rows {
		if row.Underlay == underlay && row.Scenario == c.scenario && row.is(c.metric) && row.Spread != nil {
			p.bars = append(p.bars, bar{row.System, *row.Spread, row.Ratio, r.lost(row)})
		}
	}
	return p
}

// title is the scenario's description up to what only the curious need.
func (r *Report) title(c column) string {
	about := c.scenario
	if i := slices.IndexFunc(r.Scenarios, func(s Scenario) bool { return s.Name == c.scenario }); i >= 0 {
		about = r.Scenarios[i].About
	}
	parts := strings.SplitN(about, ", ", 3)
	return strings.Join(parts[:min(len(parts), 2)], ", ")
}

func (r *Report) drawHead(c draw.Canvas) {
	y := c.Max.Y - chartMargin
	c.FillText(style(17, true, ink), vg.Point{X: chartMargin, Y: y - 6}, "uvxlan and its alternatives: container to container, two hosts")
	note := fmt.Sprintf("Median of %d interleaved runs of %gs, lines from least to most; in parentheses the ratio to %s.",
		r.Repeat, r.Seconds, r.Baseline)
	c.FillText(style(8, false, faint), vg.Point{X: chartMargin, Y: y - 22}, note)
	r.drawLegend(c)
}

// legendHeight has a line for the colours, one for each underlay and one for the
// machine.
func (r *Report) legendHeight() vg.Length { return legendLine * vg.Length(3+len(r.Underlays)) }

func (r *Report) drawLegend(c draw.Canvas) {
	y := r.legendHeight() - legendLine
	x := vg.Length(chartMargin)
	small := style(8, false, faint)
	for _, k := range []struct {
		shade color.Color
		words string
	}{
		{accent, "uvxlan"},
		{partly, "uvxlan otherwise: without VXLAN, with less, or with a kernel VXLAN host at one end"},
		{compare, "kernel VXLAN"},
		{rest, "others"},
	} {
		const size = 7
		c.SetColor(k.shade)
		c.Fill(vg.Rectangle{Min: vg.Point{X: x, Y: y - 1}, Max: vg.Point{X: x + size, Y: y - 1 + size}}.Path())
		c.FillText(small, vg.Point{X: x + size + 4, Y: y}, k.words)
		x += size + 4 + small.Width(k.words)*wider + 16
	}
	for _, u := range r.Underlays {
		y -= legendLine
		c.FillText(small, vg.Point{X: chartMargin, Y: y}, "Underlay "+u.Name+": "+u.About+".")
	}
	y -= legendLine
	c.FillText(small, vg.Point{X: chartMargin, Y: y}, r.Machine.String()+", "+r.Machine.Time.Format("2006-01-02"))
}

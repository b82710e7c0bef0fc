package report

import (
	"fmt"
	"image/color"
	"strings"

	stdfont "golang.org/x/image/font"
	"gonum.org/v1/plot"
	"gonum.org/v1/plot/font"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/text"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"

	"uvxlan/bench/scenario"
)

var (
	white   = color.Gray{Y: 255}
	ink     = color.NRGBA{R: 0x22, G: 0x28, B: 0x2e, A: 0xff}
	faint   = color.NRGBA{R: 0x6b, G: 0x74, B: 0x7d, A: 0xff}
	accent  = color.NRGBA{R: 0x0b, G: 0x72, B: 0x9c, A: 0xff}
	partly  = color.NRGBA{R: 0x8c, G: 0xc0, B: 0xd4, A: 0xff}
	compare = color.NRGBA{R: 0x4a, G: 0x53, B: 0x5c, A: 0xff}
	rest    = color.NRGBA{R: 0xbc, G: 0xc3, B: 0xca, A: 0xff}
)

// panel is one small chart of horizontal bars, the first system on top.
type panel struct {
	title, underlay string
	metric          scenario.Metric
	bars            []bar
	slots           int // bars that the row has room for
}

type bar struct {
	system string
	value  Spread
	ratio  *Spread
	lost   string // empty if nothing is known of it
}

// nameWidth is left of the bars; it is ample, since a viewer may have another
// font.
const nameWidth = 92

func style(size font.Length, bold bool, c color.Color) text.Style {
	f := font.Font{Typeface: "Liberation", Variant: "Sans", Size: size}
	if bold {
		f.Weight = stdfont.WeightBold
	}
	return text.Style{Color: c, Font: f, Handler: plot.DefaultTextHandler}
}

// draw fills the area with the title and the bars.
func (p *panel) draw(c draw.Canvas) error {
	if len(p.bars) == 0 {
		return nil
	}
	c.FillText(style(10, true, ink), vg.Point{X: c.Min.X, Y: c.Max.Y - 14}, p.title)
	better := "more is better"
	if p.metric.Lower {
		better = "less is better"
	}
	c.FillText(style(8, false, faint), vg.Point{X: c.Min.X, Y: c.Max.Y - 25}, fmt.Sprintf("underlay %s, %s, %s, %s", p.underlay, p.metric.Name, p.metric.Unit, better))
	used := vg.Length(len(p.bars)) * barHeight
	area := draw.Crop(c, nameWidth, 0, 0, -panelBars)
	area.Min.Y = area.Max.Y - used
	for i, b := range p.bars {
		name := style(8.5, shade(b.system) == accent, ink)
		name.YAlign = text.YCenter
		y := area.Max.Y - (vg.Length(i)+0.5)*barHeight
		c.FillText(name, vg.Point{X: c.Min.X, Y: y}, b.system)
	}
	chart, err := p.plot()
	if err != nil {
		return err
	}
	chart.Draw(area)
	return nil
}

// plot makes the bars, with their values behind them.
func (p *panel) plot() (*plot.Plot, error) {
	chart := plot.New()
	chart.HideAxes()
	chart.BackgroundColor = color.Transparent
	chart.X.Padding, chart.Y.Padding = 0, 0
	most := 0.0
	for _, b := range p.bars {
		most = max(most, b.value.Max)
	}
	for i, b := range p.bars {
		if err := addBar(chart, b, float64(len(p.bars)-1-i)); err != nil {
			return nil, err
		}
	}
	chart.X.Min, chart.X.Max = 0, most*p.space()+1e-9 // space for the text behind the longest
	chart.Y.Min, chart.Y.Max = -0.5, float64(len(p.bars))-0.5
	return chart, nil
}

// space is the width of the plot in that of the longest bar.
func (p *panel) space() float64 {
	for _, b := range p.bars {
		if b.lost != "" {
			return 3.4
		}
	}
	return 2
}

func addBar(chart *plot.Plot, b bar, y float64) error {
	bars, err := plotter.NewBarChart(plotter.Values{b.value.Median}, barHeight*0.66)
	if err != nil {
		return err
	}
	bars.Horizontal, bars.XMin, bars.Color, bars.LineStyle.Width = true, y, shade(b.system), 0
	chart.Add(bars)
	end := b.value.Median
	if b.value.N > 1 {
		line, err := plotter.NewLine(plotter.XYs{{X: b.value.Min, Y: y}, {X: b.value.Max, Y: y}})
		if err != nil {
			return err
		}
		line.Width, line.Color = 0.9, ink
		chart.Add(line)
		end = b.value.Max
	}
	words := number(b.value.Median)
	if b.ratio != nil {
		words += " (" + ratio(b.ratio.Median) + "\u00d7)"
	}
	if b.lost != "" {
		words += ", " + b.lost + " lost"
	}
	labels, err := plotter.NewLabels(plotter.XYLabels{XYs: plotter.XYs{{X: end, Y: y}}, Labels: []string{words}})
	if err != nil {
		return err
	}
	labels.TextStyle[0] = style(8.5, false, ink)
	labels.TextStyle[0].YAlign = text.YCenter
	labels.Offset = vg.Point{X: 4}
	chart.Add(labels)
	return nil
}

func shade(system string) color.Color {
	switch {
	case system == "uvxlan" || strings.HasPrefix(system, "uvxlan:"):
		return accent
	case strings.Contains(system, "uvxlan"):
		return partly
	case system == "kernel":
		return compare
	}
	return rest
}

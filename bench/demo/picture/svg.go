package main

import (
	"fmt"
	"html"
	"io"
	"regexp"
	"unicode/utf8"
)

// Measures in the image's units, which are pixels unless it is scaled.
const (
	cellWidth  = 8.4 // of the usual fixed-width fonts at this size
	lineHeight = 19
	fontSize   = 14
	margin     = 20
	minColumns = 80
)

// The style sheet follows the reader's choice of light or dark.
const sheet = `
.w{fill:#f6f8fa;stroke:#d0d7de}
text{font:14px ui-monospace,SFMono-Regular,Menlo,Consolas,"DejaVu Sans Mono","Liberation Mono",monospace;fill:#1f2328;white-space:pre}
.b{font-weight:bold}
.d{fill:#656d76}
.g{fill:#116329}
@media(prefers-color-scheme:dark){
.w{fill:#151b23;stroke:#3d444d}
text{fill:#e6edf3}
.d{fill:#9198a1}
.g{fill:#3fb950}
}
`

// draw writes the image of the lines.
func draw(w io.Writer, lines []line) {
	columns := minColumns
	for _, l := range lines {
		n := 0
		for _, s := range l {
			n += utf8.RuneCountInString(s.text)
		}
		columns = max(columns, n)
	}
	width, height := float64(columns)*cellWidth+2*margin, len(lines)*lineHeight+2*margin
	fmt.Fprintf(w, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %.0f %d" width="%.0f" height="%d" role="img">`, width, height, width, height)
	fmt.Fprintf(w, "\n<style>%s</style>\n", sheet)
	fmt.Fprintf(w, `<rect class="w" x=".5" y=".5" width="%.0f" height="%d" rx="8"/>`+"\n", width-1, height-1)
	for i, l := range lines {
		drawLine(w, l, margin+i*lineHeight+fontSize)
	}
	fmt.Fprintln(w, "</svg>")
}

// pieces are what is apart by two spaces or more.
var pieces = regexp.MustCompile(`\S+(?: \S+)*`)

// drawLine writes a line whose characters stand on y. Each piece has a place and a
// width of its own, so that columns are straight in any font.
func drawLine(w io.Writer, l line, y int) {
	column := 0 // of the span
	for _, s := range l {
		class := ""
		if s.style != plain {
			class = fmt.Sprintf(` class="%s"`, s.style)
		}
		for _, at := range pieces.FindAllStringIndex(s.text, -1) {
			piece := s.text[at[0]:at[1]]
			x := column + utf8.RuneCountInString(s.text[:at[0]])
			fmt.Fprintf(w, `<text%s x="%.1f" y="%d" textLength="%.1f">%s</text>`+"\n", class,
				margin+float64(x)*cellWidth, y, float64(utf8.RuneCountInString(piece))*cellWidth, html.EscapeString(piece))
		}
		column += utf8.RuneCountInString(s.text)
	}
}

package main

import (
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"os"
	"strings"
	"text/tabwriter"

	"uvxlan/internal/cli"
)

// printer writes a command's result, as a table or in JSON.
type printer struct {
	out    io.Writer
	json   bool
	colour bool
}

// outputFlag adds -o. The result, for use after parsing, makes a printer to out.
func outputFlag(fs *flag.FlagSet, out *os.File) func() (*printer, error) {
	form := fs.String("o", "table", "output `form`: table or json")
	return func() (*printer, error) {
		if *form != "table" && *form != "json" {
			return nil, cli.Usagef("-o %q: must be table or json", *form)
		}
		return &printer{out: out, json: *form == "json", colour: cli.Colours(out)}, nil
	}
}

func (p *printer) writeJSON(v any) error {
	e := json.NewEncoder(p.out)
	e.SetIndent("", "  ")
	return e.Encode(v)
}

// table writes rows of cells in aligned columns.
func (p *printer) table(rows [][]string) error {
	w := tabwriter.NewWriter(p.out, 0, 0, 2, ' ', 0)
	for _, cells := range rows {
		fmt.Fprintln(w, strings.Join(cells, "\t"))
	}
	return w.Flush()
}

// Colours, as SGR parameters (ECMA-48, section 8.3.117). All are as long, so
// that a table's columns stay aligned.
type colour string

const (
	plain  colour = "39"
	red    colour = "31"
	green  colour = "32"
	yellow colour = "33"
)

// paint colours text on a terminal.
func (p *printer) paint(c colour, text string) string {
	if !p.colour {
		return text
	}
	return "\x1b[" + string(c) + "m" + text + "\x1b[0m"
}

// or stands in for a cell that would be empty.
func or(text, otherwise string) string {
	if text == "" {
		return otherwise
	}
	return text
}

// size writes bytes in units of 1000.
func size(n uint64) string {
	const units = "kMGTPE"
	if n < 1000 {
		return fmt.Sprintf("%d B", n)
	}
	f, unit := float64(n)/1000, 0
	for f >= 999.5 && unit < len(units)-1 {
		f, unit = f/1000, unit+1
	}
	return fmt.Sprintf("%.3g %cB", f, units[unit])
}

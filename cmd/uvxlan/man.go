package main

import (
	"context"
	"flag"
	"io"
	"os"
	"strings"

	"uvxlan/cmd/internal/manpage"
	"uvxlan/cmd/internal/version"
)

func defineMan(*flag.FlagSet) action {
	return func(context.Context, []string) error { return writeManual(os.Stdout) }
}

// writeManual writes the program's manual page.
func writeManual(out io.Writer) error {
	described := manpage.Section{Title: "COMMANDS"}
	for _, c := range commands() {
		fs, _ := c.flags()
		title, text := c.name, c.summary
		if len(c.words) > 0 {
			title += " " + strings.Join(c.words, "|")
		}
		described.Parts = append(described.Parts, manpage.Section{Title: title, Text: text, Items: manpage.Flags(fs)})
	}
	return manpage.Page{
		Name: "uvxlan", Summary: "operator's command of the VXLAN router uvxland", Version: version.String(),
		Synopsis:    []string{"command [flags]", "command -help"},
		Description: "uvxlan shows what the daemon uvxland does on this host, reads and writes what is in etcd, and removes what a daemon has left.",
		Sections: []manpage.Section{
			described,
			{Title: "ENVIRONMENT", Text: `Flags that both programs have are taken from the daemon's variables, such as
FLANNELD_ETCD_ENDPOINTS for -etcd-endpoints.`},
			{Title: "EXIT STATUS", Items: []manpage.Item{
				{Term: "0", Text: "it is done"},
				{Term: "1", Text: "it failed, or what was asked for is not well; of doctor: there are warnings"},
				{Term: "2", Text: "the command line is wrong; of doctor: there are faults"},
			}},
		},
		SeeAlso: []string{"uvxland(8)"},
	}.Write(out)
}

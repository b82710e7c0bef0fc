// Package manpage writes manual pages, made from the flags that programs have.
package manpage

import (
	"flag"
	"fmt"
	"io"
	"strings"
)

// Page is a program's page in section 8, in the macros of man(7). Texts are plain;
// an empty line in one begins a paragraph.
type Page struct {
	// Name is the program's, Summary what it is, in a few words.
	Name, Summary string
	// Version stands in the page's footer.
	Version string
	// Synopsis are the program's command lines, without its name.
	Synopsis []string
	// Description is what it does.
	Description string
	// Sections follow the description.
	Sections []Section
	// SeeAlso are other pages, such as "uvxlan(8)".
	SeeAlso []string
}

// Section is a part of a page under a title, or, within another section, one of
// its parts.
type Section struct {
	Title string
	// Text comes first, then Items, then Parts.
	Text  string
	Items []Item
	Parts []Section
}

// Item is a flag, a file or the like, and what it is for.
type Item struct{ Term, Text string }

// Flags are the items of a set's flags, in order, with their defaults.
func Flags(fs *flag.FlagSet) (items []Item) {
	fs.VisitAll(func(f *flag.Flag) {
		value, text := flag.UnquoteUsage(f)
		term := "-" + f.Name
		if value != "" {
			term += " " + value
		}
		boolean, ok := f.Value.(interface{ IsBoolFlag() bool })
		switch {
		case ok && boolean.IsBoolFlag() && f.DefValue == "true":
			term += "=false"
			text += " (default: true)"
		case f.DefValue != "" && f.DefValue != "false" && f.DefValue != "0" && !strings.Contains(text, "(default"):
			text += " (default: " + f.DefValue + ")"
		}
		items = append(items, Item{term, text})
	})
	return items
}

// Write writes the page.
func (p Page) Write(out io.Writer) error {
	var b strings.Builder
	fmt.Fprintf(&b, ".TH %s 8 \"\" \"uvxlan %s\" \"System administration\"\n", strings.ToUpper(p.Name), escape(p.Version))
	fmt.Fprintf(&b, ".SH NAME\n%s \\- %s\n.SH SYNOPSIS\n", p.Name, escape(p.Summary))
	for i, line := range p.Synopsis {
		if i > 0 {
			b.WriteString(".br\n")
		}
		fmt.Fprintf(&b, ".B %s\n%s", p.Name, text(line))
	}
	b.WriteString(".SH DESCRIPTION\n" + text(p.Description))
	for _, s := range p.Sections {
		s.write(&b, ".SH")
	}
	if len(p.SeeAlso) > 0 {
		b.WriteString(".SH SEE ALSO\n" + text(strings.Join(p.SeeAlso, ", ")))
	}
	_, err := io.WriteString(out, b.String())
	return err
}

func (s Section) write(b *strings.Builder, macro string) {
	fmt.Fprintf(b, "%s \"%s\"\n%s", macro, strings.ReplaceAll(escape(s.Title), `"`, `\(dq`), text(s.Text))
	for _, item := range s.Items {
		fmt.Fprintf(b, ".TP\n\\fB%s\\fR\n%s", escape(item.Term), text(item.Text))
	}
	for _, part := range s.Parts {
		part.write(b, ".SS")
	}
}

// text is a plain text as lines of the page.
func text(s string) string {
	var b strings.Builder
	for line := range strings.SplitSeq(strings.TrimSpace(s), "\n") {
		switch line = escape(strings.TrimSpace(line)); {
		case line == "" && b.Len() > 0:
			b.WriteString(".PP\n")
		case line != "":
			b.WriteString(line + "\n")
		}
	}
	return b.String()
}

// escape keeps a line from being read as a macro, and its dashes as they are typed.
func escape(s string) string {
	s = strings.NewReplacer(`\`, `\e`, "-", `\-`).Replace(s)
	if strings.HasPrefix(s, ".") || strings.HasPrefix(s, "'") {
		s = `\&` + s
	}
	return s
}

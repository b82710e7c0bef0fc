package manpage

import (
	"flag"
	"os/exec"
	"strings"
	"testing"
)

func page() Page {
	fs := flag.NewFlagSet("test", flag.ContinueOnError)
	fs.Int("workers", 0, "`number` of threads")
	fs.Bool("check", true, "look first")
	fs.Bool("quick", false, "don't")
	fs.String("driver", "auto", "'`kind`' of a \\ device")
	return Page{
		Name: "test", Summary: "a test", Version: "1.0-rc1", Synopsis: []string{"[flags]", "-help"},
		Description: ".first\n'second\n\nthird",
		Sections: []Section{{
			Title: "OPTIONS", Text: "All of them.", Items: Flags(fs),
			Parts: []Section{{Title: `a "part"`, Text: "inside"}},
		}},
		SeeAlso: []string{"man(7)"},
	}
}

func TestWrite(t *testing.T) {
	var b strings.Builder
	if err := page().Write(&b); err != nil {
		t.Fatal(err)
	}
	const want = `.TH TEST 8 "" "uvxlan 1.0\-rc1" "System administration"
.SH NAME
test \- a test
.SH SYNOPSIS
.B test
[flags]
.br
.B test
\-help
.SH DESCRIPTION
\&.first
\&'second
.PP
third
.SH "OPTIONS"
All of them.
.TP
\fB\-check=false\fR
look first (default: true)
.TP
\fB\-driver kind\fR
\&'kind' of a \e device (default: auto)
.TP
\fB\-quick\fR
don't
.TP
\fB\-workers number\fR
number of threads
.SS "a \(dqpart\(dq"
inside
.SH SEE ALSO
man(7)
`
	if b.String() != want {
		t.Errorf("the page is\n%s\nwant\n%s", b.String(), want)
	}
}

// groff has nothing to say about a page, where it is there.
func TestGroff(t *testing.T) {
	if _, err := exec.LookPath("groff"); err != nil {
		t.Skip(err)
	}
	var b strings.Builder
	if err := page().Write(&b); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), "groff", "-man", "-ww", "-z", "-Tutf8")
	cmd.Stdin = strings.NewReader(b.String())
	if out, err := cmd.CombinedOutput(); err != nil || len(out) > 0 {
		t.Errorf("groff: %v: %s", err, out)
	}
}

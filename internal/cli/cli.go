// Package cli reads command lines and says in short what is wrong with one.
package cli

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"net/netip"
	"regexp"
	"strings"
	"time"

	"uvxlan/internal/nearest"
)

// ErrUsage marks an error that is the command line's.
var ErrUsage = errors.New("wrong usage")

// usageError keeps the words of err.
type usageError struct{ err error }

func (e usageError) Error() string   { return e.err.Error() }
func (e usageError) Unwrap() []error { return []error{e.err, ErrUsage} }

// Usage marks err, if there is one, as an error of the command line.
func Usage(err error) error {
	if err == nil {
		return nil
	}
	return usageError{err}
}

// Usagef makes an error of the command line.
func Usagef(format string, args ...any) error { return Usage(fmt.Errorf(format, args...)) }

// ExitCode is 0 for no error and for help that was asked for, 2 for an error of the
// command line, else 1.
func ExitCode(err error) int {
	switch {
	case err == nil, errors.Is(err, flag.ErrHelp):
		return 0
	case errors.Is(err, ErrUsage):
		return 2
	}
	return 1
}

// Unknown is the error of a name that isn't known, with the one that was perhaps
// meant, else with where to look.
func Unknown(kind, name string, known []string, look string) error {
	if near := nearest.Name(name, known); near != "" {
		return Usagef("unknown %s %q: did you mean %s?", kind, name, near)
	}
	return Usagef("unknown %s %q: %s", kind, name, look)
}

// The flag package's error texts; it has no types for these errors.
var (
	undefined = regexp.MustCompile(`^flag provided but not defined: -(.*)$`)
	needsOne  = regexp.MustCompile(`^flag needs an argument: -(.*)$`)
	badValue  = regexp.MustCompile(`(?s)^invalid (?:boolean )?value (".*") for (?:flag )?-([^ ]*): (.*)$`)
)

// Parse parses args as fs does, and prints nothing. The error is flag.ErrHelp if
// help is asked for, else an [ErrUsage] of one line.
func Parse(fs *flag.FlagSet, args []string) error {
	fs.SetOutput(io.Discard)
	fs.Usage = func() {}
	err := fs.Parse(args)
	if err == nil || errors.Is(err, flag.ErrHelp) {
		return err
	}
	text := err.Error()
	if m := undefined.FindStringSubmatch(text); m != nil {
		return unknownFlag(fs, m[1])
	}
	if m := needsOne.FindStringSubmatch(text); m != nil {
		return Usagef("-%s: a value is missing", m[1])
	}
	if m := badValue.FindStringSubmatch(text); m != nil {
		return Usagef("-%s %s: %s", m[2], m[1], Reason(fs.Lookup(m[2]), errors.New(m[3])))
	}
	return Usage(err)
}

func unknownFlag(fs *flag.FlagSet, name string) error {
	var known []string
	fs.VisitAll(func(f *flag.Flag) { known = append(known, f.Name) })
	near := nearest.Name(name, known)
	if near == "" && len(name) > 2 {
		near = containing(name, known)
	}
	if near != "" {
		return Usagef("unknown flag -%s: did you mean -%s?", name, near)
	}
	return Usagef("unknown flag -%s: -help lists the flags", name)
}

// containing returns the only name that has part in it, else "".
func containing(part string, known []string) (only string) {
	for _, k := range known {
		if strings.Contains(k, part) {
			if only != "" {
				return ""
			}
			only = k
		}
	}
	return only
}

// Reason says what a flag's value must be, where err, which its Set returned,
// doesn't.
func Reason(f *flag.Flag, err error) string {
	g, ok := f.Value.(flag.Getter)
	if !ok {
		return err.Error()
	}
	switch g.Get().(type) {
	case bool:
		return "must be true or false"
	case int, int64, uint, uint64:
		return "must be a whole number"
	case time.Duration:
		return "must be a time, such as 500ms or 1m30s"
	case *netip.Addr:
		return "must be an IP address"
	}
	return err.Error()
}

// Group is a topic of a program's flags.
type Group struct {
	Title string
	Flags []string
}

// PrintFlags lists flags by topic, as fs.PrintDefaults lists all of them. Those of
// no group aren't listed.
func PrintFlags(out io.Writer, fs *flag.FlagSet, groups []Group) {
	for _, g := range groups {
		part := flag.NewFlagSet("", flag.ContinueOnError)
		for _, name := range g.Flags {
			if f := fs.Lookup(name); f != nil {
				part.Var(f.Value, f.Name, f.Usage)
				part.Lookup(name).DefValue = f.DefValue // the value may be another already
			}
		}
		fmt.Fprintf(out, "\n%s:\n", g.Title)
		part.SetOutput(out)
		part.PrintDefaults()
	}
}

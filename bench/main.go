// Bench measures uvxlan against other ways to join two hosts, on network
// namespaces of this machine. It needs root.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"uvxlan/bench/scale"
	"uvxlan/bench/system"
)

func main() {
	if helper() {
		return
	}
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM)
	context.AfterFunc(ctx, stop) // the second signal ends the process
	err := run(ctx, os.Args[1:])
	switch {
	case errors.Is(err, flag.ErrHelp):
	case err != nil:
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// options are the command line.
type options struct {
	selection selection
	quick     bool
	duration  time.Duration
	repeat    int
	out       string
	daemons   string
	check     bool
	again     bool
	readme    string
	scale     patterns // parts of the scale measurement, nil for none
	churn     time.Duration
	puts      int
}

func parse(args []string) (*options, error) {
	o := &options{}
	fs := flag.NewFlagSet("bench", flag.ContinueOnError)
	list := func(p *patterns) func(string) error {
		return func(s string) error { *p = parsePatterns(s); return nil }
	}
	fs.Func("systems", "comma-separated `names` or globs of the systems to measure", list(&o.selection.systems))
	fs.Func("underlays", "comma-separated `names` or globs of the underlays: nic-gro, nic, veth, nic-plain", list(&o.selection.underlays))
	fs.Func("scenarios", "comma-separated `names` or globs of the scenarios", list(&o.selection.scenarios))
	fs.BoolVar(&o.quick, "quick", false, "only what tells most, in less than 2 minutes")
	fs.BoolVar(&o.check, "check", false, "measure only what must be shown, unless told otherwise, and fail if it is missed")
	fs.Func("scale", "measure what many leases cost, and nothing else: comma-separated `parts` of "+strings.Join(scale.Parts, ", ")+", or all", list(&o.scale))
	fs.DurationVar(&o.churn, "scale-churn", time.Minute, "`time` for which leases change in the part churn")
	fs.IntVar(&o.puts, "scale-puts", 500, "`number` of new leases in the part latency")
	fs.BoolVar(&o.again, "again", false, "measure nothing: show the report in -out again")
	fs.StringVar(&o.readme, "readme", "", "put the table of what was measured into these comma-separated `files`, between the comments that mark its place")
	fs.DurationVar(&o.duration, "t", time.Second, "`time` of each run, in whole seconds")
	fs.IntVar(&o.repeat, "repeat", 0, "`number` of runs of each (default 5, with -quick 3)")
	fs.StringVar(&o.out, "out", "bench/out", "`directory` of the report")
	fs.StringVar(&o.daemons, "uvxland", "", "`path` of uvxland, or label=path,label=path to compare builds (default: built from the source)")
	if err := fs.Parse(args); err != nil {
		return nil, err
	}
	if fs.NArg() > 0 {
		return nil, fmt.Errorf("unexpected argument %q", fs.Arg(0))
	}
	if slices.Contains(o.scale, "all") {
		o.scale = scale.Parts
	}
	if o.repeat == 0 {
		o.repeat = 5
		if o.quick {
			o.repeat = 3
		}
	}
	if o.duration < time.Second || o.duration%time.Second != 0 || o.repeat < 1 {
		return nil, errors.New("-t must be whole seconds, -repeat at least 1")
	}
	return o, nil
}

// preset is what is run where the user selects nothing.
func (o *options) preset() []selection {
	switch {
	case o.check:
		return checkRuns()
	case o.quick:
		return quickRuns
	}
	return defaultRuns
}

// judged is the label of the build that the targets are held against: the first.
func (o *options) judged() string {
	label, _, labelled := strings.Cut(o.daemons, "=")
	if !labelled {
		return ""
	}
	return label
}

// findDaemons reads -uvxland, or builds what the source has now: a binary that
// lies around may be of another day.
func findDaemons(ctx context.Context, list, dir string) ([]system.Daemon, error) {
	if list == "" {
		built := filepath.Join(dir, "uvxland")
		build := exec.CommandContext(ctx, "go", "build", "-trimpath", "-o", built, "uvxlan/cmd/uvxland")
		build.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := build.CombinedOutput(); err != nil {
			return nil, fmt.Errorf("build uvxland: %w\n%s", err, out)
		}
		list = built
	}
	var daemons []system.Daemon
	for item := range strings.SplitSeq(list, ",") {
		label, path, labelled := strings.Cut(item, "=")
		if !labelled {
			label, path = "", item
		}
		d, err := system.FindDaemon(ctx, label, path)
		if err != nil {
			return nil, err
		}
		daemons = append(daemons, d)
	}
	return daemons, nil
}

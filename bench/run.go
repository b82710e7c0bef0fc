package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"uvxlan/bench/lab"
	"uvxlan/bench/procstat"
	"uvxlan/bench/report"
	"uvxlan/bench/scenario"
	"uvxlan/bench/system"
)

// What ends the program when the report has told the rest.
var (
	errRoot    = errors.New("it makes network namespaces and devices: run it as root")
	errStopped = errors.New("interrupted: only what was measured until then is in the report")
	errFailed  = errors.New("some of it failed, see above")
	errMissed  = errors.New("some of what must be shown was missed, see above")
)

func run(ctx context.Context, args []string) error {
	o, err := parse(args)
	if err != nil {
		return err
	}
	if o.scale != nil {
		return o.runScale(ctx)
	}
	if o.again {
		r, err := report.Read(o.out)
		if err != nil {
			return err
		}
		return o.show(r)
	}
	r, err := o.measure(ctx)
	if ctx.Err() != nil {
		err = errStopped
	}
	if r == nil || len(r.Rows) == 0 {
		return err
	}
	return errors.Join(err, o.show(r))
}

// show writes the report everywhere.
func (o *options) show(r *report.Report) error {
	results := r.Check(o.judged())
	if err := r.Text(os.Stdout); err != nil {
		return err
	}
	if o.check || len(results) > 0 {
		if err := r.WriteChecks(os.Stdout, results); err != nil {
			return err
		}
	}
	if err := r.Write(o.out, results); err != nil {
		return err
	}
	for file := range strings.SplitSeq(o.readme, ",") {
		if file == "" {
			continue
		}
		if err := r.WriteReadme(file, results); err != nil {
			return err
		}
	}
	fmt.Printf("\nreport in %s\n", o.out)
	if len(r.Failures) > 0 {
		return errFailed
	}
	if !o.check {
		return nil
	}
	for _, result := range results {
		if !result.Met() {
			return errMissed
		}
	}
	return nil
}

// measure makes the runs. If it is interrupted, the report has what was done.
func (o *options) measure(ctx context.Context) (r *report.Report, err error) {
	if os.Geteuid() != 0 {
		return nil, errRoot
	}
	dir, err := os.MkdirTemp("", "uvxlan-bench-")
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	daemons, err := findDaemons(ctx, o.daemons, dir)
	if err != nil {
		return nil, err
	}
	systems, scenarios := system.All(ctx, system.Env{Daemons: daemons}), scenario.All()
	if err := o.selection.check(systems, scenarios); err != nil {
		return nil, err
	}
	b := &bench{options: o, dir: dir, report: &report.Report{
		Machine: report.ThisMachine(ctx), Seconds: o.duration.Seconds(), Repeat: o.repeat, Baseline: system.Kernel,
	}}
	for _, d := range daemons {
		b.report.Machine.Versions[d.Name("uvxland")] = d.Version
	}
	b.prepare(plan(o.selection, o.preset(), systems, scenarios), systems, scenarios)
	if len(b.steps) == 0 {
		return nil, errors.New("nothing to measure: the selected systems, underlays and scenarios don't meet")
	}
	err = b.underlays(ctx)
	b.report.Stopped = err != nil
	b.report.Finish()
	return b.report, err
}

// bench is one series of runs.
type bench struct {
	*options
	dir           string
	steps         []step
	report        *report.Report
	done, skipped int
	spent         time.Duration // in runs, without waiting for hosts
}

// prepare leaves out what can't run here and says so.
func (b *bench) prepare(steps []step, systems []system.System, scenarios []scenario.Scenario) {
	for _, s := range systems {
		if !slices.ContainsFunc(steps, func(st step) bool { return st.system.Name == s.Name }) {
			continue
		}
		b.report.Systems = append(b.report.Systems, report.System{Name: s.Name, About: s.About, LeftOut: s.Missing})
		if s.Missing != "" {
			fmt.Printf("left out: %s: %s\n", s.Name, s.Missing)
		}
	}
	b.steps = slices.DeleteFunc(steps, func(st step) bool { return st.system.Missing != "" })
	for _, c := range scenarios {
		if slices.ContainsFunc(b.steps, func(st step) bool { return st.scenario.Name == c.Name }) {
			b.report.Scenarios = append(b.report.Scenarios, report.Scenario{Name: c.Name, About: c.About})
		}
	}
	for _, u := range underlays {
		if slices.ContainsFunc(b.steps, func(st step) bool { return st.underlay == u }) {
			b.report.Underlays = append(b.report.Underlays, report.Underlay{Name: u.String(), About: u.About()})
		}
	}
}

// underlays visits the kinds of underlay one after the other: a system may
// find out at its start what the underlay can do.
func (b *bench) underlays(ctx context.Context) error {
	for _, kind := range underlays {
		var steps []step
		for _, s := range b.steps {
			if s.underlay == kind {
				steps = append(steps, s)
			}
		}
		if len(steps) == 0 {
			continue
		}
		if err := b.underlay(ctx, kind, steps); err != nil {
			return err
		}
	}
	return nil
}

// underlay makes the hosts, and the systems take turns on them.
func (b *bench) underlay(ctx context.Context, kind lab.Offload, steps []step) (err error) {
	fmt.Printf("underlay %s: making the hosts\n", kind)
	w, err := newWorld(ctx, kind, b.dir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, w.close()) }()
	if steps, err = b.start(ctx, w, steps); err != nil {
		return err
	}
	for i := range b.repeat {
		for _, s := range steps {
			begin := time.Now()
			conditions, sample, err := b.observe(ctx, w, s)
			b.spent += time.Since(begin)
			if ctx.Err() != nil {
				return ctx.Err()
			}
			b.record(s, i, conditions, sample, err)
		}
	}
	return nil
}

const (
	// before is for how long the machine is looked at before each run, when all that
	// the bench has started is idle. It gives the CPU's share in steps of 10 ms.
	before = 100 * time.Millisecond
	// looks is how often that is done at most, until what the run before left has ended.
	looks = 10
)

// observe makes a run, and tells what else the machine did before and meanwhile.
func (b *bench) observe(ctx context.Context, w *world, s step) (c report.Conditions, sample scenario.Sample, err error) {
	if err := b.lookBefore(ctx, &c); err != nil {
		return c, nil, err
	}
	begin, err := procstat.ReadCPU()
	if err != nil {
		return c, nil, err
	}
	if sample, err = w.run(ctx, s, s.scenario.Time(b.duration)); err != nil {
		return c, nil, err
	}
	end, err := procstat.ReadCPU()
	if err != nil {
		return c, nil, err
	}
	used := end.Since(begin)
	c.Steal = used.Percent(used.Steal)
	c.Load, err = procstat.ReadLoad()
	return c, sample, err
}

// lookBefore notes what others do, once they are no more than that.
func (b *bench) lookBefore(ctx context.Context, c *report.Conditions) (err error) {
	for range looks {
		idle, err := procstat.Watch(ctx, before)
		if err != nil {
			return err
		}
		c.BusyBefore, c.StealBefore = idle.Percent(idle.Busy), idle.Percent(idle.Steal)
		if !c.Busy() {
			break
		}
	}
	c.LoadBefore, err = procstat.ReadLoad()
	return err
}

// start starts the systems and returns the steps of those that did.
func (b *bench) start(ctx context.Context, w *world, steps []step) (ready []step, err error) {
	started := map[place]error{}
	for _, s := range steps {
		name := s.system.Name
		err, tried := started[s.place()]
		if !tried {
			err = w.add(ctx, s)
			started[s.place()] = err
			if ctx.Err() != nil {
				return nil, ctx.Err()
			}
			if err != nil {
				b.fail(fmt.Sprintf("%s on %s didn't start and is left out: %v", name, s.underlay, err))
			}
		}
		if err == nil {
			ready = append(ready, s)
		} else {
			b.skipped += b.repeat
		}
	}
	return ready, nil
}

func (b *bench) fail(words string) {
	b.report.Failures = append(b.report.Failures, words)
	fmt.Println("failed:", words)
}

// record adds what a run brought and tells of it.
func (b *bench) record(s step, repetition int, c report.Conditions, sample scenario.Sample, err error) {
	b.done++
	if err != nil {
		b.fail(fmt.Sprintf("%s on %s, %s: %v", s.system.Name, s.underlay, s.scenario.Name, err))
		return
	}
	b.report.Add(report.Run{
		Underlay: s.underlay.String(), Scenario: s.scenario.Name, System: s.system.Name, Repetition: repetition, Conditions: c,
	}, sample)
	total := b.repeat*len(b.steps) - b.skipped
	left := b.spent / time.Duration(b.done) * time.Duration(total-b.done)
	busy := ""
	if c.Busy() {
		busy = "  (machine busy)"
	}
	fmt.Printf("%3d/%d, %s left  %-9s %-12s %-18s %s%s\n", b.done, total, left.Round(time.Second),
		s.underlay, s.scenario.Name, s.system.Name, report.Value(sample[s.scenario.Main], s.scenario.Main), busy)
}

package main

import (
	"slices"
	"testing"
	"time"

	"uvxlan/bench/report"
	"uvxlan/bench/scenario"
	"uvxlan/bench/system"
)

func TestPatterns(t *testing.T) {
	for _, c := range []struct {
		patterns string
		names    []string
		want     bool
	}{
		{"uvxlan", []string{"uvxlan"}, true},
		{"uvxlan", []string{"uvxlan:old", "uvxlan"}, true},
		{"uvxlan:old", []string{"uvxlan:new", "uvxlan"}, false},
		{"uvxlan", []string{"uvxlan-off"}, false},
		{"kernel, tcp*", []string{"tcp16"}, true},
		{"", []string{"tcp1"}, false},
	} {
		if got := parsePatterns(c.patterns).match(c.names...); got != c.want {
			t.Errorf("%q matches %q: %t, want %t", c.patterns, c.names, got, c.want)
		}
	}
}

var (
	testSystems   = []system.System{{Name: "uvxlan:new"}, {Name: "uvxlan:old"}, {Name: "kernel", Three: true}, {Name: "host-gw"}}
	testScenarios = []scenario.Scenario{{Name: "tcp1"}, {Name: "udp64"}, {Name: "rtt"}, {Name: "slow", Third: true}}
)

func TestPlan(t *testing.T) {
	preset := []selection{sel("uvxlan,kernel", "veth", "*"), sel("*", "nic", "tcp1")}
	for _, c := range []struct {
		name string
		user selection
		want []string
	}{
		{"preset", selection{}, []string{
			"nic tcp1 uvxlan:new", "nic tcp1 uvxlan:old", "nic tcp1 kernel", "nic tcp1 host-gw",
			"veth tcp1 uvxlan:new", "veth tcp1 uvxlan:old", "veth tcp1 kernel",
			"veth udp64 uvxlan:new", "veth udp64 uvxlan:old", "veth udp64 kernel",
			"veth rtt uvxlan:new", "veth rtt uvxlan:old", "veth rtt kernel", "veth slow kernel",
		}},
		{"a system", selection{systems: patterns{"host-gw"}}, []string{
			"nic tcp1 host-gw", "veth tcp1 host-gw", "veth udp64 host-gw", "veth rtt host-gw",
		}},
		{"a scenario", selection{scenarios: patterns{"rtt"}}, []string{
			"nic rtt uvxlan:new", "nic rtt uvxlan:old", "nic rtt kernel", "nic rtt host-gw",
			"veth rtt uvxlan:new", "veth rtt uvxlan:old", "veth rtt kernel",
		}},
		{"three hosts", selection{systems: patterns{"host-gw", "kernel"}, scenarios: patterns{"slow"}}, []string{"nic slow kernel", "veth slow kernel"}},
		{"all", sel("host-gw", "nic-plain", "udp*"), []string{"nic-plain udp64 host-gw"}},
	} {
		var got []string
		for _, s := range plan(c.user, preset, testSystems, testScenarios) {
			got = append(got, s.underlay.String()+" "+s.scenario.Name+" "+s.system.Name)
		}
		if !slices.Equal(got, c.want) {
			t.Errorf("%s: plan is %q, want %q", c.name, got, c.want)
		}
	}
}

func TestSelectionCheck(t *testing.T) {
	for _, c := range []struct {
		user selection
		want string
	}{
		{selection{}, ""},
		{sel("uvxlan,kernel", "nic*", "tcp1"), ""},
		{selection{systems: patterns{"kernal"}}, `-systems: "kernal" is none of host-gw, kernel, uvxlan, uvxlan:new, uvxlan:old`},
		{selection{underlays: patterns{"lan"}}, `-underlays: "lan" is none of nic, nic-gro, nic-plain, veth`},
		{selection{scenarios: patterns{"tcp2"}}, `-scenarios: "tcp2" is none of rtt, slow, tcp1, udp64`},
	} {
		got := ""
		if err := c.user.check(testSystems, testScenarios); err != nil {
			got = err.Error()
		}
		if got != c.want {
			t.Errorf("%+v: %q, want %q", c.user, got, c.want)
		}
	}
}

// The presets and targets name only what there is.
func TestPresetsExist(t *testing.T) {
	systems := system.All(t.Context(), system.Env{Daemons: []system.Daemon{{}}})
	scenarios := scenario.All()
	for _, runs := range [][]selection{defaultRuns, quickRuns, checkRuns()} {
		for _, s := range runs {
			if err := s.check(systems, scenarios); err != nil {
				t.Error(err)
			}
		}
	}
}

// Every target is measured, both sides of it in the same runs.
func TestTargetsAreMeasured(t *testing.T) {
	systems, scenarios := system.All(t.Context(), system.Env{Daemons: []system.Daemon{{}}}), scenario.All()
	for name, runs := range map[string][]selection{"default": defaultRuns, "check": checkRuns()} {
		steps := plan(selection{}, runs, systems, scenarios)
		measured := func(underlay, scenario, system string) bool {
			return slices.ContainsFunc(steps, func(s step) bool {
				return s.underlay.String() == underlay && s.scenario.Name == scenario && s.system.Name == system
			})
		}
		for _, target := range report.Targets {
			if !measured(target.Underlay, target.Scenario, target.System) || target.To != "" && !measured(target.Underlay, target.Scenario, target.To) {
				t.Errorf("%s: nothing measures %s on %s", name, target.What, target.Underlay)
			}
		}
	}
}

// The usual runs take no longer than the bench's README says, wherever every system runs.
func TestUsualRunsKeepTheirTime(t *testing.T) {
	const (
		start  = 30 * time.Millisecond // of iperf3
		around = 5 * time.Second       // to make and remove the hosts of an underlay
	)
	systems, scenarios := system.All(t.Context(), system.Env{Daemons: []system.Daemon{{}}}), scenario.All()
	for _, c := range []struct {
		args  []string
		limit time.Duration
	}{{nil, 16 * time.Minute}, {[]string{"-quick"}, 2 * time.Minute}} {
		o, err := parse(c.args)
		if err != nil {
			t.Fatal(err)
		}
		steps := plan(selection{}, o.preset(), systems, scenarios)
		took := time.Duration(len(underlays)) * around
		for _, s := range steps {
			took += time.Duration(o.repeat) * (before + start + s.scenario.Time(o.duration))
		}
		if took >= c.limit {
			t.Errorf("%q takes %s, %d steps; want less than %s", c.args, took, len(steps), c.limit)
		} else {
			t.Logf("%q takes %s, %d steps", c.args, took, len(steps))
		}
	}
}

func TestParse(t *testing.T) {
	for _, c := range []struct {
		args   []string
		repeat int // 0: refused
		judged string
	}{
		{nil, 5, ""},
		{[]string{"-quick"}, 3, ""},
		{[]string{"-repeat=2", "-uvxland=new=/a,old=/b"}, 2, "new"},
		{[]string{"-uvxland=/a"}, 5, ""},
		{[]string{"-t=1500ms"}, 0, ""},
		{[]string{"-repeat=-1"}, 0, ""},
		{[]string{"tcp1"}, 0, ""},
	} {
		o, err := parse(c.args)
		if err != nil {
			if c.repeat != 0 {
				t.Errorf("%q: %v", c.args, err)
			}
			continue
		}
		if o.repeat != c.repeat || o.judged() != c.judged {
			t.Errorf("%q: repeat %d, judged %q; want %d, %q", c.args, o.repeat, o.judged(), c.repeat, c.judged)
		}
	}
}

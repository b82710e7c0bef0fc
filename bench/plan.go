package main

import (
	"fmt"
	"path"
	"slices"
	"strings"

	"uvxlan/bench/lab"
	"uvxlan/bench/report"
	"uvxlan/bench/scenario"
	"uvxlan/bench/system"
)

// underlays is every kind there is, in the order of the runs.
var underlays = []lab.Offload{lab.NICGRO, lab.NIC, lab.Veth, lab.NICPlain}

// patterns is a comma-separated list of names and globs. Nil matches nothing.
type patterns []string

func parsePatterns(s string) patterns {
	return strings.FieldsFunc(s, func(r rune) bool { return r == ',' || r == ' ' })
}

// match reports whether one of the patterns is one of the names.
func (p patterns) match(names ...string) bool {
	return slices.ContainsFunc(p, func(pattern string) bool {
		return slices.ContainsFunc(names, func(name string) bool {
			ok, err := path.Match(pattern, name)
			return ok && err == nil
		})
	})
}

// unknown returns the first pattern that matches none of the names.
func (p patterns) unknown(names []string) (string, bool) {
	for _, pattern := range p {
		if !(patterns{pattern}).match(names...) {
			return pattern, true
		}
	}
	return "", false
}

// selection is a product of systems, underlays and scenarios.
type selection struct{ systems, underlays, scenarios patterns }

func sel(systems, underlays, scenarios string) selection {
	return selection{parsePatterns(systems), parsePatterns(underlays), parsePatterns(scenarios)}
}

// What is run if nothing is selected: everything where it tells most, since the
// product of all would take hours.
var (
	defaultRuns = []selection{
		sel("uvxlan,kernel", "nic-gro,veth", "tcp*,udp*,rtt*,connections"),
		sel("uvxlan,kernel", "nic,nic-plain", "tcp1,tcp4,udp64"),
		sel("uvxlan-no-fastpath", "nic-gro,nic,veth", "tcp1"),
		sel("uvxlan-no-fastpath", "nic-gro,nic,veth", "udp64"),
		sel("uvxlan-direct,host-gw", "veth", "tcp1,tcp4,udp64,rtt"),
		sel("uvxlan-direct-no-fastpath", "veth", "tcp1,udp64"),
		sel("uvxlan-route,uvxlan-host-gw", "veth", "tcp1"),
		sel("uvxlan-wireguard,uvxlan-water", "nic-gro", "tcp1,udp64"),
		sel("uvxlan-off,host-gw,kernel-to-uvxlan,uvxlan-to-kernel,wireguard-go,flannel-*", "nic-gro", "tcp1,tcp4,udp64,rtt"),
		sel("kernel-to-uvxlan,uvxlan-to-kernel,uvxlan-off,wireguard-go", "nic", "tcp1,udp64,rtt"),
		sel("uvxlan-no-fastpath,uvxlan-off", "nic", "rtt"),
		sel("uvxlan-no-udp", "nic-gro", "udp64"),
		sel("uvxlan,kernel", "nic-gro", "paced-*,slow-*"),
		sel("uvxlan-1-worker,uvxlan-2-workers,uvxlan-8-workers", "nic-gro", "memory"),
	}
	quickRuns = []selection{
		sel("uvxlan,kernel", "nic-gro,veth", "tcp1,tcp4,udp64,rtt"),
		sel("uvxlan,kernel", "nic,nic-plain", "tcp1"),
		sel("uvxlan-direct", "veth", "tcp1,udp64"),
		sel("uvxlan-off,kernel-to-uvxlan", "nic-gro", "tcp1"),
		sel("wireguard-go", "nic-gro", "tcp1,udp64"),
	}
)

// checkRuns is what the targets need.
func checkRuns() (runs []selection) {
	for _, t := range report.Targets {
		systems := patterns{t.System}
		if t.To != "" {
			systems = append(systems, t.To)
		}
		runs = append(runs, selection{systems, patterns{t.Underlay}, patterns{t.Scenario}})
	}
	return runs
}

// step is one system, underlay and scenario to be measured.
type step struct {
	underlay lab.Offload
	scenario scenario.Scenario
	system   system.System
}

// plan returns the steps that both the user's selection and the preset have. A
// dimension that the user selects replaces the preset's. A system that joins two
// hosts only is no part of a scenario that takes three.
func plan(user selection, preset []selection, systems []system.System, scenarios []scenario.Scenario) []step {
	var steps []step
	for _, u := range underlays {
		for _, c := range scenarios {
			for _, s := range systems {
				if c.Third && !s.Three {
					continue
				}
				if wanted(user, preset, u.String(), c.Name, s) {
					steps = append(steps, step{u, c, s})
				}
			}
		}
	}
	return steps
}

func wanted(user selection, preset []selection, underlay, scenarioName string, s system.System) bool {
	return slices.ContainsFunc(preset, func(p selection) bool {
		return either(user.systems, p.systems).match(s.Name, s.Base()) &&
			either(user.underlays, p.underlays).match(underlay) &&
			either(user.scenarios, p.scenarios).match(scenarioName)
	})
}

func either(user, preset patterns) patterns {
	if user != nil {
		return user
	}
	return preset
}

// check returns an error for a pattern that matches nothing there is.
func (user selection) check(systems []system.System, scenarios []scenario.Scenario) error {
	var systemNames, underlayNames, scenarioNames []string
	for _, s := range systems {
		systemNames = append(systemNames, s.Name, s.Base())
	}
	for _, u := range underlays {
		underlayNames = append(underlayNames, u.String())
	}
	for _, c := range scenarios {
		scenarioNames = append(scenarioNames, c.Name)
	}
	for _, c := range []struct {
		flag  string
		given patterns
		names []string
	}{
		{"systems", user.systems, systemNames},
		{"underlays", user.underlays, underlayNames},
		{"scenarios", user.scenarios, scenarioNames},
	} {
		if pattern, bad := c.given.unknown(c.names); bad {
			slices.Sort(c.names)
			return fmt.Errorf("-%s: %q is none of %s", c.flag, pattern, strings.Join(slices.Compact(c.names), ", "))
		}
	}
	return nil
}

// Package system has the ways to join two hosts that the benchmarks compare.
// Each is one file that registers itself.
package system

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"uvxlan/bench/lab"
)

// Kernel is the name of the system that the others are compared with.
const Kernel = "kernel"

// System is one way to carry packets between the containers of two hosts.
type System struct {
	// Name is unique. What follows a colon tells builds of one system apart.
	Name string
	// About says in a line what it is.
	About string
	// Missing says why the system can't run here; empty if it can.
	Missing string
	// MTU is that of the containers; zero means lab.DefaultContainerMTU.
	MTU int
	// Three says that it can join three hosts.
	Three bool
	// Start joins the site's hosts. What it starts ends with the lab.
	Start func(ctx context.Context, s *Site) error

	rank rank
}

// rank orders the systems in the report.
type rank int

const (
	ours rank = iota
	baseline
	reference
	mixed
	others
)

// Base is the name without what tells builds apart.
func (s System) Base() string {
	base, _, _ := strings.Cut(s.Name, ":")
	return base
}

// Env is what the systems may need to know before they start.
type Env struct {
	// Daemons are the builds of uvxland to measure.
	Daemons []Daemon
}

var providers []func(ctx context.Context, e Env) []System

// register is called by the init function of each system's file.
func register(provide func(ctx context.Context, e Env) []System) {
	providers = append(providers, provide)
}

// All returns every system, also those that are missing here.
func All(ctx context.Context, e Env) []System {
	var all []System
	for _, provide := range providers {
		all = append(all, provide(ctx, e)...)
	}
	slices.SortStableFunc(all, func(a, b System) int { return cmp.Compare(a.rank, b.rank) })
	return all
}

// Site is a pair of hosts, or three, on one layer-2 network of their own, that a
// system joins. Traffic goes from A's container to B's unless a scenario says
// otherwise.
type Site struct {
	A, B *lab.Host
	// C is nil where there is no third host.
	C *lab.Host
	// Endpoint is the URL of an etcd that both hosts reach, and Prefix the site's
	// own part of it.
	Endpoint, Prefix string
	// Dir is the site's own folder, for state and logs.
	Dir string

	processes  []process
	conditions []func() error
	ends       []func() error
}

type process struct {
	*lab.Cmd
	log string
}

// Hosts returns A and B, and C if there is one.
func (s *Site) Hosts() []*lab.Host {
	hosts := []*lab.Host{s.A, s.B}
	if s.C != nil {
		hosts = append(hosts, s.C)
	}
	return hosts
}

// others are the hosts that aren't h.
func (s *Site) others(h *lab.Host) []*lab.Host {
	return slices.DeleteFunc(s.Hosts(), func(o *lab.Host) bool { return o == h })
}

// other is the host of a pair that isn't h.
func (s *Site) other(h *lab.Host) *lab.Host { return s.others(h)[0] }

// launch starts a process of the data path on the host; its output goes to a
// file in Dir.
func (s *Site) launch(ctx context.Context, h *lab.Host, name string, args ...string) error {
	log, err := os.Create(filepath.Join(s.Dir, h.Name+"-"+filepath.Base(name)+".log"))
	if err != nil {
		return err
	}
	defer log.Close()
	cmd := h.Command(ctx, name, args...)
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		return err
	}
	go func() { _ = cmd.Wait() }() // closes Done; ends with the process
	s.watch(cmd, log.Name())
	return nil
}

// watch makes a process one of the data path.
func (s *Site) watch(cmd *lab.Cmd, log string) {
	s.processes = append(s.processes, process{cmd, log})
}

// require makes Settle wait, and Check ask, for what a system promises of the way
// that packets take. holds returns nil, or what isn't so.
func (s *Site) require(holds func() error) { s.conditions = append(s.conditions, holds) }

// Settle waits until packets travel as the system promises.
func (s *Site) Settle(ctx context.Context) error {
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		err := s.settled()
		if ended := s.alive(); err == nil || ended != nil {
			return errors.Join(ended, err)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return err
		}
	}
}

// atEnd makes Close call f, for what a system leaves outside of the lab.
func (s *Site) atEnd(f func() error) { s.ends = append(s.ends, f) }

// Close removes what the system left outside of the lab, after the lab's Close.
func (s *Site) Close() error {
	var errs []error
	for _, f := range s.ends {
		errs = append(errs, f())
	}
	s.ends = nil
	return errors.Join(errs...)
}

// Stop ends the processes of the data path, so that the system can start anew.
func (s *Site) Stop(ctx context.Context) error {
	var errs []error
	for _, p := range s.processes {
		errs = append(errs, p.Stop(ctx))
	}
	s.processes, s.conditions = nil, nil
	return errors.Join(errs...)
}

// PIDs returns the processes of the data path, none if it is the kernel's.
func (s *Site) PIDs() []int {
	var pids []int
	for _, p := range s.processes {
		pids = append(pids, p.Process.Pid)
	}
	return pids
}

// Check returns an error if a process of the data path has ended, or if packets
// don't travel as the system promises.
func (s *Site) Check() error { return errors.Join(s.alive(), s.settled()) }

func (s *Site) alive() error {
	var errs []error
	for _, p := range s.processes {
		select {
		case <-p.Done():
			errs = append(errs, fmt.Errorf("%s ended: %s", filepath.Base(p.Path), lastWords(p.log)))
		default:
		}
	}
	return errors.Join(errs...)
}

func (s *Site) settled() error {
	var errs []error
	for _, holds := range s.conditions {
		errs = append(errs, holds())
	}
	return errors.Join(errs...)
}

// lastWords is the last line of the log that tells of an error, by the prefix of
// klog, or else the last line.
func lastWords(file string) string {
	text, err := os.ReadFile(file)
	if err != nil {
		return err.Error()
	}
	lines := strings.Split(strings.TrimSpace(string(text)), "\n")
	for _, line := range slices.Backward(lines) {
		if len(line) > 1 && (line[0] == 'E' || line[0] == 'F') && line[1] >= '0' && line[1] <= '9' {
			return line
		}
	}
	return lines[len(lines)-1]
}

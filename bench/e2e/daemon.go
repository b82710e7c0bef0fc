package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"uvxlan/bench/cluster"
	"uvxlan/bench/lab"
	"uvxlan/lease"
)

// AwaitPath waits until the daemon says, not before since, that it reaches the
// host directly or by VXLAN, and returns its words. what is a part of them, such
// as "direct now" or "back to vxlan".
func AwaitPath(t *testing.T, d *cluster.Daemon, to *lab.Host, what string, since time.Time) string {
	t.Helper()
	return AwaitLine(t, d, since, "subnet="+to.Subnet.String(), what)
}

// AwaitLine waits until the daemon writes a line with all the words, not before
// since, and returns it.
func AwaitLine(t *testing.T, d *cluster.Daemon, since time.Time, words ...string) string {
	t.Helper()
	missing := func(line string) bool {
		return slices.ContainsFunc(words, func(word string) bool { return !strings.Contains(line, word) })
	}
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(Patience); time.Now().Before(end); <-tick.C {
		for line := range strings.SplitSeq(LogOf(t, d), "\n") {
			if !missing(line) && LogTime(t, line).After(since.Add(-time.Millisecond)) {
				return line
			}
		}
	}
	t.Fatalf("%s never said %q", d.Host.Name, words)
	return ""
}

// LogTime is when a line was written.
func LogTime(t *testing.T, line string) time.Time {
	t.Helper()
	text, _, _ := strings.Cut(strings.TrimPrefix(line, "time="), " ")
	at, err := time.Parse(time.RFC3339Nano, text)
	if err != nil {
		t.Fatalf("%q: %v", line, err)
	}
	return at
}

// AwaitDirect waits until all daemons that can reach each other directly do.
func AwaitDirect(t *testing.T, daemons ...*cluster.Daemon) {
	t.Helper()
	for _, d := range daemons {
		for _, to := range daemons {
			if d != to {
				AwaitPath(t, d, to.Host, "direct now", time.Time{})
			}
		}
	}
}

// LogOf is all that a daemon has written.
func LogOf(t *testing.T, d *cluster.Daemon) string {
	t.Helper()
	text, err := os.ReadFile(d.LogFile())
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// LeaseOf waits for a host's lease.
func (w *World) LeaseOf(host string) lease.Lease {
	w.T.Helper()
	registry, ctx := w.Registry(), w.Context()
	for {
		leases, _, err := registry.List(ctx)
		if err != nil {
			w.T.Fatal(err)
		}
		for _, l := range leases {
			if l.Subnet == w.Host(host).Subnet {
				return l
			}
		}
	}
}

// End ends daemons, in order or not.
func End(t *testing.T, signal unix.Signal, daemons ...*cluster.Daemon) {
	t.Helper()
	for _, d := range daemons {
		if err := d.Process.Signal(signal); err != nil {
			t.Fatal(err)
		}
	}
	for _, d := range daemons {
		if err := d.Wait(); signal == unix.SIGTERM && err != nil {
			t.Errorf("after SIGTERM: %v", err)
		}
	}
}

// Freeze stops all threads of a process, until it gets SIGCONT. The signal alone
// lets some of them run on for a moment.
func Freeze(t *testing.T, p *os.Process) {
	t.Helper()
	if err := p.Signal(unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	Await(t, "the process is stopped", func() bool {
		threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", p.Pid))
		if err != nil || len(threads) == 0 {
			t.Fatalf("threads of process %d: %d, %v", p.Pid, len(threads), err)
		}
		return !slices.ContainsFunc(threads, func(path string) bool {
			text, err := os.ReadFile(path)
			_, state, _ := strings.Cut(string(text), ") ") // proc_pid_stat(5)
			return err == nil && !strings.HasPrefix(state, "T")
		})
	})
}

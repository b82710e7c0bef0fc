package doctor_test

import (
	"encoding/json"
	"errors"
	"net/netip"
	"os/exec"
	"slices"
	"testing"

	"uvxlan/bench/cluster"
	"uvxlan/bench/e2e"
)

func TestMain(m *testing.M) { e2e.Main(m) }

// finding is one of those that uvxlan doctor -o json prints.
type finding struct {
	Severity, Kind         string
	What, Evidence, Remedy string
	Peers                  []struct {
		Subnet   netip.Prefix
		PublicIP netip.Addr `json:"public_ip"`
	}
}

// concerns tells whether the finding is one of a subnet's host, or of the whole host
// if the subnet isn't valid.
func (f *finding) concerns(subnet netip.Prefix) bool {
	if !subnet.IsValid() {
		return len(f.Peers) == 0
	}
	for _, p := range f.Peers {
		if p.Subnet == subnet {
			return true
		}
	}
	return false
}

// report is what uvxlan doctor -o json prints, as far as tests look at it.
type report struct {
	Daemon   string
	Findings []finding
	Peers    []struct {
		Subnet            netip.Prefix
		Overlay, Underlay struct{ Sent, Received, MTU int }
	}
	Steps []struct{ Name, Text string }
}

// kinds are the findings' kinds of a subnet's host, or of the whole host.
func (r *report) kinds(subnet netip.Prefix) (kinds []string) {
	for _, f := range r.Findings {
		if f.concerns(subnet) {
			kinds = append(kinds, f.Kind)
		}
	}
	slices.Sort(kinds)
	return kinds
}

// find returns the finding of a kind.
func (r *report) find(t *testing.T, kind string) finding {
	t.Helper()
	for _, f := range r.Findings {
		if f.Kind == kind {
			return f
		}
	}
	t.Fatalf("no finding is %s", kind)
	return finding{}
}

// doctor runs uvxlan doctor on a daemon's host. The exit code must fit what it finds.
func doctor(t *testing.T, d *cluster.Daemon, args ...string) report {
	t.Helper()
	return doctorBy(t, d, nil, args...)
}

// doctorBy has a command run it.
func doctorBy(t *testing.T, d *cluster.Daemon, by []string, args ...string) (r report) {
	t.Helper()
	words := slices.Concat(by, []string{e2e.CommandBinary, "doctor", "-o", "json", "-control-socket", d.ControlSocket()}, args)
	out, err := d.Host.Run(t.Context(), words[0], words[1:]...)
	if parseErr := json.Unmarshal(out, &r); parseErr != nil {
		t.Fatalf("uvxlan doctor: %v, %v:\n%s", err, parseErr, out)
	}
	code := 0
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		code = exit.ExitCode()
	} else if err != nil {
		t.Fatalf("uvxlan doctor: %v", err)
	}
	want := 0
	for _, f := range r.Findings {
		want = max(want, map[string]int{"warning": 1, "fault": 2}[f.Severity])
		if f.What == "" || f.Evidence == "" || f.Remedy == "" {
			t.Errorf("a finding without words: %+v", f)
		}
		t.Logf("%s %s %v: %s\n  seen: %s\n  do: %s", f.Severity, f.Kind, f.Peers, f.What, f.Evidence, f.Remedy)
	}
	if code != want {
		t.Errorf("the exit code is %d, want %d", code, want)
	}
	return r
}

package main

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"os"
	"strings"
	"testing"

	"uvxlan/cmd/internal/control"
	"uvxlan/internal/cli"
)

// What is wrong with a command line is said in one line, and the exit code is 2.
func TestUsageErrors(t *testing.T) {
	for args, want := range map[string]string{
		"":                         "a command is missing",
		"statsu":                   `unknown command "statsu": did you mean status?`,
		"frobnicate":               `unknown command "frobnicate": uvxlan help lists the commands`,
		"help peer":                `unknown command "peer": did you mean peers?`,
		"status -scoket x":         "status: unknown flag -scoket: -help lists the flags",
		"status -control-scoket x": "status: unknown flag -control-scoket: did you mean -control-socket?",
		"status all":               `status: unexpected argument "all"`,
		"status -o xml":            `-o "xml": must be table or json`,
		"status -o":                "status: -o: a value is missing",
		"top -n x":                 `top: -n "x": must be a whole number`,
		"top -n -1":                "-n -1: must not be negative",
		"top -interval 2":          `top: -interval "2": must be a time, such as 500ms or 1m30s`,
		"top -interval 0s":         "-interval 0s: must be more than 0",
		"config":                   "config: must be followed by get, set or check, as above",
		"set {}":                   `unknown command "set": did you mean config set?`,
		"config set /coreos.com/network/config {}": "config set: leave the key /coreos.com/network/config away: it is that of -etcd-prefix (/coreos.com/network) with /config",
		"config gte":                         `config "gte": must be get, set, check`,
		"config get -etcd-endpoints ftp://x": "",
		"leases realese 10.5.52.0/24":        `leases "realese": must be release, reserve`,
		"leases release":                     "leases release: name one subnet, as in 10.5.52.0/24",
		"leases release 10.5.52.7/24":        `leases release: "10.5.52.7/24": must be a subnet, as in 10.5.52.0/24`,
		"leases reserve -force 10.5.52.0/24": "leases reserve: -force is for release only",
		"doctor 10.5.52.7 10.5.53.7":         "doctor: name one destination, as in 10.5.52.7",
		"docter":                             `unknown command "docter": did you mean doctor?`,
		"completion":                         "completion: name one shell: bash, zsh, fish",
		"completion tcsh":                    `completion "tcsh": must be bash, zsh, fish`,
	} {
		err := run(t.Context(), strings.Fields(args))
		if cli.ExitCode(err) != 2 || want != "" && err.Error() != want || strings.Contains(err.Error(), "\n") {
			t.Errorf("%q: %v, exit code %d, want %s", args, err, cli.ExitCode(err), want)
		}
	}
}

// fixed is a daemon's state that stays.
type fixed struct {
	status control.Status
	peers  []control.Peer
}

func (f fixed) Status() control.Status { return f.status }
func (f fixed) Peers() []control.Peer  { return f.peers }

// The exit code tells scripts what the state tells people.
func TestStatusExitCode(t *testing.T) {
	for _, ready := range []bool{true, false} {
		for _, form := range []string{"table", "json"} {
			socket := serve(t, fixed{status: control.Status{Ready: ready, Reasons: []string{"for a reason"}}})
			var out strings.Builder
			err := capture(t, &out, func(ctx context.Context) error {
				return run(ctx, []string{"status", "-control-socket", socket, "-o", form})
			})
			if want := map[bool]int{true: 0, false: 1}[ready]; cli.ExitCode(err) != want {
				t.Errorf("ready %t, -o %s: exit code %d, want %d: %v", ready, form, cli.ExitCode(err), want, err)
			}
			if !strings.Contains(out.String(), "for a reason") || form == "json" && !json.Valid([]byte(out.String())) {
				t.Errorf("ready %t, -o %s: it printed %s", ready, form, &out)
			}
		}
	}
}

// A probe's exit code is about readiness, or about whether anybody answers; its one
// line is what kubectl describe shows.
func TestProbes(t *testing.T) {
	for _, c := range []struct {
		flag  string
		ready bool
		code  int
		said  string
	}{
		{"-ready", true, 0, "ready\n"},
		{"-ready", false, 1, "not ready: for a reason; for another\n"},
		{"-alive", true, 0, "ready\n"},
		{"-alive", false, 0, "not ready: for a reason; for another\n"},
	} {
		socket := serve(t, fixed{status: control.Status{Ready: c.ready, Reasons: []string{"for a reason", "for another"}}})
		var out strings.Builder
		err := capture(t, &out, func(ctx context.Context) error {
			return run(ctx, []string{"status", c.flag, "-control-socket", socket})
		})
		if cli.ExitCode(err) != c.code || out.String() != c.said {
			t.Errorf("%s, ready %t: exit code %d, %q", c.flag, c.ready, cli.ExitCode(err), &out)
		}
		err = capture(t, &out, func(ctx context.Context) error {
			return run(ctx, []string{"status", c.flag, "-control-socket", socket + "-none"})
		})
		if cli.ExitCode(err) != 1 {
			t.Errorf("%s without a daemon: exit code %d", c.flag, cli.ExitCode(err))
		}
	}
}

func TestAsRoot(t *testing.T) {
	denied := &fs.PathError{Op: "open", Path: "/x", Err: fs.ErrPermission}
	if err := asRoot(denied, 1000); !errors.Is(err, fs.ErrPermission) || !strings.HasSuffix(err.Error(), ": run it as root") {
		t.Error(err)
	}
	for _, err := range []error{asRoot(denied, 0), asRoot(errors.New("other"), 1000), asRoot(nil, 1000)} {
		if err != nil && strings.Contains(err.Error(), "root") {
			t.Error(err)
		}
	}
}

// capture returns what do returns, and writes what it prints to out.
func capture(t *testing.T, out io.Writer, do func(context.Context) error) error {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	before := os.Stdout
	os.Stdout = w
	copied := make(chan error, 1)
	go func() {
		_, err := io.Copy(out, r)
		copied <- err
	}()
	doErr := do(t.Context())
	os.Stdout = before
	if err := errors.Join(w.Close(), <-copied, r.Close()); err != nil {
		t.Fatal(err)
	}
	return doErr
}

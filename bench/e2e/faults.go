package e2e

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"uvxlan/bench/cluster"
	"uvxlan/bench/lab"
)

// AwaitWords waits until the status in words, as uvxlan status writes it, has all
// of them in one line, and returns that line.
func AwaitWords(t *testing.T, d *cluster.Daemon, words ...string) (line string) {
	t.Helper()
	err := awaitText(t.Context(), d, func(text string) bool {
		for l := range strings.Lines(text) {
			if line = strings.TrimSpace(l); hasAll(l, words) {
				return true
			}
		}
		return false
	})
	if err != nil {
		t.Fatalf("no line of the status has %q: %v", words, err)
	}
	return line
}

// AwaitNoFault waits until the status says that the daemon is ready and has nothing
// to note.
func AwaitNoFault(t *testing.T, d *cluster.Daemon) {
	t.Helper()
	err := awaitText(t.Context(), d, func(text string) bool {
		ready := false
		for l := range strings.Lines(text) {
			key, value, _ := strings.Cut(l, " ")
			if key == "reason" || key == "note" {
				return false
			}
			ready = ready || key == "state" && strings.TrimSpace(value) == "ready"
		}
		return ready
	})
	if err != nil {
		t.Fatal(err)
	}
}

// awaitText waits until the status in words is right.
func awaitText(ctx context.Context, d *cluster.Daemon, right func(text string) bool) error {
	ctx, cancel := context.WithTimeout(ctx, Patience)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for last := ""; ; {
		out, err := d.Host.Run(ctx, CommandBinary, "status", "-control-socket", d.ControlSocket())
		if right(string(out)) {
			return nil
		}
		if ctx.Err() == nil {
			last = fmt.Sprintf("%s (%v)", out, err)
		}
		select {
		case <-tick.C:
		case <-d.Done():
			return errors.New("the daemon has ended")
		case <-ctx.Done():
			return fmt.Errorf("%w; the status is\n%s", ctx.Err(), last)
		}
	}
}

func hasAll(text string, words []string) bool {
	for _, w := range words {
		if !strings.Contains(text, w) {
			return false
		}
	}
	return true
}

// Shell runs a line of the shell on a host.
func Shell(t *testing.T, n *lab.Node, line string) string {
	t.Helper()
	out, err := n.Run(t.Context(), "sh", "-c", line)
	if err != nil {
		t.Fatalf("%s: %s: %v: %s", n.Name, line, err, out)
	}
	return string(out)
}

// Await waits until a condition holds.
func Await(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for late := time.Now().Add(Patience); !ok(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(late) {
			t.Fatalf("%s: not within %s", what, Patience)
		}
	}
}

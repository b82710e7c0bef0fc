package e2e

import (
	"slices"
	"strings"
	"testing"
	"time"

	"uvxlan/bench/lab"
)

// hostState is all that a daemon may leave on a host, but for routes of ours.
func hostState(t *testing.T, h *lab.Host) string {
	t.Helper()
	out, err := h.Run(t.Context(), "sh", "-c", `ip -o link; ip -o address; ip route show table all | grep -v 'proto 89'
		grep -rs . /proc/sys/net/ipv4/conf /proc/sys/net/ipv6/conf | sort`)
	if err != nil {
		t.Fatal(err)
	}
	return string(out)
}

// SettledState is hostState once the container's bridge is up, which it says
// some time after it carries packets.
func SettledState(t *testing.T, h *lab.Host) string {
	t.Helper()
	for late := time.Now().Add(Patience); ; {
		state := hostState(t, h)
		for line := range strings.Lines(state) {
			if strings.Contains(line, ": cni0: ") && strings.Contains(line, "state UP") {
				return state
			}
		}
		if time.Now().After(late) {
			t.Fatalf("%s: the bridge doesn't come up: %s", h.Name, state)
		}
	}
}

// ExpectState compares a host with its state before.
func ExpectState(t *testing.T, h *lab.Host, before, when string) {
	t.Helper()
	after := strings.Split(hostState(t, h), "\n")
	for line := range strings.SplitSeq(before, "\n") {
		i := slices.Index(after, line)
		if i < 0 {
			t.Errorf("%s %s: gone: %s", h.Name, when, line)
			continue
		}
		after = slices.Delete(after, i, i+1)
	}
	for _, line := range after {
		t.Errorf("%s %s: new: %s", h.Name, when, line)
	}
}

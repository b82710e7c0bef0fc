package e2e

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"uvxlan/bench/lab"
)

// OurRoutes are the routes of a host that carry our mark, a line each.
func OurRoutes(t *testing.T, h *lab.Host) []string {
	t.Helper()
	var routes []string
	for line := range strings.Lines(Command(t, h.Node, "ip route show proto 89")) {
		routes = append(routes, strings.Join(strings.Fields(line), " "))
	}
	return routes
}

// AwaitRoutes waits until a host's routes of ours are the wanted ones.
func AwaitRoutes(t *testing.T, h *lab.Host, want ...string) {
	t.Helper()
	var got []string
	for end := time.Now().Add(Patience); time.Now().Before(end); {
		if got = OurRoutes(t, h); strings.Join(got, "\n") == strings.Join(want, "\n") {
			return
		}
	}
	t.Fatalf("%s has the routes %q, want %q", h.Name, got, want)
}

// RouteTo is the route to a host's containers by way of that host.
func RouteTo(h *lab.Host) string { return fmt.Sprintf("%s via %s dev eth0", h.Subnet, h.Address) }

// StrictReversePath makes the underlay's reverse-path filter strict.
func StrictReversePath(t *testing.T, h *lab.Host) {
	t.Helper()
	if err := h.Sysctl("ipv4/conf/eth0/rp_filter", "1"); err != nil {
		t.Fatal(err)
	}
}

// ReversePath is the underlay's reverse-path filter.
func ReversePath(t *testing.T, h *lab.Host) string {
	t.Helper()
	return strings.TrimSpace(Command(t, h.Node, "cat /proc/sys/net/ipv4/conf/eth0/rp_filter"))
}

// WatchRoutes returns a function that returns the changes of a host's routes
// since.
func WatchRoutes(t *testing.T, h *lab.Host) func() []netlink.RouteUpdate {
	t.Helper()
	updates, done := make(chan netlink.RouteUpdate, 1000), make(chan struct{})
	if err := h.Do(func() error { return netlink.RouteSubscribe(updates, done) }); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { close(done) })
	return func() (all []netlink.RouteUpdate) {
		const last = "198.51.100.0/24"
		Command(t, h.Node, "ip route add blackhole "+last)
		for late := time.After(Patience); ; {
			select {
			case u := <-updates:
				if u.Dst.String() == last {
					return all
				}
				all = append(all, u)
			case <-late:
				t.Fatal("the kernel doesn't report routes")
			}
		}
	}
}

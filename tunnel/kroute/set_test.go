package kroute_test

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"uvxlan/tunnel/kroute"
)

func TestIntegrationUpdate(t *testing.T) {
	h := newHost(t)
	s := h.open()
	h.must(s.Update([]kroute.Route{h.route("172.7.22.0/24", "192.168.9.22"), h.route("172.7.23.0/24", "192.168.9.23")}, nil))
	h.expect("172.7.22.0/24 via 192.168.9.22 proto 89", "172.7.23.0/24 via 192.168.9.23 proto 89")

	moved := h.route("172.7.22.0/24", "192.168.9.122")
	h.must(s.Update([]kroute.Route{moved}, []netip.Prefix{netip.MustParsePrefix("172.7.23.0/24"), netip.MustParsePrefix("172.7.99.0/24")}))
	h.expect("172.7.22.0/24 via 192.168.9.122 proto 89")
	if got := s.Routes(); !slices.Equal(got, []kroute.Route{moved}) {
		t.Errorf("the set has %v", got)
	}
	moved.Source = netip.MustParseAddr("192.168.9.1")
	h.must(s.Update([]kroute.Route{moved}, nil))
	h.expect("172.7.22.0/24 via 192.168.9.122 proto 89 src 192.168.9.1")
	h.must(s.Clear())
	h.expect()
	if got := s.Routes(); len(got) != 0 {
		t.Errorf("the set has %v after Clear", got)
	}
	h.restore(s, 0)
	h.expect()
}

func TestIntegrationReplace(t *testing.T) {
	h := newHost(t)
	earlier := h.open()
	h.must(earlier.Replace([]kroute.Route{
		h.route("172.7.22.0/24", "192.168.9.22"), h.route("172.7.23.0/24", "192.168.9.23"),
		h.route("172.7.24.0/24", "192.168.9.24"), h.route("fd77:24::/64", "fd09::24"),
	}))
	h.must(earlier.Close())
	h.ip("route add 172.7.23.0/24 via 192.168.9.23 metric 7 proto 89")
	h.ip("route add 172.7.0.0/16 dev eth0 proto 89 scope link")
	h.ip("route add 172.8.0.0/24 via 192.168.9.99 proto static")
	h.ip("route add blackhole 172.9.0.0/24 proto 89")

	s := h.open()
	h.must(s.Replace([]kroute.Route{
		h.route("172.7.22.0/24", "192.168.9.22"), h.route("172.7.23.0/24", "192.168.9.123"), h.route("172.7.25.0/24", "192.168.9.25"),
	}))
	h.expect("172.7.22.0/24 via 192.168.9.22 proto 89", "172.7.23.0/24 via 192.168.9.123 proto 89",
		"172.7.25.0/24 via 192.168.9.25 proto 89", "172.8.0.0/24 via 192.168.9.99 proto static", "172.9.0.0/24 nowhere proto 89")
	network, err := netlink.RouteListFiltered(netlink.FAMILY_V4, &netlink.Route{Protocol: protocol, Scope: netlink.SCOPE_LINK},
		netlink.RT_FILTER_PROTOCOL|netlink.RT_FILTER_SCOPE)
	if err != nil || len(network) != 1 {
		t.Errorf("routes without a gateway: %v, %v", network, err)
	}

	h.must(s.Close())
	left, err := kroute.Leftover(protocol)
	h.must(err)
	removed, err := kroute.RemoveLeftover(protocol)
	if err != nil || len(left) != 3 || !slices.Equal(removed, left) {
		t.Errorf("removed %v of %v, %v", removed, left, err)
	}
	h.expect("172.8.0.0/24 via 192.168.9.99 proto static", "172.9.0.0/24 nowhere proto 89")
}

// Two sets of one protocol, each with networks of its own, leave each other's
// routes alone, also when they begin, and so does the removal of leftovers.
func TestIntegrationLimit(t *testing.T) {
	h := newHost(t)
	a, b := h.open(), h.open()
	first, other := netip.MustParsePrefix("172.7.0.0/16"), netip.MustParsePrefix("172.8.0.0/16")
	a.Limit(first)
	b.Limit(other)
	h.ip("route add 172.7.99.0/24 via 192.168.9.99 proto 89")
	h.ip("route add 172.8.99.0/24 via 192.168.9.99 proto 89")
	outside := h.route("172.6.1.0/24", "192.168.9.21")
	h.must(a.Replace([]kroute.Route{h.route("172.7.21.0/24", "192.168.9.21"), outside}))
	h.expect("172.6.1.0/24 via 192.168.9.21 proto 89", "172.7.21.0/24 via 192.168.9.21 proto 89", "172.8.99.0/24 via 192.168.9.99 proto 89")
	h.must(b.Replace([]kroute.Route{h.route("172.8.22.0/24", "192.168.9.22")}))
	h.must(a.Replace([]kroute.Route{h.route("172.7.21.0/24", "192.168.9.21"), outside}))
	h.expect("172.6.1.0/24 via 192.168.9.21 proto 89", "172.7.21.0/24 via 192.168.9.21 proto 89", "172.8.22.0/24 via 192.168.9.22 proto 89")
	left, err := kroute.Leftover(protocol, first)
	h.must(err)
	removed, err := kroute.RemoveLeftover(protocol, first)
	if err != nil || len(left) != 1 || !slices.Equal(removed, left) {
		t.Errorf("removed %v of %v, %v", removed, left, err)
	}
	h.restore(b, 0)
	h.expect("172.6.1.0/24 via 192.168.9.21 proto 89", "172.8.22.0/24 via 192.168.9.22 proto 89")
}

func TestIntegrationForeign(t *testing.T) {
	h := newHost(t)
	h.ip("route add 172.7.22.0/24 via 192.168.9.22 proto static")
	h.ip("route add 172.7.23.0/24 via 192.168.9.99 proto static")
	h.ip("route add blackhole 172.7.24.0/24 proto 89")
	h.ip("route add 172.7.25.0/24 via 192.168.9.99 metric 50 proto static")
	foreign := []string{"172.7.22.0/24 via 192.168.9.22 proto static", "172.7.23.0/24 via 192.168.9.99 proto static",
		"172.7.24.0/24 nowhere proto 89", "172.7.25.0/24 via 192.168.9.99 proto static"}
	same, other, hole, beside := h.route("172.7.22.0/24", "192.168.9.22"), h.route("172.7.23.0/24", "192.168.9.23"),
		h.route("172.7.24.0/24", "192.168.9.24"), h.route("172.7.25.0/24", "192.168.9.25")
	all := []kroute.Route{hole, other, same, beside}
	placed := []kroute.Route{same, beside}
	s := h.open()
	check := func(err error) {
		t.Helper()
		h.routeError(err, kroute.ErrForeign, other, "172.7.23.0/24 via 192.168.9.23 dev eth0",
			"via 192.168.9.99 dev eth0 proto static", "ip route del 172.7.23.0/24", "172.7.24.0/24", "nowhere")
		h.expect(append(foreign, "172.7.25.0/24 via 192.168.9.25 proto 89")...)
		if got := s.Routes(); !slices.Equal(got, placed) {
			t.Errorf("the set has %v, want %v", got, placed)
		}
	}
	check(s.Replace(all))
	n, err := s.Restore()
	check(err)
	if n != 0 {
		t.Errorf("restored %d routes", n)
	}
	h.must(s.Clear())
	h.expect(foreign...)
	check(s.Update(all, nil))

	// Once somebody else's routes are gone, ours take their places.
	h.ip("route del 172.7.22.0/24")
	h.ip("route del 172.7.23.0/24")
	h.ip("route del blackhole 172.7.24.0/24")
	h.restore(s, 3)
	h.expect("172.7.22.0/24 via 192.168.9.22 proto 89", "172.7.23.0/24 via 192.168.9.23 proto 89", "172.7.24.0/24 via 192.168.9.24 proto 89",
		"172.7.25.0/24 via 192.168.9.25 proto 89", "172.7.25.0/24 via 192.168.9.99 proto static")
}

// A route of ours is changed even if somebody else's is beside it, and theirs
// stays: the kernel's own replace knows no owners.
func TestIntegrationForeignBeside(t *testing.T) {
	h := newHost(t)
	s := h.open()
	r := h.route("172.7.22.0/24", "192.168.9.22")
	h.must(s.Replace([]kroute.Route{r}))
	h.ip("route append 172.7.22.0/24 via 192.168.9.98 proto static")
	r.Via = netip.MustParseAddr("192.168.9.122")
	h.must(s.Update([]kroute.Route{r}, nil))
	h.expect("172.7.22.0/24 via 192.168.9.122 proto 89", "172.7.22.0/24 via 192.168.9.98 proto static")

	h.ip("route prepend 172.7.22.0/24 via 192.168.9.99 proto static")
	r.Via = netip.MustParseAddr("192.168.9.22")
	h.routeError(s.Update([]kroute.Route{r}, nil), kroute.ErrForeign, r, "192.168.9.99")
	h.expect("172.7.22.0/24 via 192.168.9.98 proto static", "172.7.22.0/24 via 192.168.9.99 proto static")
}

func TestIntegrationRestore(t *testing.T) {
	h := newHost(t)
	s := h.open()
	routes := []kroute.Route{
		h.route("172.7.22.0/24", "192.168.9.22"), h.route("172.7.23.0/24", "192.168.9.23"), h.route("fd77:22::/64", "fd09::22"),
	}
	want := []string{"172.7.22.0/24 via 192.168.9.22 proto 89", "172.7.23.0/24 via 192.168.9.23 proto 89", "fd77:22::/64 via fd09::22 proto 89"}
	h.must(s.Replace(routes))
	h.restore(s, 0)

	h.ip("route flush proto 89")
	h.ip("-6 route flush proto 89")
	h.expect()
	h.restore(s, 3)
	h.expect(want...)

	h.ip("route change 172.7.22.0/24 via 192.168.9.99 proto 89")
	h.restore(s, 1)
	h.expect(want...)

	h.ip("link set eth0 down")
	h.expect()
	_, err := s.Restore()
	h.routeError(err, kroute.ErrUnreachable, routes[0], "interface is down")
	if got := s.Routes(); len(got) != 0 {
		t.Errorf("the set has %v while the interface is down", got)
	}
	h.ip("link set eth0 up")
	h.address("fd09::1/64") // the kernel dropped it
	h.restore(s, 3)
	h.expect(want...)
}

func TestIntegrationIPv6(t *testing.T) {
	h := newHost(t)
	h.ip("-6 route add fd77:24::/64 via fd09::99 proto static")
	s := h.open()
	a, b := h.route("fd77:22::/64", "fd09::22"), h.route("fd77:23::/64", "fd09::23")
	b.Source = netip.MustParseAddr("fd09::1")
	other := h.route("fd77:24::/64", "fd09::24")
	err := s.Replace([]kroute.Route{a, b, other})
	h.routeError(err, kroute.ErrForeign, other, "via fd09::99 dev eth0 proto static", "ip -6 route del")
	static := "fd77:24::/64 via fd09::99 proto static"
	h.expect("fd77:22::/64 via fd09::22 proto 89", "fd77:23::/64 via fd09::23 proto 89 src fd09::1", static)
	a.Via = netip.MustParseAddr("fd09::122")
	h.must(s.Update([]kroute.Route{a}, nil))
	h.expect("fd77:22::/64 via fd09::122 proto 89", "fd77:23::/64 via fd09::23 proto 89 src fd09::1", static)

	// The kernel makes one route of two ways out of somebody else's and ours.
	h.ip("-6 route append fd77:22::/64 via fd09::98 proto static")
	_, err = s.Restore()
	h.routeError(err, kroute.ErrForeign, a, "several ways")
	h.ip("-6 route del fd77:22::/64 via fd09::98 dev eth0")
	if _, err = s.Restore(); !errors.Is(err, kroute.ErrForeign) {
		t.Errorf("the static route is in the way: %v", err)
	}
	h.expect("fd77:22::/64 via fd09::122 proto 89", "fd77:23::/64 via fd09::23 proto 89 src fd09::1", static)

	// Neither run may leave its way in there.
	h.ip("-6 route append fd77:22::/64 via fd09::98 proto static")
	again := h.open()
	h.routeError(again.Replace([]kroute.Route{a}), kroute.ErrForeign, a)
	h.must(again.Clear())
	h.must(s.Clear())
	h.expect(static, "fd77:22::/64 via fd09::98 proto static")
}

func TestIntegrationUnreachable(t *testing.T) {
	h := newHost(t)
	s := h.open()
	far, far6, near := h.route("172.7.31.0/24", "10.9.9.9"), h.route("fd77:31::/64", "fd10::9"), h.route("172.7.22.0/24", "192.168.9.22")
	err := s.Replace([]kroute.Route{far, near, far6})
	h.routeError(err, kroute.ErrUnreachable, far, "172.7.31.0/24 via 10.9.9.9 dev eth0", "not on-link", "fd77:31::/64 via fd10::9")
	h.expect("172.7.22.0/24 via 192.168.9.22 proto 89")
	h.address("10.9.9.1/24")
	h.address("fd10::1/64")
	h.restore(s, 2)
	h.expect("172.7.22.0/24 via 192.168.9.22 proto 89", "172.7.31.0/24 via 10.9.9.9 proto 89", "fd77:31::/64 via fd10::9 proto 89")

	// A peer that moves out of reach must not keep its old route.
	near.Via = netip.MustParseAddr("10.8.8.8")
	h.routeError(s.Update([]kroute.Route{near}, nil), kroute.ErrUnreachable, near)
	h.expect("172.7.31.0/24 via 10.9.9.9 proto 89", "fd77:31::/64 via fd10::9 proto 89")
	gone := near
	gone.Link = 4711
	h.routeError(s.Update([]kroute.Route{gone}, nil), kroute.ErrUnreachable, gone, "dev 4711", "interface is gone")
	sourced := near
	sourced.Via, sourced.Source = netip.MustParseAddr("192.168.9.22"), netip.MustParseAddr("192.168.9.77")
	h.routeError(s.Update([]kroute.Route{sourced}, nil), kroute.ErrUnreachable, sourced, "on this host")
}

func TestIntegrationInvalid(t *testing.T) {
	h := newHost(t)
	s := h.open()
	mixed := h.route("172.7.22.0/24", "fd09::22")
	good := h.route("172.7.23.7/24", "::ffff:192.168.9.23")
	err := s.Update([]kroute.Route{mixed, {}, good}, nil)
	var e *kroute.Error
	if !errors.As(err, &e) || e.Route != mixed {
		t.Fatalf("the error is %v", err)
	}
	h.routeError(err, e.Reason, mixed, "172.7.22.0/24", "fd09::22", "missing")
	h.expect("172.7.23.0/24 via 192.168.9.23 proto 89")
	h.must(s.Update(nil, []netip.Prefix{netip.MustParsePrefix("172.7.23.9/24")}))
	h.expect()

	h.must(s.Close())
	if err := s.Update(nil, nil); !errors.Is(err, os.ErrClosed) {
		t.Errorf("Update of a closed set: %v", err)
	}
	if _, err := kroute.Open(kroute.Config{Protocol: unix.RTPROT_STATIC}); err == nil {
		t.Error("Open takes the administrator's protocol")
	}
}

// Routes that others change meanwhile make the kernel's listing start again in
// its midst; none of ours may seem to be missing or altered.
func TestIntegrationChurn(t *testing.T) {
	h := newHost(t)
	s := h.open()
	var routes []kroute.Route
	for i := range 500 {
		routes = append(routes, h.route(fmt.Sprintf("fd77:0:%x::/64", i), "fd09::22"))
	}
	h.must(s.Replace(routes))
	handle, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	h.must(err)
	var wg sync.WaitGroup
	stop := make(chan struct{})
	wg.Go(func() {
		defer handle.Close()
		other := h.route("fd88::/64", "fd09::88")
		r := &netlink.Route{Dst: ipNet(other.Subnet), Gw: other.Via.AsSlice(), LinkIndex: other.Link, Protocol: unix.RTPROT_STATIC}
		for {
			select {
			case <-stop:
				return
			default:
			}
			if err := errors.Join(handle.RouteAdd(r), handle.RouteDel(r)); err != nil {
				t.Error(err)
				return
			}
			runtime.Gosched()
		}
	})
	for range 50 {
		h.restore(s, 0)
	}
	close(stop)
	wg.Wait()
}

func TestIntegrationTenThousand(t *testing.T) {
	const count = 10_000
	h := newHost(t)
	s := h.open()
	timed := func(what string, f func() error) {
		t.Helper()
		start := time.Now()
		h.must(f())
		t.Logf("%-40s %v", what, time.Since(start).Round(100*time.Microsecond))
	}
	for _, family := range []struct {
		name, subnet, via, other string
	}{
		{"IPv4", "10.%d.%d.0/24", "192.168.9.22", "192.168.9.23"},
		{"IPv6", "fd77:%x:%x::/64", "fd09::22", "fd09::23"},
	} {
		var routes []kroute.Route
		for i := range count {
			routes = append(routes, h.route(fmt.Sprintf(family.subnet, i>>8, i&0xff), family.via))
		}
		start := time.Now()
		timed(family.name+": load 10,000", func() error { return s.Replace(routes) })
		if d := time.Since(start); d > 20*time.Second {
			t.Errorf("loading took %v", d)
		}
		timed("replace by the same", func() error { return s.Replace(routes) })
		timed("restore, nothing missing", func() error { h.restore(s, 0); return nil })
		one := routes[count/2]
		timed("remove one", func() error { return s.Update(nil, []netip.Prefix{one.Subnet}) })
		timed("add one", func() error { return s.Update([]kroute.Route{one}, nil) })
		one.Via = netip.MustParseAddr(family.other)
		timed("change one", func() error { return s.Update([]kroute.Route{one}, nil) })
		h.ip("-4 route flush proto 89")
		h.ip("-6 route flush proto 89")
		timed("restore, all missing", func() error { h.restore(s, count); return nil })
		if got := len(h.table()); got != count {
			t.Errorf("the kernel has %d routes", got)
		}
		timed("clear", s.Clear)
		h.expect()
	}
}

package hostgw

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"strings"
	"sync"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"uvxlan/lease"
	"uvxlan/tunnel/internal/testhost"
	"uvxlan/tunnel/kroute"
	"uvxlan/tunnel/nexthop"
	"uvxlan/tunnel/onlink"
)

// gatewayHost is a host of 10.66.0.0/24 on eth0 and 10.77.0.0/24 on back, with a
// gateway to peers on eth0.
type gatewayHost struct {
	*testhost.Host
	*Gateway
	log     lockedBuffer
	running sync.WaitGroup
}

// lockedBuffer is a log that may be read while it is written.
type lockedBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

func newGatewayHost(t *testing.T) *gatewayHost {
	t.Helper()
	g := &gatewayHost{Host: testhost.New(t)}
	b := testhost.New(t)
	testhost.Join(g.Host, b, "eth0", "10.66.0")
	testhost.Join(g.Host, b, "back", "10.77.0")
	g.open()
	return g
}

// open opens the gateway, as at the start of a daemon.
func (g *gatewayHost) open() {
	g.T.Helper()
	g.Gateway = testhost.Inside(g.Host, func() (*Gateway, error) {
		return Open(Config{Link: "eth0", Logger: slog.New(slog.NewTextHandler(&g.log, nil))})
	})
	end := g.Gateway
	g.T.Cleanup(func() { testhost.Must(g.T, end.Close()) })
}

func (g *gatewayHost) start() {
	g.running.Go(func() {
		if err := g.Run(context.Background()); err != nil {
			g.T.Error(err)
		}
	})
}

func (g *gatewayHost) stop(end func() error) {
	g.T.Helper()
	testhost.Must(g.T, end())
	g.running.Wait()
}

func (g *gatewayHost) await(want ...string) {
	g.T.Helper()
	defer g.ExpectRoutes(want...)
	testhost.Await(g.T, "the routes", func() bool { return len(g.Routes()) == len(want) && (len(want) == 0 || g.Routes()[0] == want[0]) })
}

// leases are of subnets and their hosts, in turn.
func leases(pairs ...string) (all []lease.Lease) {
	for i := 0; i < len(pairs); i += 2 {
		all = append(all, lease.Lease{Subnet: netip.MustParsePrefix(pairs[i]), Attrs: lease.Attrs{
			PublicIP: netip.MustParseAddr(pairs[i+1]), BackendType: lease.TypeHostGW,
		}})
	}
	return all
}

func (g *gatewayHost) apply(u lease.Update) {
	g.T.Helper()
	testhost.Must(g.T, g.Apply(u))
}

const (
	route1, route2, route3 = "10.0.1.0/24 via 10.66.0.2", "10.0.2.0/24 via 10.66.0.2", "10.0.3.0/24 via 10.66.0.3"
	other1                 = "10.0.1.0/24 via 10.66.0.3"
)

func TestIntegrationGateway(t *testing.T) {
	g := newGatewayHost(t)
	g.start()
	g.apply(lease.Update{Reset: true, Leases: leases("10.0.1.0/24", "10.66.0.2", "10.0.2.0/24", "10.66.0.2", "10.0.3.0/24", "10.66.0.3")})
	g.await(route1, route2, route3)
	if got := g.Path(netip.MustParsePrefix("10.0.1.7/24")).String(); got != "direct via eth0" || g.Peers() != 3 {
		t.Errorf("the path is %q of %d peers", got, g.Peers())
	}

	g.apply(lease.Update{Leases: leases("10.0.1.0/24", "10.66.0.3")}) // moves
	g.ExpectRoutes(other1, route2, route3)                            // to a host that is known
	g.apply(lease.Update{Leases: leases("10.0.1.0/24", "10.66.0.2"), Deleted: leases("10.0.1.0/24", "10.66.0.3", "10.0.3.0/24", "10.66.0.3")})
	g.ExpectRoutes(route1, route2)
	g.apply(lease.Update{Leases: leases("10.0.3.0/24", "10.66.0.3")}) // came back
	g.await(route1, route2, route3)

	g.apply(lease.Update{Leases: leases("10.0.1.0/24", "10.77.0.2")}) // on-link elsewhere
	g.await(route2, route3)
	for subnet, want := range map[string]string{
		"10.0.1.0/24": "unreachable: on-link via back, not via eth0", "10.0.9.0/24": "vxlan",
	} {
		p := netip.MustParsePrefix(subnet)
		testhost.Await(t, want, func() bool { return g.Path(p).String() == want })
	}
	g.apply(lease.Update{Leases: leases("10.0.1.0/24", "10.66.0.2")})

	testhost.Must(t, g.LinkSetDown(g.Link("eth0")))
	g.await()
	testhost.Must(t, g.LinkSetUp(g.Link("eth0")))
	g.await(route1, route2, route3)
	testhost.Must(t, g.RouteDel(&netlink.Route{Dst: testhost.IPNet(netip.MustParsePrefix("10.0.2.0/24"))})) // somebody's hand
	g.await(route1, route2, route3)

	g.stop(g.Clear)
	g.ExpectRoutes()
	testhost.Must(t, g.Clear())
	if err := g.Run(t.Context()); !errors.Is(err, onlink.ErrClosed) {
		t.Errorf("Run of a closed gateway returns %v", err)
	}
}

// Leases that can't be peers are named, have no route, and don't keep an earlier
// run's routes from being cleared away.
// An IPv6 subnet has a route of its own, by the host's IPv6 address, where IPv6
// is wanted.
func TestIntegrationGatewayIPv6(t *testing.T) {
	for _, wanted := range []bool{true, false} {
		g := newGatewayHost(t)
		g.Address("eth0", "fd66::1/64")
		g.Gateway = testhost.Inside(g.Host, func() (*Gateway, error) { return Open(Config{Link: "eth0", IPv6: wanted}) })
		end := g.Gateway
		t.Cleanup(func() { testhost.Must(t, end.Close()) })
		g.start()
		l := leases("10.0.1.0/24", "10.66.0.2")
		l[0].IPv6Subnet, l[0].Attrs.PublicIPv6 = netip.MustParsePrefix("fd00:0:0:1::/64"), netip.MustParseAddr("fd66::2")
		g.apply(lease.Update{Reset: true, Leases: l})
		g.await(route1)
		v6 := func() []netlink.Route {
			routes, err := g.RouteListFiltered(netlink.FAMILY_V6, &netlink.Route{Protocol: kroute.Protocol}, netlink.RT_FILTER_PROTOCOL)
			testhost.Must(t, err)
			return routes
		}
		if wanted {
			testhost.Await(t, "the IPv6 route", func() bool {
				r := v6()
				return len(r) == 1 && r[0].Dst.String() == "fd00:0:0:1::/64" && r[0].Gw.String() == "fd66::2" && r[0].LinkIndex == g.Index("eth0")
			})
		}
		g.apply(lease.Update{Deleted: l})
		g.await()
		if left := v6(); len(left) > 0 {
			t.Errorf("IPv6 wanted: %t: the kernel has %v", wanted, left)
		}
		g.stop(g.Clear)
	}
}

func TestIntegrationGatewayRefusesLeases(t *testing.T) {
	g := newGatewayHost(t)
	g.start()
	bad := leases("10.0.4.0/24", "10.66.0.4", "10.0.5.0/24", "0.0.0.0", "10.0.6.0/24", "224.0.0.1")
	bad[0].Attrs.BackendType = lease.TypeVXLAN
	bad = append(bad, lease.Lease{Subnet: netip.MustParsePrefix("10.0.7.0/24"), Attrs: lease.Attrs{BackendType: lease.TypeHostGW}})
	testhost.StaleRoute(g.Host, "10.0.8.0/24", "10.66.0.2")
	err := g.Apply(lease.Update{Reset: true, Leases: append(leases("10.0.1.0/24", "10.66.0.2"), bad...)})
	if n := strings.Count(err.Error(), "\n") + 1; n != len(bad) || g.Peers() != 1 {
		t.Errorf("%d peers, %d errors: %v", g.Peers(), n, err)
	}
	g.await(route1)
	if err := g.Apply(lease.Update{Leases: []lease.Lease{{Subnet: netip.MustParsePrefix("10.0.1.0/24")}}}); err == nil {
		t.Error("no error")
	}
	g.ExpectRoutes()
}

// A route to a host that no longer has the subnet goes at once, whether the new
// one was looked at or not.
func TestIntegrationGatewayMove(t *testing.T) {
	g := newGatewayHost(t)
	g.apply(lease.Update{Reset: true, Leases: leases("10.0.1.0/24", "10.66.0.2", "10.0.2.0/24", "10.66.0.2")})
	g.paths.Found([]nexthop.Change{{Addr: netip.MustParseAddr("10.66.0.2"), Hop: nexthop.Hop{
		OnLink: true, Link: "eth0", Index: g.Index("eth0"), MTU: 1500,
	}}})
	g.ExpectRoutes(route1, route2)
	g.apply(lease.Update{Leases: leases("10.0.1.0/24", "10.66.0.3")})
	g.ExpectRoutes(route2)
	g.start()
	g.await(other1, route2)
}

// What an earlier run left stays until it is known what is wanted, through
// resets, and only what isn't wanted goes then. The routes outlive Close.
func TestIntegrationGatewayRestart(t *testing.T) {
	g := newGatewayHost(t)
	testhost.StaleRoute(g.Host, "10.0.1.0/24", "10.66.0.2")
	testhost.StaleRoute(g.Host, "10.0.3.0/24", "10.66.0.9")
	testhost.StaleRoute(g.Host, "10.0.9.0/24", "10.66.0.9")
	left := []string{route1, "10.0.3.0/24 via 10.66.0.9", "10.0.9.0/24 via 10.66.0.9"}
	gone := watchRoutes(t, g.Host)
	for range 2 {
		g.apply(lease.Update{Reset: true, Leases: leases("10.0.1.0/24", "10.66.0.2", "10.0.3.0/24", "10.66.0.3")})
		g.ExpectRoutes(left...) // nobody has looked yet
	}
	g.start()
	g.await(route1, route3)
	g.stop(g.Close)
	g.ExpectRoutes(route1, route3)
	g.apply(lease.Update{Reset: true})
	g.apply(lease.Update{Deleted: leases("10.0.1.0/24", "10.66.0.2")})
	g.ExpectRoutes(route1, route3)
	if n := testhost.LinesOf(g.log.String(), "set routes"); n != 0 {
		t.Errorf("a closed gateway tried to set routes %d times", n)
	}

	g.open()
	g.apply(lease.Update{Reset: true, Leases: leases("10.0.1.0/24", "10.66.0.2", "10.0.3.0/24", "10.66.0.3")})
	g.start()
	testhost.Await(t, "peers", func() bool { return g.Path(netip.MustParsePrefix("10.0.3.0/24")).Direct })
	g.stop(g.Close)
	g.ExpectRoutes(route1, route3)
	for _, r := range gone() {
		if r == route1 || r == route3 {
			t.Errorf("%s went meanwhile", r)
		}
	}
	g.open()
	g.apply(lease.Update{Reset: true, Leases: leases("10.0.1.0/24", "10.66.0.2")})
	testhost.Must(t, g.Clear()) // before anybody looked
	g.ExpectRoutes()
}

// watchRoutes notes the routes that go, until it is asked for them.
func watchRoutes(t *testing.T, h *testhost.Host) (gone func() []string) {
	t.Helper()
	updates, done := make(chan netlink.RouteUpdate), make(chan struct{})
	testhost.Inside(h, func() (struct{}, error) { return struct{}{}, netlink.RouteSubscribe(updates, done) })
	var list []string
	var reading sync.WaitGroup
	end := testhost.IPNet(netip.MustParsePrefix("10.99.0.0/16"))
	reading.Go(func() {
		for u := range updates {
			if u.Type == unix.RTM_DELROUTE && u.Dst != nil {
				if u.Dst.String() == end.String() {
					close(done)
					continue
				}
				list = append(list, u.Dst.String()+" via "+u.Gw.String())
			}
		}
	})
	return func() []string {
		last := &netlink.Route{Dst: end, LinkIndex: h.Index("back")}
		testhost.Must(t, h.RouteAdd(last))
		testhost.Must(t, h.RouteDel(last))
		reading.Wait()
		return list
	}
}

// A foreign route to a peer's subnet is left alone and named, and ours is made
// when it goes.
func TestIntegrationGatewayForeignRoute(t *testing.T) {
	g := newGatewayHost(t)
	foreign := &netlink.Route{Dst: testhost.IPNet(netip.MustParsePrefix("10.0.1.0/24")), Gw: []byte{10, 77, 0, 2}}
	testhost.Must(t, g.RouteAdd(foreign))
	g.start()
	g.apply(lease.Update{Reset: true, Leases: leases("10.0.1.0/24", "10.66.0.2")})
	subnet := netip.MustParsePrefix("10.0.1.0/24")
	testhost.Await(t, "no route", func() bool { return testhost.LinesOf(g.log.String(), "no route to peer") == 1 })
	testhost.Await(t, "unreachable", func() bool { return g.Path(subnet).Unreachable })
	g.ExpectRoutes()
	testhost.Must(t, g.RouteDel(foreign))
	g.await(route1)
	testhost.Await(t, "there now", func() bool { return testhost.LinesOf(g.log.String(), "route to peer is there now") == 1 })
	if p := g.Path(subnet); !p.Direct {
		t.Errorf("the path is %v", p)
	}
	if n := testhost.LinesOf(g.log.String(), "no route to peer"); n != 1 {
		t.Errorf("told %d times", n)
	}
}

// Close leaves no descriptor, whether anything ran or not.
func TestIntegrationDirectLeavesNoDescriptor(t *testing.T) {
	m := testhost.New(t)
	m.Address("lo", "10.66.0.1/32")
	for name, cycle := range map[string]func() error{
		"socket": func() error { return openAndClose(onlink.Socket) },
		"route":  func() error { return openAndClose(onlink.Route) },
		"gateway": func() error {
			g, err := Open(Config{Link: "lo"})
			if err != nil {
				return err
			}
			ctx, cancel := context.WithCancel(context.Background())
			cancel()
			return errors.Join(g.Run(ctx), g.Close())
		},
	} {
		before := testhost.Descriptors(t)
		testhost.Inside(m, func() (struct{}, error) { return struct{}{}, cycle() })
		if after := testhost.Descriptors(t); after != before {
			t.Errorf("%s: %d descriptors before, %d after", name, before, after)
		}
	}
}

func openAndClose(mode onlink.Mode) error {
	p, err := onlink.Open(onlink.Config{Mode: mode, Workers: 2})
	if err != nil {
		return err
	}
	return errors.Join(p.Close(), p.Close())
}

package nexthop

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"uvxlan/encap"
	"uvxlan/tunnel/netnstest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	// patience bounds what should take a moment, on a loaded machine.
	patience = 20 * time.Second
	// device is the name of both ends of the link.
	device = "uvx-nh-eth0"
)

var (
	ours4, ours6 = netip.MustParseAddr("10.66.0.1"), netip.MustParseAddr("fd66::1")
	peer4, peer6 = netip.MustParseAddr("10.66.0.2"), netip.MustParseAddr("fd66::2")
	gate4, gate6 = netip.MustParseAddr("10.66.0.254"), netip.MustParseAddr("fd66::fe")
)

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// host is a network namespace without a name, which goes with the test.
type host struct {
	*netnstest.Namespace
	t *testing.T
}

func newHost(t *testing.T) *host {
	t.Helper()
	h := &host{netnstest.New(t), t}
	h.sysctl("net/ipv6/conf/default/accept_dad", "0")
	return h
}

// in is the host as a part of the test sees it.
func (h *host) in(t *testing.T) *host { return &host{h.Namespace, t} }

// do runs f inside the host.
func do[T any](h *host, f func() (T, error)) (result T) {
	h.t.Helper()
	must(h.t, h.Do(func() (err error) {
		result, err = f()
		return err
	}))
	return result
}

func (h *host) sysctl(name, value string) {
	h.t.Helper()
	must(h.t, h.Do(func() error {
		return os.WriteFile(filepath.Join("/proc/sys", name), []byte(value), 0o644)
	}))
}

// hasten makes the kernel's resolution fail quickly: how long that takes isn't
// ours to test.
func (h *host) hasten() {
	for _, family := range []string{"ipv4", "ipv6"} {
		dir := "net/" + family + "/neigh/" + device + "/"
		for name, value := range map[string]string{
			"delay_first_probe_time": "1", "ucast_solicit": "1", "mcast_solicit": "1", "retrans_time_ms": "200",
		} {
			h.sysctl(dir+name, value)
		}
	}
	h.sysctl("net/ipv4/neigh/"+device+"/locktime", "0")
}

func (h *host) link(name string) netlink.Link {
	h.t.Helper()
	l, err := h.LinkByName(name)
	must(h.t, err)
	return l
}

func (h *host) mac() encap.MAC { return encap.MAC(h.link(device).Attrs().HardwareAddr) }

func (h *host) up(name string) {
	h.t.Helper()
	must(h.t, h.LinkSetUp(h.link(name)))
}

func (h *host) down(name string) {
	h.t.Helper()
	must(h.t, h.LinkSetDown(h.link(name)))
}

func (h *host) address(name, prefix string) *netlink.Addr {
	h.t.Helper()
	a, err := netlink.ParseAddr(prefix)
	must(h.t, err)
	a.Flags = unix.IFA_F_NODAD
	must(h.t, h.AddrAdd(h.link(name), a))
	return a
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// route is to one address, or to a prefix.
func route(to string, edit func(*netlink.Route)) *netlink.Route {
	p, err := netip.ParsePrefix(to)
	if err != nil {
		a := netip.MustParseAddr(to)
		p = netip.PrefixFrom(a, a.BitLen())
	}
	r := &netlink.Route{Dst: ipNet(p)}
	edit(r)
	return r
}

func via(gateway netip.Addr) func(*netlink.Route) {
	return func(r *netlink.Route) { r.Gw = gateway.AsSlice() }
}

func (h *host) routeAdd(r *netlink.Route) {
	h.t.Helper()
	must(h.t, h.RouteAdd(r))
}

// neighbour is the kernel's entry; of none the state is NUD_NONE.
func (h *host) neighbour(a netip.Addr) netlink.Neigh {
	h.t.Helper()
	list, err := h.NeighList(h.link(device).Attrs().Index, 0)
	must(h.t, err)
	for _, n := range list {
		if addr, _ := netip.AddrFromSlice(n.IP); addr.Unmap() == a {
			return n
		}
	}
	return netlink.Neigh{}
}

func (h *host) setNeighbour(a netip.Addr, state int, mac encap.MAC) {
	h.t.Helper()
	must(h.t, h.NeighSet(&netlink.Neigh{
		LinkIndex: h.link(device).Attrs().Index, IP: a.AsSlice(), State: state, HardwareAddr: mac[:],
	}))
}

// hosts are two that share a link, with addresses of both families.
func hosts(t *testing.T) (a, b *host) {
	t.Helper()
	a, b = newHost(t), newHost(t)
	must(t, a.LinkAdd(&netlink.Veth{
		LinkAttrs: netlink.LinkAttrs{Name: device, MTU: 1400},
		PeerName:  device, PeerNamespace: netlink.NsFd(b.FD()),
	}))
	for _, h := range []*host{a, b} {
		h.up(device)
	}
	a.address(device, ours4.String()+"/24")
	a.address(device, ours6.String()+"/64")
	b.address(device, peer4.String()+"/24")
	b.address(device, peer6.String()+"/64")
	return a, b
}

// watching is a running watcher and what it told.
type watching struct {
	*Watcher
	t       *testing.T
	news    chan struct{}
	mu      sync.Mutex
	told    map[netip.Addr]time.Time
	changes int
	routes  int
}

func (h *host) watch(c Config, addrs ...netip.Addr) *watching {
	h.t.Helper()
	return h.watchWith(c, eventBuffer, addrs...)
}

func (h *host) watchWith(c Config, buffer int, addrs ...netip.Addr) *watching {
	h.t.Helper()
	w := &watching{t: h.t, news: make(chan struct{}, 1), told: make(map[netip.Addr]time.Time)}
	changed, routes := c.Changed, c.Routes
	c.Changed = func(changes []Change) {
		w.note(changes)
		if changed != nil {
			changed(changes)
		}
	}
	c.Routes = func() {
		w.noteRoutes()
		if routes != nil {
			routes()
		}
	}
	w.Watcher = do(h, func() (*Watcher, error) { return open(c, buffer) })
	ran := make(chan error, 1)
	w.Track(addrs, nil)
	go func() { ran <- w.Run(context.Background()) }()
	h.t.Cleanup(func() {
		if err := errors.Join(w.Close(), <-ran); err != nil {
			h.t.Error(err)
		}
	})
	return w
}

func (w *watching) note(changes []Change) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, c := range changes {
		w.told[c.Addr] = time.Now()
		if h, ok := w.Lookup(c.Addr); ok && h != c.Hop {
			w.t.Errorf("%s: told %+v, Lookup says %+v", c.Addr, c.Hop, h)
		}
	}
	w.changes += len(changes)
	w.tell()
}

func (w *watching) noteRoutes() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.routes++
	w.tell()
}

func (w *watching) tell() {
	select {
	case w.news <- struct{}{}:
	default:
	}
}

func (w *watching) counts() (changes, routes int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.changes, w.routes
}

// until waits for a condition that can only come true by a change or by time.
func (w *watching) until(what string, ok func() bool) {
	w.t.Helper()
	deadline := time.After(patience)
	for !ok() {
		select {
		case <-w.news:
		case <-time.After(50 * time.Millisecond): // the kernel's state isn't told of
		case <-deadline:
			w.t.Fatalf("no %s after %v", what, patience)
		}
	}
}

// await waits until a's hop is as wanted and returns it.
func (w *watching) await(a netip.Addr, what string, ok func(Hop) bool) (h Hop) {
	w.t.Helper()
	deadline := time.After(patience)
	for {
		h, _ = w.Lookup(a)
		if ok(h) {
			return h
		}
		select {
		case <-w.news:
		case <-deadline:
			w.t.Fatalf("%s is not %s: %+v", a, what, h)
		}
	}
}

// after does something and waits for what comes of it.
func (w *watching) after(act func(), a netip.Addr, what string, ok func(Hop) bool) Hop {
	w.t.Helper()
	began := time.Now()
	act()
	h := w.await(a, what, ok)
	w.mu.Lock()
	took := w.told[a].Sub(began)
	w.mu.Unlock()
	w.t.Logf("%s: %s after %v", a, what, took.Round(10*time.Microsecond))
	return h
}

func resolved(h Hop) bool { return h.Resolved() }

func onLink(h Hop) bool { return h.OnLink }

func because(reason string) func(Hop) bool { return func(h Hop) bool { return h.Reason == reason } }

func always(netip.Addr) bool { return true }

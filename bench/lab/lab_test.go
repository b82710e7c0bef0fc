package lab

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"uvxlan/tunnel/netnstest"
)

// patience bounds what should take milliseconds, on a loaded machine.
const patience = 20 * time.Second

// reach pings and retries nothing: a lab is ready when New returns.
func reach(t *testing.T, from *Node, to netip.Addr, size int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if _, err := from.Ping(ctx, to, size); err != nil {
		t.Error(err)
	}
}

// traces lists everything that a lab could leave on the machine or in the
// process.
func traces(t *testing.T) []string {
	t.Helper()
	var all []string
	for _, dir := range []string{directory, "/proc/self/fd"} {
		entries, err := os.ReadDir(dir)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			t.Fatal(err)
		}
		for _, e := range entries {
			target, _ := os.Readlink(dir + "/" + e.Name())
			all = append(all, dir+"/"+e.Name()+" "+target)
		}
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	must(t, err)
	for line := range strings.Lines(string(mounts)) {
		if strings.Contains(line, directory) {
			all = append(all, line)
		}
	}
	return slices.DeleteFunc(all, func(s string) bool { return strings.Contains(s, "/proc/self/fd/") && strings.HasSuffix(s, "/fd") })
}

// expectNoTraces fails the test if something came since before.
func expectNoTraces(t *testing.T, before []string) {
	t.Helper()
	for _, trace := range traces(t) {
		if !slices.Contains(before, trace) {
			t.Errorf("left behind: %s", trace)
		}
	}
}

// warmUp makes the runtime open what it keeps, such as the poller.
func warmUp(t *testing.T) {
	t.Helper()
	l := newLab(t, Options{Hosts: DefaultHosts()[:1]})
	must(t, l.Host("kb21").Command(t.Context(), "true").Run())
	must(t, l.Close())
}

func TestIntegrationTopology(t *testing.T) {
	for name, plain := range map[string]bool{"bridge": false, "plain veth": true} {
		t.Run(name, func(t *testing.T) {
			l := newLab(t, Options{PlainVeth: plain})
			for _, from := range l.Hosts() {
				for _, to := range l.Hosts() {
					reach(t, from.Node, to.Address, underlayMTU)
				}
				reach(t, from.Node, from.Container.Address, DefaultContainerMTU)
				reach(t, from.Container.Node, from.Subnet.Addr().Next(), DefaultContainerMTU)
				reach(t, from.Container.Node, from.Address, DefaultContainerMTU)
			}
		})
	}
}

func TestIntegrationTopologyIPv6(t *testing.T) {
	for name, plain := range map[string]bool{"bridge": false, "plain veth": true} {
		t.Run(name, func(t *testing.T) {
			l := newLab(t, Options{Hosts: DualHosts(), PlainVeth: plain})
			for _, from := range l.Hosts() {
				for _, to := range l.Hosts() {
					reach(t, from.Node, to.IPv6.Underlay.Addr(), underlayMTU)
					reach(t, from.Node, to.Address, underlayMTU)
				}
				reach(t, from.Node, from.Container.AddressV6, DefaultContainerMTU)
				reach(t, from.Container.Node, from.IPv6.Subnet.Addr().Next(), DefaultContainerMTU)
				reach(t, from.Container.Node, from.IPv6.Underlay.Addr(), DefaultContainerMTU)
			}
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			if _, err := l.Host("kb21").Container.Ping(ctx, l.Host("kb31").IPv6.Underlay.Addr(), DefaultContainerMTU+1); !errors.Is(err, unix.EMSGSIZE) {
				t.Errorf("too large: got %v", err)
			}
			if _, err := l.Host("kb21").Ping(ctx, netip.MustParseAddr("2001:db8::1"), 100); !errors.Is(err, ErrUnreachable) {
				t.Errorf("unroutable: got %v", err)
			}
		})
	}
}

func TestIntegrationPingErrors(t *testing.T) {
	l := newLab(t, Options{})
	container := l.Host("kb21").Container
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if _, err := container.Ping(ctx, l.Host("kb31").Address, DefaultContainerMTU+1); !errors.Is(err, unix.EMSGSIZE) {
		t.Errorf("too large: got %v", err)
	}
	// The router has no route to it, but one to the host.
	if _, err := l.Host("kb21").Ping(ctx, netip.MustParseAddr("203.0.113.1"), 100); !errors.Is(err, ErrUnreachable) {
		t.Errorf("unroutable: got %v", err)
	}
	short, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if _, err := l.Host("kb21").Ping(short, netip.MustParseAddr("192.168.14.99"), 100); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("silent: got %v", err)
	}
}

func TestIntegrationAddHost(t *testing.T) {
	hosts := DefaultHosts()
	l := newLab(t, Options{Hosts: hosts[:1]})
	for _, spec := range hosts[1:] {
		h, err := l.AddHost(t.Context(), spec)
		must(t, err)
		reach(t, l.Host("kb21").Node, h.Address, underlayMTU)
		reach(t, h.Container.Node, h.Address, DefaultContainerMTU)
	}
	if _, err := l.AddHost(t.Context(), hosts[0]); err == nil {
		t.Error("host added twice")
	}
	if n := len(l.Hosts()); n != 3 {
		t.Errorf("%d hosts", n)
	}
}

func TestIntegrationAddHostAgainAfterFailure(t *testing.T) {
	l := newLab(t, Options{Hosts: DefaultHosts()[:1]})
	before := traces(t)
	for n := 0; ; n++ {
		h, err := l.AddHost(&countdown{t.Context(), n}, DefaultHosts()[1])
		if err == nil {
			reach(t, h.Node, l.Host("kb21").Address, underlayMTU)
			return
		}
		if !errors.Is(err, context.Canceled) {
			t.Fatal(err)
		}
		expectNoTraces(t, before)
	}
}

func TestIntegrationCloseLeavesNothing(t *testing.T) {
	netnstest.RequireRoot(t)
	warmUp(t)
	before := traces(t)
	l := newLab(t, Options{})
	host := l.Host("kb21")
	// One that is waited for by nobody, and one that the lab doesn't know.
	must(t, host.Command(context.Background(), "sleep", "1000").Start())
	_, err := host.Container.Run(t.Context(), "sh", "-c", "sleep 1000 >/dev/null 2>&1 &")
	must(t, err)
	id, err := namespaceID(host.Container.Namespace())
	must(t, err)
	must(t, l.Close())
	must(t, l.Close())
	expectNoTraces(t, before)
	if pids, err := processesIn(map[nsID]bool{id: true}); err != nil || len(pids) > 0 {
		t.Errorf("processes left: %v %v", pids, err)
	}
	expectClosed(t, l)
}

// expectClosed checks that a closed lab acts on nothing, least of all on the
// machine itself.
func expectClosed(t *testing.T, l *Lab) {
	t.Helper()
	host := l.Host("kb21")
	_, addErr := l.AddHost(t.Context(), HostSpec{})
	errs := map[string]error{
		"Do":       host.Do(func() error { return nil }),
		"Start":    host.Command(t.Context(), "true").Start(),
		"LinkDown": host.LinkDown(),
		"AddHost":  addErr,
		"Offloads": l.SetOffloads(NIC),
	}
	for name, err := range errs {
		if !errors.Is(err, os.ErrClosed) {
			t.Errorf("%s after Close: %v", name, err)
		}
	}
	if host.Netlink() != nil {
		t.Error("handle after Close")
	}
}

// countdown is a context that ends after it was asked so many times.
type countdown struct {
	context.Context
	left int
}

func (c *countdown) Err() error {
	c.left--
	if c.left < 0 {
		return context.Canceled
	}
	return nil
}

func TestIntegrationCancelledNewLeavesNothing(t *testing.T) {
	netnstest.RequireRoot(t)
	warmUp(t)
	before := traces(t)
	for n := 0; ; n++ {
		l, err := New(&countdown{t.Context(), n}, Options{Hosts: DefaultHosts()[1:]})
		if err == nil {
			must(t, l.Close())
			expectNoTraces(t, before)
			return
		}
		if !errors.Is(err, context.Canceled) {
			t.Fatal(err)
		}
		expectNoTraces(t, before)
	}
}

func TestIntegrationForeignNamespace(t *testing.T) {
	netnstest.RequireRoot(t)
	must(t, makeForeign("kb22"))
	t.Cleanup(func() { must(t, deleteNamespace("kb22")) })
	id, err := namespaceID(namespacePath("kb22"))
	must(t, err)
	before := traces(t)
	if _, err := New(t.Context(), Options{}); !errors.Is(err, ErrForeign) {
		t.Errorf("got %v", err)
	}
	must(t, Cleanup(t.Context()))
	expectNoTraces(t, before)
	if now, err := namespaceID(namespacePath("kb22")); err != nil || now != id {
		t.Errorf("foreign namespace touched: %v", err)
	}
}

// makeForeign makes a namespace as `ip netns add` does.
func makeForeign(name string) error {
	return onThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return err
		}
		return bindNamespace(namespacePath(name))
	})
}

func TestIntegrationNameTakenMeanwhile(t *testing.T) {
	l := newLab(t, Options{Hosts: DefaultHosts()[:1]})
	must(t, deleteNamespace("kb21"))
	must(t, makeForeign("kb21"))
	t.Cleanup(func() { must(t, deleteNamespace("kb21")) })
	must(t, l.Close())
	if !isNamespace(namespacePath("kb21")) {
		t.Error("removed a namespace that isn't the lab's")
	}
}

func TestIntegrationOneLabAtATime(t *testing.T) {
	first := newLab(t, Options{Hosts: DefaultHosts()[:1]})
	ctx, cancel := context.WithTimeout(t.Context(), 3*lockInterval)
	defer cancel()
	var logged bytes.Buffer
	log := slog.New(slog.NewTextHandler(&logged, nil))
	if _, err := New(ctx, Options{Logger: log}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("second lab: got %v", err)
	}
	if n := strings.Count(logged.String(), "waiting"); n != 1 {
		t.Errorf("logged %d times that it waits", n)
	}
	done := make(chan error, 1)
	go func() {
		l, err := New(t.Context(), Options{Hosts: DefaultHosts()[:1]})
		if err == nil {
			err = l.Close()
		}
		done <- err
	}()
	must(t, first.Close())
	must(t, <-done)
}

func TestIntegrationDoComesHome(t *testing.T) {
	l := newLab(t, Options{Hosts: DefaultHosts()[:1]})
	home, err := os.Readlink(threadNamespace)
	must(t, err)
	var within string
	must(t, l.Host("kb21").Do(func() (err error) {
		within, err = os.Readlink(threadNamespace)
		return err
	}))
	if within == home {
		t.Error("ran outside the namespace")
	}
	for range 100 {
		now, err := os.Readlink(threadNamespace)
		must(t, err)
		if now != home {
			t.Fatal("a thread stayed in the namespace")
		}
	}
}

func TestIntegrationContainerMTU(t *testing.T) {
	l := newLab(t, Options{Hosts: DefaultHosts()[:1], ContainerMTU: 1400})
	link, err := l.Host("kb21").Container.Netlink().LinkByName(eth0)
	must(t, err)
	if mtu := link.Attrs().MTU; mtu != 1400 {
		t.Errorf("MTU %d", mtu)
	}
	routes, err := l.Host("kb21").Netlink().RouteList(nil, netlink.FAMILY_V4)
	must(t, err)
	if len(routes) != 3 {
		t.Errorf("routes: %v", routes)
	}
}

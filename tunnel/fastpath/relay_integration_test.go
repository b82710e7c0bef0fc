package fastpath

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/vishvananda/netlink"

	"uvxlan/tunnel/internal/tcprog"
	"uvxlan/tunnel/internal/testhost"
	"uvxlan/tunnel/onlink"
)

// newBridgedPair is newPair with the second node's container behind a bridge.
func newBridgedPair(t *testing.T) (a, b *node) {
	t.Helper()
	a, b = newPair(t, onlink.Off, Config{}, nil)
	bridge(t, b)
	ping(t, a.container, b.addr(), 20)
	return a, b
}

// bridge puts a node's container behind a bridge.
func bridge(t *testing.T, n *node) {
	t.Helper()
	script(t, n.host, fmt.Sprintf(`ip link add br0 type bridge
ip addr flush dev c0
ip link set c0 master br0
ip link set br0 up
ip addr add 10.0.%[1]d.1/24 dev br0
ip addr add fd00:0:0:%[1]d::1/64 dev br0 nodad`, n.n))
}

// relays are the interfaces of a host that lead to relays.
func relays(t *testing.T, h *testhost.Host) (names []string) {
	t.Helper()
	for _, l := range testhost.Inside(h, netlink.LinkList) {
		if prefix, _, _ := strings.Cut(relayHostName, "%"); strings.HasPrefix(l.Attrs().Name, prefix) {
			names = append(names, l.Attrs().Name)
		}
	}
	return names
}

// missing is how many packets haven't come back from the relay.
func (n *node) missing() uint64 {
	n.t.Helper()
	out, back, err := n.fast.programs.Relayed()
	testhost.Must(n.t, err)
	return out - back
}

// Superpackets come to a container behind a bridge unsplit, past the workers. Over IPv6
// only kernels send them.
func TestIntegrationFastPathRelaysSuperpackets(t *testing.T) {
	t.Parallel() // it waits more than it works
	t.Run("over IPv4", func(t *testing.T) {
		a, b := newBridgedPair(t)
		expectRelayed(t, a.container, b)
	})
	t.Run("from a kernel over IPv6", func(t *testing.T) {
		a, kernel := newMixedPair(t, true, nil)
		bridge(t, a)
		ping(t, kernel.container, a.addr(), 20)
		expectRelayed(t, kernel.container, a)
	})
}

func expectRelayed(t *testing.T, from *testhost.Host, to *node) {
	t.Helper()
	if r := to.fast.Report(); r.Relay == "" || r.NoRelay != "" {
		t.Fatalf("there is no relay (%q): %s", r.Relay, r.NoRelay)
	}
	before, workers := to.received(), to.router.Stats()
	size := uint64(2 * transferSize)
	transfer(t, from, to.container, to.addr(), transferSize)
	transfer(t, from, to.container, to.addr6(), transferSize)
	after := to.router.Stats()
	if n := to.received() - before; n > size/10000 {
		t.Errorf("%d packets came into the container", n)
	}
	if n := after.RxBytes - after.FastPath.RxBytes - workers.RxBytes + workers.FastPath.RxBytes; n > size/200 {
		t.Errorf("the workers had %d bytes of it:%s", n, to.left())
	}
	if n := to.missing(); n > 0 {
		t.Errorf("the relay lost %d packets", n)
	}
	to.expectCarried(100, 1000)
}

// What was relayed has right checksums where it is filled in and segmented after the
// bridge.
func TestIntegrationRelayedChecksums(t *testing.T) {
	if _, err := exec.LookPath("tcpdump"); err != nil && os.Getenv("CI") == "" {
		t.Skip("tcpdump isn't installed")
	}
	t.Parallel() // it waits more than it works
	a, b := newBridgedPair(t)
	leaveNothingUndone(t, b.host, "c0")
	inside := watch(t, b.container, "eth0")
	before, _, err := b.fast.programs.Relayed()
	testhost.Must(t, err)
	transfer(t, a.container, b.container, b.addr(), 4<<20)
	transfer(t, a.container, b.container, b.addr6(), 4<<20)
	s := stopAll(t, a, b, inside)[0]
	t.Log(s)
	if after, _, err := b.fast.programs.Relayed(); err != nil || after-before < 100 {
		t.Errorf("%d packets were relayed: %v", after-before, err)
	}
	if s.tcp < 1000 || len(s.wrong) > 0 {
		t.Errorf("%s: %q", s, s.wrong)
	}
}

// A relay goes from one fast path to the next, and packets don't wait for it; it goes
// with the last.
func TestIntegrationFastPathHandsRelayOver(t *testing.T) {
	t.Parallel() // it waits more than it works
	a, b := newBridgedPair(t)
	names := relays(t, b.host)
	if len(names) != 1 {
		t.Fatalf("there are relays %q, want one", names)
	}
	var ended atomic.Bool
	var wg sync.WaitGroup
	wg.Go(func() {
		for !ended.Load() {
			transfer(t, a.container, b.container, b.addr(), 64<<20)
		}
	})
	relayed := func() uint64 {
		out, _, err := b.fast.programs.Relayed()
		testhost.Must(t, err)
		return out
	}
	for range 5 {
		n := relayed()
		testhost.Await(t, "superpackets to be relayed", func() bool { return relayed() > n })
		d, err := b.fast.Release()
		testhost.Must(t, err)
		b.attach(Config{Inherited: d})
		if again := relays(t, b.host); len(again) != 1 || again[0] != names[0] || b.fast.Report().Relay != names[0] {
			t.Errorf("there are relays %q and %q is in use, want %q", again, b.fast.Report().Relay, names)
		}
	}
	ended.Store(true)
	wg.Wait()
	if n := b.missing(); n > 0 {
		t.Errorf("%d packets haven't come back", n)
	}
	testhost.Must(t, b.fast.Close())
	if names := relays(t, b.host); len(names) > 0 {
		t.Errorf("left behind: %q", names)
	}
}

// Where packets don't come back from the relay, the workers have them.
func TestIntegrationFastPathGivesUpRelay(t *testing.T) {
	t.Parallel() // it waits more than it works
	a, b := newBridgedPair(t)
	sysctl(t, a.container, "net.ipv4.tcp_congestion_control", "reno") // others take long to forget losses
	testhost.Must(t, b.fast.relay.inside.RouteDel(&netlink.Route{
		Dst: &net.IPNet{IP: tcprog.RelayAddress.AsSlice(), Mask: net.CIDRMask(128, 128)},
	}))
	transfer(t, a.container, b.container, b.addr(), 1<<20)
	r := b.fast.Report()
	if !r.On || r.Relay != "" || r.NoRelay == "" {
		t.Errorf("the relay is %q, and none because of %q", r.Relay, r.NoRelay)
	}
	if names := relays(t, b.host); len(names) > 0 {
		t.Errorf("left behind: %q", names)
	}
}

// A relay whose interface somebody has removed is made again.
func TestIntegrationFastPathMakesRelayAgain(t *testing.T) {
	t.Parallel() // it waits more than it works
	a, b := newBridgedPair(t)
	script(t, b.host, "ip link del "+relays(t, b.host)[0])
	testhost.Await(t, "another relay", func() bool { return len(relays(t, b.host)) == 1 && b.fast.Report().Relay == relays(t, b.host)[0] })
	expectRelayed(t, a.container, b)
}

// A version without relays has another layout and the same count of descriptors: it
// closes what it can't use.
func TestIntegrationRelayGoesWithMapsOfOtherLayouts(t *testing.T) {
	t.Parallel() // it waits more than it works
	_, b := newBridgedPair(t)
	d, err := b.fast.Release()
	testhost.Must(t, err)
	d.Layout = "another"
	b.attach(Config{Inherited: d})
	testhost.Await(t, "the old relay to be gone", func() bool { return len(relays(t, b.host)) == 1 })
	if r := b.fast.Report(); r.Relay != relays(t, b.host)[0] {
		t.Errorf("the relay is %q of %q: %s", r.Relay, relays(t, b.host), r.NoRelay)
	}
}

// unprivileged is set in the environment of a process that may not make namespaces.
const unprivileged = "UVXLAN_TEST_UNPRIVILEGED"

// TestUnprivileged is that process.
func TestUnprivileged(t *testing.T) {
	if os.Getenv(unprivileged) == "" {
		t.Skip("a part of TestIntegrationFastPathWithoutRightToRelay")
	}
	r, err := openRouter(1, netip.MustParseAddr("10.66.0.1"), onlink.Off)
	testhost.Must(t, err)
	f, err := Attach(r, Config{})
	testhost.Must(t, err)
	if r := f.Report(); !r.On || r.Relay != "" || !strings.Contains(r.NoRelay, "CAP_SYS_ADMIN") {
		t.Errorf("the fast path is on: %t (%s), its relay %q, and none because of %q", r.On, r.Reason, r.Relay, r.NoRelay)
	}
	testhost.Must(t, errors.Join(f.Close(), r.Close()))
}

// Without the right to make network namespaces the fast path goes without a relay.
func TestIntegrationFastPathWithoutRightToRelay(t *testing.T) {
	a, _ := newHosts(t, false)
	exe, err := os.Executable()
	testhost.Must(t, err)
	cmd := exec.CommandContext(t.Context(), "setpriv", "--bounding-set", "-sys_admin", exe, "-test.run=^TestUnprivileged$")
	cmd.Env = append(os.Environ(), unprivileged+"=1")
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	testhost.Must(t, a.Do(cmd.Start))
	if err := cmd.Wait(); err != nil {
		t.Errorf("%v: %s", err, &out)
	}
}

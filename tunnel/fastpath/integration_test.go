package fastpath

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	bpflink "github.com/cilium/ebpf/link"
	"github.com/safchain/ethtool"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"uvxlan/encap"
	"uvxlan/tunnel"
	"uvxlan/tunnel/internal/testhost"
	"uvxlan/tunnel/link"
	"uvxlan/tunnel/netnstest"
	"uvxlan/tunnel/onlink"
)

const testVNI = 1

// node is a host with a router, its fast path and a container: 10.66.0.N or fd66::N on
// the underlay, 10.0.N.2 and fd00:0:0:N::2 in the container.
type node struct {
	t         *testing.T
	n         int
	wide      bool // its underlay is IPv6
	host      *testhost.Host
	container *testhost.Host
	router    *tunnel.Router
	fast      *FastPath
	running   sync.WaitGroup
	ctx       context.Context
}

// newPair makes two nodes on one Ethernet, which know each other and carry packets of
// each other.
func newPair(t *testing.T, direct onlink.Mode, c Config, prepare func(a, b *testhost.Host)) (a, b *node) {
	t.Helper()
	return newPairOver(t, false, direct, c, prepare)
}

// newPairOver makes a pair whose underlay is IPv6 if wide is set, and IPv4 otherwise.
func newPairOver(t *testing.T, wide bool, direct onlink.Mode, c Config, prepare func(a, b *testhost.Host)) (a, b *node) {
	t.Helper()
	a, b = newStrangers(t, wide, direct, c, prepare)
	a.know(b)
	b.know(a)
	testhost.Await(t, "the first packets to be passed on by the workers", func() bool {
		before := []tunnel.FastPathStats{a.router.Stats().FastPath, b.router.Stats().FastPath}
		ping(t, a.container, b.addr(), 1)
		for i, n := range []*node{a, b} {
			after := n.router.Stats().FastPath
			if after.TxPackets == before[i].TxPackets || direct == onlink.Off && after.RxPackets == before[i].RxPackets {
				return false
			}
		}
		return true
	})
	return a, b
}

// newHosts makes two hosts on one Ethernet.
func newHosts(t *testing.T, wide bool) (a, b *testhost.Host) {
	t.Helper()
	netnstest.RequireRoot(t)
	a, b = testhost.New(t), testhost.New(t)
	testhost.Join(a, b, "eth0", "10.66.0")
	if !wide {
		return a, b
	}
	for n, h := range []*testhost.Host{a, b} {
		testhost.Must(t, h.LinkSetMTU(h.Link("eth0"), 1450+encap.OverheadIPv6))
		h.Address("eth0", fmt.Sprintf("fd66::%d/64", n+1))
		run(t, h, "ip", "addr", "del", fmt.Sprintf("10.66.0.%d/24", n+1), "dev", "eth0")
	}
	return a, b
}

// newStrangers makes two nodes on one Ethernet.
func newStrangers(t *testing.T, wide bool, direct onlink.Mode, c Config, prepare func(a, b *testhost.Host)) (a, b *node) {
	t.Helper()
	hostA, hostB := newHosts(t, wide)
	if prepare != nil {
		prepare(hostA, hostB)
	}
	a, b = newNode(t, 1, wide, hostA, direct), newNode(t, 2, wide, hostB, direct)
	for _, n := range []*node{a, b} {
		n.attach(c)
	}
	return a, b
}

func newNode(t *testing.T, n int, wide bool, host *testhost.Host, direct onlink.Mode) *node {
	t.Helper()
	outer := (&node{n: n, wide: wide}).outer()
	nd := newNodeOf(t, n, host, func() (*tunnel.Router, error) { return openRouter(n, outer, direct) })
	nd.wide = wide
	return nd
}

// newNodeOf makes a node whose router is opened in the host's network namespace.
func newNodeOf(t *testing.T, n int, host *testhost.Host, open func() (*tunnel.Router, error)) *node {
	t.Helper()
	nd := &node{t: t, n: n, host: host, container: testhost.New(t), ctx: t.Context()}
	sysctl(t, host, "net.ipv4.ip_forward", "1")
	sysctl(t, host, "net.ipv6.conf.all.forwarding", "1")
	nd.joinContainer()
	nd.router = testhost.Inside(host, open)
	nd.running.Go(func() {
		if err := nd.router.Run(nd.ctx); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(func() {
		testhost.Must(t, nd.router.Close())
		nd.running.Wait()
	})
	return nd
}

// openRouter opens host N's router in the calling thread's network namespace.
func openRouter(n int, outer netip.Addr, direct onlink.Mode) (*tunnel.Router, error) {
	return tunnel.Open("flannel.1", tunnel.Setup{
		Address: outer, Port: testhost.Port, VNI: testVNI, MAC: mac(n), Workers: 2, Direct: direct,
		Link: link.Config{
			MTU:       1450,
			Addresses: []netip.Addr{netip.AddrFrom4([4]byte{10, 0, byte(n), 0}), netip.MustParseAddr(fmt.Sprintf("fd00:0:0:%d::", n))},
			Networks:  []netip.Prefix{netip.MustParsePrefix("10.0.0.0/16"), netip.MustParsePrefix("fd00::/48")},
		},
	})
}

func (n *node) attach(c Config) {
	n.t.Helper()
	n.fast = testhost.Inside(n.host, func() (*FastPath, error) { return Attach(n.router, c) })
	fast := n.fast
	n.running.Go(func() {
		if err := fast.Run(n.ctx); err != nil && !errors.Is(err, ErrClosed) {
			n.t.Error(err)
		}
	})
	n.t.Cleanup(func() { testhost.Must(n.t, fast.Close()) })
	if r := n.fast.Report(); !r.On {
		n.t.Fatalf("the fast path is off: %s", r.Reason)
	}
}

func mac(n int) encap.MAC { return encap.MAC{2, 0, 0, 0, 0, byte(n)} }

func (n *node) subnet() netip.Prefix {
	return netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 0, byte(n.n), 0}), 24)
}

// outer is the host's address on the underlay.
func (n *node) outer() netip.Addr {
	if n.wide {
		return netip.MustParseAddr(fmt.Sprintf("fd66::%d", n.n))
	}
	return netip.AddrFrom4([4]byte{10, 66, 0, byte(n.n)})
}

func (n *node) peers() []tunnel.Peer {
	underlay := n.outer()
	return []tunnel.Peer{
		{Subnet: n.subnet(), Underlay: underlay, MAC: mac(n.n)},
		{Subnet: netip.MustParsePrefix(fmt.Sprintf("fd00:0:0:%d::/64", n.n)), Underlay: underlay, MAC: mac(n.n)},
	}
}

func (n *node) know(peer *node) {
	n.t.Helper()
	testhost.Must(n.t, n.router.UpdatePeers(peer.peers(), nil))
}

func (n *node) addr() string  { return fmt.Sprintf("10.0.%d.2", n.n) }
func (n *node) addr6() string { return fmt.Sprintf("fd00:0:0:%d::2", n.n) }

// joinContainer gives the host a container on a veth pair.
func (n *node) joinContainer() {
	n.t.Helper()
	testhost.Must(n.t, n.host.LinkAdd(&netlink.Veth{
		LinkAttrs: netlink.LinkAttrs{Name: "c0"}, PeerName: "eth0", PeerNamespace: netlink.NsFd(n.container.FD()),
	}))
	for _, c := range [][]string{
		{"ip", "link", "set", "c0", "up"},
		{"ip", "addr", "add", fmt.Sprintf("10.0.%d.1/24", n.n), "dev", "c0"},
		{"ip", "addr", "add", fmt.Sprintf("fd00:0:0:%d::1/64", n.n), "dev", "c0", "nodad"},
	} {
		run(n.t, n.host, c[0], c[1:]...)
	}
	for _, c := range [][]string{
		{"ip", "link", "set", "lo", "up"},
		{"ip", "link", "set", "eth0", "mtu", "1450", "up"},
		{"ip", "addr", "add", n.addr() + "/24", "dev", "eth0"},
		{"ip", "addr", "add", n.addr6() + "/64", "dev", "eth0", "nodad"},
		{"ip", "route", "add", "default", "via", fmt.Sprintf("10.0.%d.1", n.n)},
		{"ip", "-6", "route", "add", "default", "via", fmt.Sprintf("fd00:0:0:%d::1", n.n)},
	} {
		run(n.t, n.container, c[0], c[1:]...)
	}
}

// run runs a command on a host.
func run(t *testing.T, h *testhost.Host, name string, args ...string) string {
	t.Helper()
	return testhost.Inside(h, func() (string, error) {
		out, err := exec.CommandContext(t.Context(), name, args...).CombinedOutput()
		if err != nil {
			return "", fmt.Errorf("%s %v: %w: %s", name, args, err, out)
		}
		return string(out), nil
	})
}

func sysctl(t *testing.T, h *testhost.Host, name, value string) {
	t.Helper()
	testhost.Must(t, h.Do(func() error {
		path := "/proc/sys/" + string(bytes.ReplaceAll([]byte(name), []byte("."), []byte("/")))
		return os.WriteFile(path, []byte(value), 0o644)
	}))
}

// ping sends pings at an interval of 5 ms and fails if an answer is missing. The command
// won't do: it ends before late answers, or sends more for those that are missing.
func ping(t *testing.T, from *testhost.Host, to string, count int) {
	t.Helper()
	network, request, reply := "ip4:icmp", byte(8), byte(0)
	if strings.Contains(to, ":") {
		network, request, reply = "ip6:ipv6-icmp", 128, 129
	}
	c := testhost.Inside(from, func() (*net.IPConn, error) { return net.DialIP(network, nil, &net.IPAddr{IP: net.ParseIP(to)}) })
	defer c.Close()
	id := make([]byte, 2)
	_, _ = rand.Read(id)
	var sending sync.WaitGroup
	sending.Go(func() {
		message := append([]byte{request, 0, 0, 0, id[0], id[1]}, make([]byte, 58)...)
		for i := range count {
			binary.BigEndian.PutUint16(message[6:], uint16(i))
			clear(message[2:4])
			if request == 8 { // the kernel fills that of ICMPv6 in
				binary.BigEndian.PutUint16(message[2:], encap.Checksum(message, 0))
			}
			if _, err := c.Write(message); err != nil {
				t.Error(err)
			}
			time.Sleep(5 * time.Millisecond) // the interval
		}
	})
	defer sending.Wait()
	limit := time.Duration(count)*5*time.Millisecond + testhost.Patience
	testhost.Must(t, c.SetReadDeadline(time.Now().Add(limit)))
	answered := map[uint16]bool{}
	for buf := make([]byte, 1500); len(answered) < count; {
		n, _, err := c.ReadFromIP(buf) // without the IPv4 header
		if err != nil {
			t.Errorf("of %d pings to %s %d are answered: %v", count, to, len(answered), err)
			return
		}
		if n >= 8 && buf[0] == reply && bytes.Equal(buf[4:6], id) {
			answered[binary.BigEndian.Uint16(buf[6:])] = true
		}
	}
}

// transfer sends n random bytes by TCP and compares what arrives.
func transfer(t *testing.T, from, to *testhost.Host, address string, n int) {
	t.Helper()
	l := testhost.Inside(to, func() (net.Listener, error) { return net.Listen("tcp", net.JoinHostPort(address, "0")) })
	defer l.Close()
	data := make([]byte, 1<<20)
	_, _ = rand.Read(data)
	var wg sync.WaitGroup
	wg.Go(func() {
		c, err := l.Accept()
		if err != nil {
			t.Error(err)
			return
		}
		defer c.Close()
		got := make([]byte, len(data))
		for i := range n >> 20 {
			if _, err := io.ReadFull(c, got); err != nil || !bytes.Equal(got, data) {
				t.Errorf("MiB %d of a transfer is wrong: %v", i, err)
				return
			}
		}
	})
	c := testhost.Inside(from, func() (net.Conn, error) { return net.DialTimeout("tcp", l.Addr().String(), testhost.Patience) })
	defer c.Close()
	for range n >> 20 {
		if _, err := c.Write(data); err != nil {
			t.Error(err)
			break
		}
	}
	wg.Wait()
}

// expectCarried fails unless the fast path carried so many packets each way and the
// workers dropped none, but those to groups that hosts send by themselves.
func (n *node) expectCarried(tx, rx uint64) {
	n.t.Helper()
	s := n.router.Stats()
	if s.FastPath.TxPackets < tx || s.FastPath.RxPackets < rx {
		n.t.Errorf("host %d's fast path carried %+v, want %d and %d; it left %s", n.n, s.FastPath, tx, rx, n.left())
	}
	if d := s.Dropped() - s.Drop(tunnel.DropMulticast); d > 0 {
		n.t.Errorf("host %d dropped %s", n.n, s.Drops)
	}
	if r := n.fast.Report(); r.LeftTx["lost"]+r.LeftRx["lost"]+r.LeftTx["error"]+r.LeftRx["error"] > 0 {
		n.t.Errorf("helpers refused: %s", n.left())
	}
}

// left are the packets that were left to the workers, in words.
func (n *node) left() string {
	r := n.fast.Report()
	out := ""
	for _, d := range []struct {
		name string
		left map[string]uint64
	}{{"tx", r.LeftTx}, {"rx", r.LeftRx}} {
		for _, reason := range slices.Sorted(maps.Keys(d.left)) {
			if v := d.left[reason]; v > 0 {
				out += fmt.Sprintf(" %s %s:%d", d.name, reason, v)
			}
		}
	}
	return out
}

// withoutTunnelOffload makes eth0 an interface that doesn't pass tunnels' superpackets.
func withoutTunnelOffload(t *testing.T, h *testhost.Host) {
	t.Helper()
	changeFeature(t, h, "tx-udp_tnl-segmentation", false)
	changeFeature(t, h, "tx-udp_tnl-csum-segmentation", false)
}

func changeFeature(t *testing.T, h *testhost.Host, feature string, on bool) {
	t.Helper()
	changeFeatureOf(t, h, "eth0", feature, on)
}

func changeFeatureOf(t *testing.T, h *testhost.Host, link, feature string, on bool) {
	t.Helper()
	testhost.Must(t, h.Do(func() error {
		e, err := ethtool.NewEthtool()
		if err != nil {
			return err
		}
		defer e.Close()
		return e.Change(link, map[string]bool{feature: on})
	}))
}

func bothWays(t *testing.T, a, b *node) {
	t.Helper()
	ping(t, a.container, b.addr(), 100)
	ping(t, a.container, b.addr6(), 100)
	transfer(t, a.container, b.container, b.addr(), transferSize)
	transfer(t, b.container, a.container, a.addr6(), transferSize)
}

// transferSize is in bytes, of which UVXLAN_TRANSFER_MIB may set another number.
var transferSize = func() int {
	if mib, err := strconv.Atoi(os.Getenv("UVXLAN_TRANSFER_MIB")); err == nil {
		return mib << 20
	}
	return 30 << 20
}()

func TestIntegrationFastPathCarriesPlainPackets(t *testing.T) {
	for name, c := range map[string]struct {
		config  Config
		prepare func(t *testing.T, h *testhost.Host)
		whole   bool // superpackets
	}{
		"superpackets":   {Config{}, nil, true},
		"single packets": {Config{}, withoutTunnelOffload, false},
		"clsact":         {Config{Clsact: true}, nil, true},
	} {
		t.Run(name, func(t *testing.T) {
			a, b := newPair(t, onlink.Off, c.config, func(a, b *testhost.Host) {
				if c.prepare != nil {
					c.prepare(t, a)
					c.prepare(t, b)
				}
			})
			if got := a.fast.Report().Superpackets; got != c.whole {
				t.Errorf("the underlay passes superpackets: %t", got)
			}
			bothWays(t, a, b)
			for _, n := range []*node{a, b} {
				n.expectCarried(150, 150) // pings are 200; how many acknowledgements there are depends on the load
			}
			got := a.router.Traffic(b.subnet())
			if got.TxPackets == 0 || got.RxPackets == 0 || time.Since(got.LastSeen) > time.Hour || got.LastSeen.After(time.Now()) {
				t.Errorf("of the peer there is %+v", got)
			}
		})
	}
}

func TestIntegrationFastPathFollowsOffloads(t *testing.T) {
	a, b := newPair(t, onlink.Off, Config{}, nil)
	for _, on := range []bool{false, true} {
		changeFeature(t, a.host, "tx-udp_tnl-segmentation", on)
		testhost.Await(t, fmt.Sprintf("superpackets %t", on), func() bool { return a.fast.Report().Superpackets == on })
		transfer(t, a.container, b.container, b.addr(), transferSize)
	}
	a.expectCarried(1, 1)
}

func TestIntegrationFastPathLeavesNothingBehind(t *testing.T) {
	for name, c := range map[string]Config{"tcx": {}, "clsact": {Clsact: true}} {
		t.Run(name, func(t *testing.T) {
			a, b := newPair(t, onlink.Off, c, nil)
			ping(t, a.container, b.addr(), 10)
			if len(relays(t, a.host)) == 0 {
				t.Error("there is no relay")
			}
			testhost.Must(t, a.fast.Close())
			testhost.Must(t, a.fast.Close())
			if out := attachedTo(t, a.host); out != "" {
				t.Errorf("left behind: %s", out)
			}
			if names := relays(t, a.host); len(names) > 0 {
				t.Errorf("left behind: %q", names)
			}
			before := a.router.Stats().FastPath
			ping(t, a.container, b.addr(), 10)
			testhost.Await(t, "the workers to have counted the packets", func() bool { return a.router.Stats().RxPackets >= before.RxPackets+10 })
			if after := a.router.Stats().FastPath; after != before {
				t.Errorf("after Close the fast path carried %+v, before %+v", after, before)
			}
		})
	}
}

// attachedTo are the programs and qdiscs at a host's interfaces.
func attachedTo(t *testing.T, h *testhost.Host) (out string) {
	t.Helper()
	testhost.Must(t, h.Do(func() error {
		for _, name := range []string{"eth0", "flannel.1"} {
			l, err := netlink.LinkByName(name)
			if errors.As(err, &netlink.LinkNotFoundError{}) {
				continue // with its process
			}
			if err != nil {
				return err
			}
			for _, at := range []ebpf.AttachType{ebpf.AttachTCXIngress, ebpf.AttachTCXEgress} {
				q, err := bpflink.QueryPrograms(bpflink.QueryOptions{Target: l.Attrs().Index, Attach: at})
				if err != nil {
					return err
				}
				for _, p := range q.Programs {
					out += fmt.Sprintf(" %s program %d", name, p.ID)
				}
			}
			qdiscs, err := netlink.QdiscList(l)
			if err != nil {
				return err
			}
			for _, q := range qdiscs {
				if q.Type() == "clsact" {
					out += " " + name + " clsact"
				}
			}
		}
		return nil
	}))
	return out
}

func TestIntegrationRemoveStale(t *testing.T) {
	a, b := newPair(t, onlink.Off, Config{Clsact: true}, nil)
	if _, err := b.fast.Release(); err != nil { // as if it had been killed
		t.Fatal(err)
	}
	if attachedTo(t, b.host) == "" {
		t.Fatal("nothing is attached")
	}
	if found := testhost.Inside(b.host, func() ([]string, error) { return Stale("another.1") }); len(found) != 0 {
		t.Errorf("of another device there are %q", found)
	}
	if removed := testhost.Inside(b.host, func() ([]string, error) { return RemoveStale("") }); len(removed) != 2 {
		t.Errorf("removed %q, want 2 filters", removed)
	}
	if out := attachedTo(t, b.host); out != "" {
		t.Errorf("left behind: %s", out)
	}
	ping(t, a.container, b.addr(), 10)
}

func TestIntegrationFastPathHandsOver(t *testing.T) {
	t.Parallel() // it waits more than it works
	a, b := newPair(t, onlink.Off, Config{}, nil)
	ping(t, a.container, b.addr(), 1)
	var wg sync.WaitGroup
	wg.Go(func() { ping(t, a.container, b.addr(), 1000) })
	for range 5 {
		d, err := b.fast.Release()
		if err != nil {
			t.Fatal(err)
		}
		if out := attachedTo(t, b.host); out == "" {
			t.Error("nothing is attached between two")
		}
		b.attach(Config{Inherited: d})
	}
	wg.Wait()
	b.expectCarrying(a)
}

func TestIntegrationFastPathForgetsRevokedLeases(t *testing.T) {
	a, b := newPair(t, onlink.Off, Config{}, nil)
	ping(t, a.container, b.addr(), 10)
	testhost.Must(t, b.router.UpdatePeers(nil, []netip.Prefix{a.subnet()}))
	before := b.router.Stats()
	if err := b.host.Do(func() error { return nil }); err != nil {
		t.Fatal(err)
	}
	out, err := pingAnyway(t, a.container, b.addr(), 20)
	if err == nil {
		t.Errorf("a revoked peer's packets pass: %s", out)
	}
	testhost.Await(t, "the workers to have dropped them", func() bool {
		return b.router.Stats().Drop(tunnel.DropInnerSource) >= 20
	})
	if s := b.router.Stats(); s.FastPath != before.FastPath {
		t.Errorf("the fast path carried %+v, before %+v", s.FastPath, before.FastPath)
	}
}

// pingAnyway sends pings without waiting for answers.
func pingAnyway(t *testing.T, from *testhost.Host, to string, count int) (out string, err error) {
	t.Helper()
	testhost.Must(t, from.Do(func() error {
		b, e := exec.CommandContext(t.Context(), "ping", "-q", "-i", "0.005", "-W", "1", "-c", strconv.Itoa(count), to).CombinedOutput()
		out, err = string(b), e
		return nil
	}))
	return out, err
}

func TestIntegrationFastPathDirect(t *testing.T) {
	a, b := newPair(t, onlink.Socket, Config{}, nil)
	for _, n := range []*node{a, b} {
		peer := map[*node]*node{a: b, b: a}[n]
		testhost.Await(t, "the peer's direct way", func() bool { return n.router.Path(peer.subnet()).Direct })
	}
	tap := testhost.Tap(b.host, "eth0")
	ping(t, a.container, b.addr(), 1)
	if c := tap.Next(); c.VXLAN {
		t.Error("a packet to an on-link host is in VXLAN")
	}
	transfer(t, a.container, b.container, b.addr(), transferSize)
	ping(t, a.container, b.addr6(), 50)
	if s := a.router.Stats(); s.FastPath.TxDirect < 100 {
		t.Errorf("the fast path carried %+v and left%s", s.FastPath, a.left())
	}
}

func TestIntegrationFastPathHazards(t *testing.T) {
	t.Parallel() // it waits more than it works
	a, b := newPair(t, onlink.Off, Config{}, nil)
	check := func(what string, do, undo []string, reason string) {
		t.Helper()
		run(t, a.host, do[0], do[1:]...)
		testhost.Await(t, "off with "+what, func() bool { r := a.fast.Report(); return !r.On && strings.Contains(r.Reason, reason) })
		before := a.router.Stats().FastPath
		ping(t, a.container, b.addr(), 20)
		if after := a.router.Stats().FastPath; after != before {
			t.Errorf("with %s the fast path carries packets", what)
		}
		run(t, a.host, undo[0], undo[1:]...)
		testhost.Await(t, "on without "+what, func() bool { return a.fast.Report().On })
		a.expectCarrying(b)
	}
	check("a rule for the host's own packets", strings.Fields("ip rule add iif lo lookup 100"), strings.Fields("ip rule del iif lo lookup 100"), "iif lo")
	check("a rule for an interface", strings.Fields("ip rule add oif eth0 lookup 100"), strings.Fields("ip rule del oif eth0 lookup 100"), "oif eth0")
}

// A filter that somebody else attaches sees every frame: it comes behind programs on
// tcx links, and so they stay out of its way.
func TestIntegrationFastPathLeavesFilteredLinks(t *testing.T) {
	t.Parallel() // it waits more than it works
	a, b := newPair(t, onlink.Off, Config{}, nil)
	pass := passAll(t)
	index := b.host.Index("eth0")
	qdisc := &netlink.Clsact{QdiscAttrs: netlink.QdiscAttrs{LinkIndex: index, Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_CLSACT}}
	testhost.Must(t, b.host.QdiscAdd(qdisc))
	testhost.Must(t, b.host.FilterAdd(&netlink.BpfFilter{
		FilterAttrs: netlink.FilterAttrs{LinkIndex: index, Parent: netlink.HANDLE_MIN_INGRESS, Handle: 1, Protocol: unix.ETH_P_ALL, Priority: 7},
		Fd:          pass.FD(), Name: "somebody's", DirectAction: true,
	}))
	testhost.Await(t, "off", func() bool { r := b.fast.Report(); return !r.On && strings.Contains(r.Reason, "tc filter") })
	before := b.router.Stats().FastPath
	ping(t, a.container, b.addr(), 20)
	if after := b.router.Stats().FastPath; after != before {
		t.Error("with a foreign filter the fast path carries packets")
	}
	testhost.Must(t, b.host.QdiscDel(qdisc))
	testhost.Await(t, "on", func() bool { return b.fast.Report().On })
}

// A program on a tcx link that somebody has attached before sees every frame first.
func TestIntegrationFastPathComesAfterOthers(t *testing.T) {
	t.Parallel()        // it waits more than it works
	drop := dropIPv4(t) // and not ARP, so that the hosts find each other
	a, b := newStrangers(t, false, onlink.Off, Config{}, func(_, b *testhost.Host) {
		l := testhost.Inside(b, func() (bpflink.Link, error) {
			return bpflink.AttachTCX(bpflink.TCXOptions{Interface: b.Index("eth0"), Program: drop, Attach: ebpf.AttachTCXIngress})
		})
		t.Cleanup(func() { testhost.Must(t, l.Close()) })
	})
	a.know(b)
	b.know(a)
	if out, err := pingAnyway(t, a.container, b.addr(), 5); err == nil {
		t.Errorf("what another program drops arrives: %s", out)
	}
	if s := b.router.Stats(); s.RxPackets > 0 {
		t.Errorf("received %+v", s)
	}
}

// tryPing tells whether a ping of a length that must not be fragmented is answered.
func tryPing(t *testing.T, from *testhost.Host, to string, length int) bool {
	t.Helper()
	return from.Do(func() error {
		return exec.CommandContext(t.Context(), "ping", "-q", "-W", "1", "-c", "1", "-M", "do", "-s", strconv.Itoa(length-28), to).Run()
	}) == nil
}

func TestIntegrationFastPathLeavesIPsecToWorkers(t *testing.T) {
	t.Parallel() // it waits more than it works
	a, b := newPair(t, onlink.Off, Config{}, nil)
	policy := strings.Fields("dir out src 10.66.0.1/32 dst 10.66.0.2/32 proto udp")
	run(t, a.host, "ip", append([]string{"xfrm", "policy", "add"}, append(policy, "action", "allow")...)...)
	testhost.Await(t, "the peer to be excluded", func() bool {
		ok, reason := a.fast.Carries(b.subnet())
		return !ok && strings.Contains(reason, "IPsec")
	})
	before := a.router.Stats().FastPath
	ping(t, a.container, b.addr(), 20)
	if after := a.router.Stats().FastPath; after != before {
		t.Errorf("packets that an IPsec policy is for took the fast path: %+v, before %+v", after, before)
	}
	run(t, a.host, "ip", append([]string{"xfrm", "policy", "delete"}, policy...)...)
	testhost.Await(t, "the peer to be carried", func() bool { ok, _ := a.fast.Carries(b.subnet()); return ok })
	a.expectCarrying(b)
}

// What is for a peer that the programs don't carry isn't another's, whose subnet holds
// its own.
func TestIntegrationFastPathKeepsExcludedPeersApart(t *testing.T) {
	t.Parallel() // it waits more than it works
	a, b := newPair(t, onlink.Off, Config{}, nil)
	inside := netip.MustParsePrefix("10.0.2.128/25")
	testhost.Must(t, a.router.UpdatePeers([]tunnel.Peer{{Subnet: inside, Underlay: netip.MustParseAddr("10.66.0.9"), MAC: mac(9)}}, nil))
	run(t, a.host, "ip", strings.Fields("xfrm policy add dir out src 10.66.0.1/32 dst 10.66.0.9/32 proto udp action allow")...)
	testhost.Await(t, "the peer to be excluded", func() bool { ok, _ := a.fast.Carries(inside); return !ok })
	before := a.router.Stats()
	c := testhost.Inside(a.container, func() (net.Conn, error) { return net.Dial("udp", "10.0.2.130:9") })
	defer c.Close()
	for range 20 {
		if _, err := c.Write(make([]byte, 64)); err != nil {
			t.Fatal(err)
		}
	}
	testhost.Await(t, "the workers to have them", func() bool {
		after := a.router.Stats()
		return after.TxPackets-after.FastPath.TxPackets >= before.TxPackets-before.FastPath.TxPackets+20
	})
	if after := a.router.Stats(); after.FastPath.TxPackets != before.FastPath.TxPackets {
		t.Errorf("%d packets took the fast path", after.FastPath.TxPackets-before.FastPath.TxPackets)
	}
	a.expectCarrying(b)
}

func TestIntegrationFastPathFollowsRoutes(t *testing.T) {
	t.Parallel() // it waits more than it works
	a, b := newPair(t, onlink.Off, Config{}, func(a, b *testhost.Host) {
		testhost.Join(a, b, "eth1", "10.67.0")
		sysctl(t, a, "net.ipv4.conf.all.rp_filter", "0")
		sysctl(t, b, "net.ipv4.conf.all.rp_filter", "0")
		sysctl(t, b, "net.ipv4.conf.eth1.rp_filter", "0")
	})
	a.expectCarrying(b)
	before := a.router.Stats().FastPath
	run(t, a.host, "ip", "route", "add", "10.66.0.2/32", "via", "10.67.0.2", "dev", "eth1")
	testhost.Await(t, "pings to be left for their route", func() bool {
		ping(t, a.container, b.addr(), 1)
		return a.fast.Report().LeftTx["other_link"] > 0
	})
	if after := a.router.Stats().FastPath; after.TxPackets != before.TxPackets {
		t.Errorf("a route by another interface isn't obeyed: %+v, before %+v, left%s", after, before, a.left())
	}
	run(t, a.host, "ip", "route", "replace", "10.66.0.2/32", "nexthop", "via", "10.67.0.2", "dev", "eth1", "nexthop", "via", "10.66.0.2", "dev", "eth0", "onlink")
	transfer(t, a.container, b.container, b.addr(), transferSize)
	ping(t, a.container, b.addr(), 50)
	run(t, a.host, "ip", "route", "replace", "unreachable", "10.66.0.2/32")
	if out, err := pingAnyway(t, a.container, b.addr(), 3); err == nil {
		t.Errorf("an unreachable route isn't obeyed: %s", out)
	}
	run(t, a.host, "ip", "route", "del", "unreachable", "10.66.0.2/32")
	ping(t, a.container, b.addr(), 20)
}

func TestIntegrationFastPathObeysPathMTU(t *testing.T) {
	t.Parallel() // it waits more than it works
	a, b := newPair(t, onlink.Off, Config{}, nil)
	if !tryPing(t, a.container, b.addr(), 1450) {
		t.Error("a packet of the device's MTU doesn't pass")
	}
	run(t, a.host, "ip", "route", "add", "10.66.0.2/32", "dev", "eth0", "mtu", "1400")
	testhost.Await(t, "packets longer than the path's MTU to be refused", func() bool { return !tryPing(t, a.container, b.addr(), 1351) })
	before := a.router.Stats().FastPath
	if !tryPing(t, a.container, b.addr(), 1350) {
		t.Error("a packet of the path's MTU doesn't pass")
	}
	transfer(t, a.container, b.container, b.addr(), transferSize)
	if after := a.router.Stats().FastPath; after.TxPackets < before.TxPackets+50 {
		t.Errorf("the fast path carried %+v, before %+v, left%s", after, before, a.left())
	}
}

// forge is a frame in VXLAN with an IPv4 packet.
func forge(vni encap.VNI, target, source encap.MAC, packet []byte) []byte {
	h := encap.MakeFrameHeader(vni, target, source, encap.EtherTypeIPv4)
	return append(h[:], packet...)
}

// send sends datagrams from the host's address to another's VXLAN port.
func (n *node) send(to string, times int, datagrams ...[]byte) {
	n.t.Helper()
	c := testhost.Inside(n.host, func() (net.Conn, error) {
		return net.Dial("udp", netip.AddrPortFrom(netip.MustParseAddr(to), testhost.Port).String())
	})
	defer c.Close()
	for range times {
		for _, d := range datagrams {
			if _, err := c.Write(d); err != nil {
				n.t.Fatal(err)
			}
		}
	}
}

// received is how many packets have come into the container.
func (n *node) received() uint64 {
	n.t.Helper()
	return n.container.Link("eth0").Attrs().Statistics.RxPackets
}

func TestIntegrationFastPathTakesNothingForged(t *testing.T) {
	for _, wide := range []bool{false, true} {
		t.Run(underlayName(wide), func(t *testing.T) { takesNothingForged(t, wide) })
	}
}

func underlayName(wide bool) string {
	if wide {
		return "over IPv6"
	}
	return "over IPv4"
}

func takesNothingForged(t *testing.T, wide bool) {
	t.Helper()
	a, b := newPairOver(t, wide, onlink.Off, Config{}, nil)
	ping(t, a.container, b.addr(), 10)
	sysctl(t, b.host, "net.ipv6.conf.c0.disable_ipv6", "1") // which says something by itself
	before, container := b.router.Stats(), b.received()
	inner := func(src string) []byte { return testhost.UDPPacket(src, b.addr(), 64) }
	forged := [][]byte{
		forge(testVNI+1, mac(2), mac(1), inner(a.addr())),
		forge(testVNI, mac(9), mac(1), inner(a.addr())),
		forge(testVNI, mac(2), mac(1), inner("10.0.7.7")),
		forge(testVNI, mac(2), mac(1), inner("10.66.0.3")), // a host's own would be its right
		forge(testVNI, mac(2), mac(1), inner(b.addr())),
		forge(testVNI, mac(2), mac(1), inner("127.0.0.1")),
	}
	const each = 20000
	a.send(b.outer().String(), each, forged...)
	// A host that is nobody's peer knows all of it but the address.
	other := "10.66.0.7/24"
	if wide {
		other = "fd66::7/64"
	}
	a.host.Address("eth0", other)
	stranger := testhost.Inside(a.host, func() (net.Conn, error) {
		from := net.UDPAddrFromAddrPort(netip.AddrPortFrom(netip.MustParsePrefix(other).Addr(), 0))
		return net.DialUDP("udp", from, net.UDPAddrFromAddrPort(netip.AddrPortFrom(b.outer(), testhost.Port)))
	})
	defer stranger.Close()
	for range each {
		if _, err := stranger.Write(forge(testVNI, mac(2), mac(1), inner(a.addr()))); err != nil {
			t.Fatal(err)
		}
	}
	seen := func() uint64 {
		r := b.fast.Report()
		return r.LeftRx["foreign_vni"] + r.LeftRx["inner_mac"] + r.LeftRx["inner_source"]
	}
	testhost.Await(t, "the program to have seen them all", func() bool { return seen() >= each*uint64(len(forged)+1) })
	after := b.router.Stats()
	if after.FastPath != before.FastPath || after.RxPackets != before.RxPackets {
		t.Errorf("of %d forged frames %d came in, by the fast path %d", seen(), after.RxPackets-before.RxPackets, after.FastPath.RxPackets-before.FastPath.RxPackets)
	}
	if n := b.received() - container; n > 0 {
		t.Errorf("the container got %d packets", n)
	}
	a.expectCarrying(b)
}

package fastpath

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"uvxlan/encap"
	"uvxlan/tunnel"
	"uvxlan/tunnel/internal/testhost"
	"uvxlan/tunnel/link"
	"uvxlan/tunnel/onlink"
)

// script runs commands on a host, one a line.
func script(t *testing.T, h *testhost.Host, commands string) {
	t.Helper()
	for line := range strings.Lines(commands) {
		if f := strings.Fields(line); len(f) > 0 {
			run(t, h, f[0], f[1:]...)
		}
	}
}

func TestIntegrationFastPathOnMacvlan(t *testing.T) {
	t.Parallel() // it waits more than it works
	for _, offload := range []bool{true, false} {
		t.Run(fmt.Sprintf("offload %t", offload), func(t *testing.T) {
			a, b := newPair(t, onlink.Off, Config{}, func(a, b *testhost.Host) {
				if !offload {
					withoutTunnelOffload(t, a)
					withoutTunnelOffload(t, b)
				}
				script(t, a, `
					ip addr del 10.66.0.1/24 dev eth0
					ip link add mv0 link eth0 type macvlan mode bridge
					ip link set mv0 up
					ip addr add 10.66.0.1/24 dev mv0`)
			})
			if r := a.fast.Report(); r.Link != "mv0" {
				t.Errorf("attached to %s, want mv0", r.Link)
			}
			if r := a.fast.Report(); r.Superpackets != offload {
				t.Errorf("mv0 passes superpackets: %t", r.Superpackets)
			}
			bothWays(t, a, b)
			for _, n := range []*node{a, b} {
				n.expectCarried(150, 150)
			}
			if offload {
				expectWhole(t, a, b)
				expectWhole(t, b, a)
			}
		})
	}
}

// expectWhole fails unless superpackets from one host arrive at the other's eth0 in one
// piece.
func expectWhole(t *testing.T, from, to *node) {
	t.Helper()
	tap := testhost.Tap(to.host, "eth0")
	var sending sync.WaitGroup
	sending.Go(func() { transfer(t, from.container, to.container, to.addr(), transferSize) })
	for {
		if c := tap.Next(); c.VXLAN && c.Offload.SegmentSize > 0 && len(c.Packet) > 2000 {
			break
		}
	}
	sending.Wait()
}

// Who doesn't segment TCP splits superpackets before they reach the interface, in a
// tunnel or not.
func TestIntegrationFastPathFollowsSegmentation(t *testing.T) {
	a, b := newPair(t, onlink.Off, Config{}, nil)
	expectWhole(t, a, b)
	for _, on := range []bool{false, true} {
		changeFeature(t, a.host, "tx-tcp-segmentation", on)
		testhost.Await(t, fmt.Sprintf("superpackets %t", on), func() bool { return a.fast.Report().Superpackets == on })
		transfer(t, a.container, b.container, b.addr(), transferSize)
	}
}

// The underlay's interface stays the same by another name, also when its name was
// configured.
func TestIntegrationFastPathFollowsRenamedUnderlay(t *testing.T) {
	t.Parallel() // it waits more than it works
	for _, name := range []string{"", "eth0"} {
		t.Run("link "+name, func(t *testing.T) {
			a, b := newPair(t, onlink.Off, Config{Link: name}, nil)
			a.expectCarrying(b)
			script(t, a.host, `
				ip link set eth0 down
				ip link set eth0 name up0
				ip link set up0 up`)
			testhost.Await(t, "the name to be known", func() bool { return a.fast.Report().Link == "up0" })
			a.awaitOn()
			a.expectCarrying(b)
			changeFeatureOf(t, a.host, "up0", "tx-udp_tnl-segmentation", false)
			testhost.Await(t, "no superpackets", func() bool { return !a.fast.Report().Superpackets })
		})
	}
}

// Interfaces come and go all the time on a host of containers, which interrupts lists
// of them. That is no reason to leave packets to the workers.
func TestIntegrationFastPathStaysOnWhileLinksComeAndGo(t *testing.T) {
	a, b := newPair(t, onlink.Off, Config{}, nil)
	testhost.Must(t, a.fast.Close())
	for i := range 60 { // so that a list takes several messages
		testhost.Must(t, a.host.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: fmt.Sprintf("x%d", i)}, PeerName: fmt.Sprintf("y%d", i)}))
	}
	var log countingHandler
	a.attach(Config{Logger: slog.New(&log)})
	ctx, stop := context.WithCancel(t.Context())
	var churn sync.WaitGroup
	churn.Go(func() {
		for ctx.Err() == nil {
			v := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "z0"}, PeerName: "z1"}
			if err := errors.Join(a.host.LinkAdd(v), a.host.LinkDel(v)); err != nil {
				t.Error(err)
			}
		}
	})
	for range 1000 {
		a.fast.inspect()
	}
	stop()
	churn.Wait()
	if n := log.warnings.Load(); n > 0 {
		t.Errorf("%d warnings, the first: %s", n, log.first.Load())
	}
	a.expectCarrying(b)
}

// countingHandler counts a log's warnings and errors.
type countingHandler struct {
	warnings atomic.Int64
	first    atomic.Value
}

func (h *countingHandler) Enabled(_ context.Context, l slog.Level) bool { return l >= slog.LevelWarn }
func (h *countingHandler) WithAttrs([]slog.Attr) slog.Handler           { return h }
func (h *countingHandler) WithGroup(string) slog.Handler                { return h }

func (h *countingHandler) Handle(_ context.Context, r slog.Record) error {
	h.warnings.Add(1)
	text := r.Message
	r.Attrs(func(a slog.Attr) bool {
		text += " " + a.String()
		return true
	})
	h.first.CompareAndSwap(nil, text)
	return nil
}

// A filter in a block that interfaces share is somebody's, too.
func TestIntegrationFastPathLeavesSharedBlocks(t *testing.T) {
	t.Parallel() // it waits more than it works
	a, b := newPair(t, onlink.Off, Config{}, nil)
	pass := passAll(t)
	script(t, b.host, "tc qdisc add dev eth0 ingress_block 7 clsact")
	b.awaitOn()
	testhost.Must(t, b.host.FilterAdd(&netlink.BpfFilter{
		// An index of -1 and the block's number for a parent: linux/rtnetlink.h.
		FilterAttrs: netlink.FilterAttrs{LinkIndex: -1, Parent: 7, Handle: 1, Protocol: unix.ETH_P_ALL, Priority: 7},
		Fd:          pass.FD(), Name: "somebody's", DirectAction: true,
	}))
	b.awaitOff("tc filter")
	ping(t, a.container, b.addr(), 5)
	script(t, b.host, "tc qdisc del dev eth0 clsact")
	b.awaitOn()
	b.expectCarrying(a)
}

// Two networks of a host share the underlay's interface.
func TestIntegrationFastPathsOfTwoNetworks(t *testing.T) {
	for name, c := range map[string]Config{"tcx": {}, "clsact": {Clsact: true}} {
		t.Run(name, func(t *testing.T) {
			a, b := newPair(t, onlink.Off, c, nil)
			a.expectCarrying(b)
			second := testhost.Inside(b.host, func() (*tunnel.Router, error) {
				return tunnel.Open("flannel.7", tunnel.Setup{
					Address: netip.MustParseAddr("10.66.0.2"), Port: testhost.Port + 1, VNI: 7, MAC: encap.MAC{2, 7}, Workers: 1,
					Link: link.Config{MTU: 1450, Addresses: []netip.Addr{netip.MustParseAddr("10.7.2.0")}, Networks: []netip.Prefix{netip.MustParsePrefix("10.7.0.0/16")}},
				})
			})
			defer func() { testhost.Must(t, second.Close()) }()
			fast := testhost.Inside(b.host, func() (*FastPath, error) { return Attach(second, c) })
			ctx, stop := context.WithCancel(t.Context())
			var running sync.WaitGroup
			running.Go(func() {
				if err := fast.Run(ctx); err != nil {
					t.Error(err)
				}
			})
			if r := fast.Report(); !r.On {
				t.Errorf("the second is off: %s", r.Reason)
			}
			a.expectCarrying(b)
			b.expectCarrying(a)
			stop()
			running.Wait()
			testhost.Must(t, fast.Close())
			a.expectCarrying(b)
			b.expectCarrying(a)
			if r := b.fast.Report(); !r.On {
				t.Errorf("the first is off: %s", r.Reason)
			}
		})
	}
}

// Nothing is carried by what was closed, and it says so.
func TestIntegrationFastPathReportsItsEnd(t *testing.T) {
	a, b := newPair(t, onlink.Off, Config{}, nil)
	a.expectCarrying(b)
	var log countingHandler
	a.fast.log = slog.New(&log)
	testhost.Must(t, a.fast.Close())
	r := a.fast.Report()
	if r.On || r.Reason == "" || r.Attached != "" {
		t.Errorf("after Close: %+v", r)
	}
	if ok, reason := a.fast.Carries(b.subnet()); ok || reason == "" {
		t.Errorf("after Close a peer is carried: %t, %q", ok, reason)
	}
	if _, err := b.fast.Release(); err != nil {
		t.Fatal(err)
	}
	if r := b.fast.Report(); r.On || r.Reason == "" {
		t.Errorf("after Release: %+v", r)
	}
	if n := log.warnings.Load(); n > 0 {
		t.Errorf("%d warnings, the first: %s", n, log.first.Load())
	}
}

// Filters, too, are handed over while packets pass.
func TestIntegrationFastPathHandsFiltersOver(t *testing.T) {
	t.Parallel() // it waits more than it works
	a, b := newPair(t, onlink.Off, Config{Clsact: true}, nil)
	a.expectCarrying(b)
	var pings sync.WaitGroup
	pings.Go(func() { ping(t, a.container, b.addr(), 1000) })
	for range 5 {
		d, err := b.fast.Release()
		testhost.Must(t, err)
		if out := attachedTo(t, b.host); !strings.Contains(out, "clsact") {
			t.Errorf("between two there is %q", out)
		}
		b.attach(Config{Clsact: true, Inherited: d})
	}
	pings.Wait()
	b.expectCarrying(a)
	testhost.Must(t, b.fast.Close())
	if out := attachedTo(t, b.host); out != "" {
		t.Errorf("left behind: %s", out)
	}
}

// A successor that can't go on leaves nothing that carries packets by old peers.
func TestIntegrationFastPathLeavesNothingOfAPredecessor(t *testing.T) {
	for name, c := range map[string]Config{"tcx": {}, "clsact": {Clsact: true}} {
		t.Run(name, func(t *testing.T) {
			_, b := newPair(t, onlink.Off, c, nil)
			d, err := b.fast.Release()
			testhost.Must(t, err)
			c.Link, c.Inherited = "nowhere0", d
			fast, err := attachIn(b, c)
			if !errors.Is(err, ErrUnsupported) {
				t.Errorf("at an interface that there isn't: %v", err)
			}
			testhost.Must(t, closeFast(fast))
			if out := attachedTo(t, b.host); out != "" {
				t.Errorf("left behind: %s", out)
			}
		})
	}
}

// Hosts of virtual machines have their addresses at bridges, whose packets iptables sees
// (br_netfilter). Those that the fast path sends still know of the container's
// connection, and of the bridge that they came from.
func TestIntegrationFastPathOnFilteredBridges(t *testing.T) {
	a, b := newPair(t, onlink.Off, Config{}, func(a, _ *testhost.Host) {
		script(t, a, `
			ip addr del 10.66.0.1/24 dev eth0
			ip link add br0 type bridge
			ip link set eth0 master br0
			ip link set br0 up
			ip addr add 10.66.0.1/24 dev br0`)
	})
	script(t, a.host, `
		ip link add cni0 type bridge
		ip link set cni0 up
		ip addr del 10.0.1.1/24 dev c0
		ip addr del fd00:0:0:1::1/64 dev c0
		ip link set c0 master cni0
		ip addr add 10.0.1.1/24 dev cni0
		ip addr add fd00:0:0:1::1/64 dev cni0 nodad
		nft add table ip z
		nft add chain ip z post { type nat hook postrouting priority 100 ; }
		nft add rule ip z post ip saddr 10.0.1.0/24 oifname flannel.1 masquerade
		nft add chain ip z pre { type nat hook prerouting priority -100 ; }
		nft add rule ip z pre ip daddr 10.0.9.9 dnat to 10.0.2.2`)
	sysctl(t, a.host, "net.bridge.bridge-nf-call-iptables", "1")
	sysctl(t, a.host, "net.bridge.bridge-nf-call-ip6tables", "1")
	ping(t, a.container, b.addr(), 100)
	ping(t, b.container, a.addr(), 100)
	ping(t, a.container, "10.0.9.9", 20)
	transfer(t, a.container, b.container, b.addr(), transferSize)
	transfer(t, b.container, a.container, a.addr(), transferSize)
	transfer(t, b.container, a.container, a.addr6(), transferSize)
	a.expectCarried(150, 150)
}

// What the maps hold is of one version of the programs: those of another must not take
// it for their own.
func TestIntegrationFastPathInheritsMapsOfItsLayout(t *testing.T) {
	a, b := newPair(t, onlink.Off, Config{}, nil)
	a.expectCarrying(b)
	peers := func() ebpf.MapID {
		m, err := ebpf.NewMapFromFD(duplicateOf(t, b.fast.programs.Descriptors()["peers4"]))
		testhost.Must(t, err)
		defer m.Close()
		info, err := m.Info()
		testhost.Must(t, err)
		id, _ := info.ID()
		return id
	}
	before, descriptors := peers(), testhost.Descriptors(t)
	for _, same := range []bool{true, false} {
		d, err := b.fast.Release()
		testhost.Must(t, err)
		if !same {
			d.Layout = "another"
		}
		b.attach(Config{Inherited: d})
		if got := peers(); got == before != same {
			t.Errorf("of the same layout: %t, map %d, before %d", same, got, before)
		}
		testhost.Await(t, "as many descriptors as before", func() bool { return testhost.Descriptors(t) == descriptors })
		a.expectCarrying(b)
		b.expectCarrying(a)
	}
}

func duplicateOf(t *testing.T, fd int) int {
	t.Helper()
	n, err := duplicate(fd)
	testhost.Must(t, err)
	return n
}

// The direct way takes packets of any length: an interface for shorter ones is none.
func TestIntegrationFastPathDirectObeysUnderlayMTU(t *testing.T) {
	a, b := newPair(t, onlink.Socket, Config{}, nil)
	direct := func() bool { return a.router.Path(b.subnet()).Direct && b.router.Path(a.subnet()).Direct }
	testhost.Await(t, "the peer's direct way", direct)
	for _, h := range []*testhost.Host{a.host, b.host} {
		run(t, h, "ip", "link", "set", "eth0", "mtu", "1400")
	}
	testhost.Await(t, "packets longer than the path's MTU to be refused", func() bool { return !tryPing(t, a.container, b.addr(), 1351) })
	before := a.router.Stats().FastPath
	if !tryPing(t, a.container, b.addr(), 1350) {
		t.Error("a packet of the path's MTU doesn't pass")
	}
	transfer(t, a.container, b.container, b.addr(), transferSize)
	if after := a.router.Stats().FastPath; after.TxDirect != before.TxDirect || after.TxPackets < before.TxPackets+50 {
		t.Errorf("the fast path carried %+v, before %+v, left%s", after, before, a.left())
	}
	for _, h := range []*testhost.Host{a.host, b.host} {
		run(t, h, "ip", "link", "set", "eth0", "mtu", "1500")
	}
	testhost.Await(t, "the peer's direct way", direct)
}

// All peers of a large network are carried.
func TestIntegrationFastPathOfManyPeers(t *testing.T) {
	a, b := newPair(t, onlink.Off, Config{}, nil)
	peers := b.peers()
	for i := range 10_000 {
		peers = append(peers, tunnel.Peer{
			Subnet:   netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(100 + i>>8), byte(i), 0}), 24),
			Underlay: netip.AddrFrom4([4]byte{10, 67, byte(i >> 8), byte(i)}), MAC: encap.MAC{2, 9, 0, 0, byte(i >> 8), byte(i)},
		})
	}
	began := time.Now()
	testhost.Must(t, a.router.ReplacePeers(peers))
	t.Logf("%d peers in %v", len(peers), time.Since(began))
	if r := a.fast.Report(); r.Peers != len(peers) || r.Excluded > 0 {
		t.Errorf("of %d peers %d are carried, and %d are not", len(peers), r.Peers, r.Excluded)
	}
	a.expectCarrying(b)
	// A policy for some of them comes and goes.
	policy := strings.Fields("dir out src 10.66.0.1/32 dst 10.67.7.0/24")
	run(t, a.host, "ip", append([]string{"xfrm", "policy", "add"}, append(policy, "action", "allow")...)...)
	testhost.Await(t, "peers to be excluded", func() bool { return a.fast.Report().Excluded == 256 })
	run(t, a.host, "ip", append([]string{"xfrm", "policy", "delete"}, policy...)...)
	testhost.Await(t, "all peers to be carried", func() bool { return a.fast.Report().Peers == len(peers) })
	a.expectCarrying(b)
	testhost.Must(t, a.router.ReplacePeers(b.peers()))
	if r := a.fast.Report(); r.Peers != len(b.peers()) {
		t.Errorf("%d peers are carried, want %d", r.Peers, len(b.peers()))
	}
	a.expectCarrying(b)
}

// Whatever changes on the host, packets change sides and none is lost.
func TestIntegrationFastPathLosesNothingInChanges(t *testing.T) {
	for _, direct := range []onlink.Mode{onlink.Off, onlink.Socket} {
		t.Run(fmt.Sprint("direct ", direct), func(t *testing.T) {
			a, b := newPair(t, direct, Config{}, nil)
			carried := func() bool {
				before := a.router.Stats().FastPath
				ping(t, a.container, b.addr(), 20)
				after := a.router.Stats().FastPath
				return after.TxPackets >= before.TxPackets+20 && (direct == onlink.Off) == (after.TxDirect == before.TxDirect)
			}
			testhost.Await(t, "all pings to be carried", carried)
			policy := strings.Fields("dir out src 10.66.0.1/32 dst 10.66.0.2/32 proto udp")
			changes := []func(){
				func() { changeFeature(t, a.host, "tx-udp_tnl-segmentation", false) },
				func() {
					run(t, a.host, "ip", append([]string{"xfrm", "policy", "add"}, append(policy, "action", "allow")...)...)
				},
				func() { changeFeature(t, a.host, "tx-udp_tnl-segmentation", true) },
				func() { run(t, a.host, "ip", "rule", "add", "iif", "lo", "lookup", "100") },
				func() { run(t, a.host, "ip", append([]string{"xfrm", "policy", "delete"}, policy...)...) },
				func() {
					d, err := b.fast.Release()
					testhost.Must(t, err)
					b.attach(Config{Inherited: d})
				},
				func() { run(t, a.host, "ip", "rule", "del", "iif", "lo", "lookup", "100") },
				func() { testhost.Must(t, a.router.ReplacePeers(b.peers())) },
				func() {
					testhost.Must(t, a.fast.Close())
					a.attach(Config{})
				},
			}
			ctx, stop := context.WithCancel(t.Context())
			var traffic sync.WaitGroup
			for n, peer := range map[*node]*node{a: b, b: a} {
				traffic.Go(func() {
					for ctx.Err() == nil && !t.Failed() {
						ping(t, n.container, peer.addr(), 20)
					}
				})
				for _, segments := range []int{1, 12} {
					c := echo(t, n.container, peer.container, peer.addr6())
					traffic.Go(func() {
						for ctx.Err() == nil && !t.Failed() {
							bounce(t, c, 1200, segments)
						}
					})
				}
			}
			for range 3 {
				for _, change := range changes {
					change()
					// Each is in force for a while, and followed.
					before := a.router.Stats().TxPackets
					testhost.Await(t, "packets to pass", func() bool { return a.router.Stats().TxPackets > before+50 })
				}
			}
			stop()
			traffic.Wait()
			a.awaitOn()
			testhost.Await(t, "all pings to be carried", carried)
			for _, n := range []*node{a, b} {
				n.expectCarried(100, 0)
			}
		})
	}
}

// bounce sends datagrams of a length, several as a superpacket, to who sends them back, and
// fails unless all come back, in whatever order.
func bounce(t *testing.T, c *net.UDPConn, length, segments int) {
	t.Helper()
	raw, err := c.SyscallConn()
	if err == nil && segments > 1 {
		e := raw.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.IPPROTO_UDP, unix.UDP_SEGMENT, length) })
		err = errors.Join(err, e)
	}
	out := make([]byte, length*segments)
	_, _ = rand.Read(out)
	missing := map[string]bool{}
	for at := 0; at < len(out); at += length {
		missing[string(out[at:at+length])] = true
	}
	if err == nil {
		err = c.SetDeadline(time.Now().Add(testhost.Patience))
	}
	if err == nil {
		_, err = c.Write(out)
	}
	for in := make([]byte, 1<<16); err == nil && len(missing) > 0; {
		var n int
		n, err = c.Read(in)
		delete(missing, string(in[:n]))
	}
	if err != nil {
		t.Errorf("of %d datagrams %d haven't come back: %v", segments, len(missing), err)
	}
}

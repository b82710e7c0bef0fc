package fastpath

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	bpflink "github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"uvxlan/tunnel"
	"uvxlan/tunnel/device"
	"uvxlan/tunnel/internal/tcprog"
	"uvxlan/tunnel/internal/testhost"
	"uvxlan/tunnel/link"
	"uvxlan/tunnel/onlink"
	"uvxlan/tunnel/underlay"
)

// dropIPv4 is a program that drops IPv4 and lets everything else pass.
func dropIPv4(t *testing.T) *ebpf.Program {
	t.Helper()
	return program(t,
		asm.LoadMem(asm.R2, asm.R1, 16, asm.Word), // protocol
		asm.Mov.Imm(asm.R0, -1),
		asm.JNE.Imm(asm.R2, 8, "out"),
		asm.Mov.Imm(asm.R0, 2), // TC_ACT_SHOT
		asm.Return().WithSymbol("out"))
}

// passAll is a program that lets everything pass.
func passAll(t *testing.T) *ebpf.Program {
	t.Helper()
	return program(t, asm.Mov.Imm(asm.R0, -1), asm.Return())
}

// program is somebody's, for tc, until the test ends.
func program(t *testing.T, code ...asm.Instruction) *ebpf.Program {
	t.Helper()
	p, err := ebpf.NewProgram(&ebpf.ProgramSpec{Type: ebpf.SchedCLS, License: "GPL", Instructions: code})
	testhost.Must(t, err)
	t.Cleanup(func() { testhost.Must(t, p.Close()) })
	return p
}

// expectCarrying fails unless pings to the peer take the fast path there and back. The
// first of a flow may wait for a neighbour, and others follow it.
func (n *node) expectCarrying(peer *node) {
	n.t.Helper()
	testhost.Await(n.t, "pings to be carried", func() bool {
		before := n.router.Stats().FastPath
		ping(n.t, n.container, peer.addr(), 20)
		after := n.router.Stats().FastPath
		return after.TxPackets >= before.TxPackets+5 && after.RxPackets >= before.RxPackets+5
	})
}

func (n *node) awaitOff(reason string) {
	n.t.Helper()
	testhost.Await(n.t, "off: "+reason, func() bool { r := n.fast.Report(); return !r.On && strings.Contains(r.Reason, reason) })
}

func (n *node) awaitOn() {
	n.t.Helper()
	testhost.Await(n.t, "on", func() bool { return n.fast.Report().On })
}

// Whoever attaches at the end of the list while we are attached expects to see what
// comes, too.
func TestIntegrationFastPathStaysBehindLaterPrograms(t *testing.T) {
	t.Parallel() // it waits more than it works
	for name, at := range map[string]struct {
		link string
		kind ebpf.AttachType
	}{
		"ingress of the underlay": {"eth0", ebpf.AttachTCXIngress},
		"egress of the underlay":  {"eth0", ebpf.AttachTCXEgress},
		"egress of the device":    {"flannel.1", ebpf.AttachTCXEgress},
		"ingress of the device":   {"flannel.1", ebpf.AttachTCXIngress},
	} {
		t.Run(name, func(t *testing.T) {
			a, b := newPair(t, onlink.Off, Config{}, nil)
			a.expectCarrying(b)
			drop := dropIPv4(t)
			l := testhost.Inside(a.host, func() (bpflink.Link, error) {
				return bpflink.AttachTCX(bpflink.TCXOptions{Interface: a.host.Index(at.link), Program: drop, Attach: at.kind, Anchor: bpflink.Tail()})
			})
			testhost.Await(t, "what the other program drops to be dropped", func() bool { _, err := pingAnyway(t, a.container, b.addr(), 1); return err != nil })
			testhost.Must(t, l.Close())
			a.expectCarrying(b)
		})
	}
}

func TestIntegrationFastPathFollowsUnderlay(t *testing.T) {
	t.Parallel() // it waits more than it works
	a, b := newPair(t, onlink.Off, Config{}, nil)
	a.expectCarrying(b)

	run(t, a.host, "ip", "link", "set", "eth0", "down")
	run(t, a.host, "ip", "link", "set", "eth0", "up")
	testhost.Await(t, "the link to be up again", func() bool { _, err := pingAnyway(t, a.container, b.addr(), 1); return err == nil })
	a.expectCarrying(b)

	run(t, a.host, "ip", "addr", "del", "10.66.0.1/24", "dev", "eth0")
	a.awaitOff("10.66.0.1")
	run(t, a.host, "ip", "addr", "add", "10.66.0.1/24", "dev", "eth0")
	a.awaitOn()
	a.expectCarrying(b)

	run(t, a.host, "ip", "link", "del", "eth0") // and b's end with it
	a.awaitOff("10.66.0.1")
	b.awaitOff("10.66.0.2")
	testhost.Join(a.host, b.host, "eth0", "10.66.0")
	a.awaitOn()
	b.awaitOn()
	a.expectCarrying(b)
	b.expectCarrying(a)

	// The address moves to another interface.
	testhost.Join(a.host, b.host, "eth1", "10.67.0")
	run(t, a.host, "ip", "addr", "del", "10.66.0.1/24", "dev", "eth0")
	run(t, b.host, "ip", "addr", "del", "10.66.0.2/24", "dev", "eth0")
	a.awaitOff("10.66.0.1")
	b.awaitOff("10.66.0.2")
	run(t, a.host, "ip", "addr", "add", "10.66.0.1/24", "dev", "eth1")
	run(t, b.host, "ip", "addr", "add", "10.66.0.2/24", "dev", "eth1")
	a.awaitOn()
	b.awaitOn()
	if r := a.fast.Report(); r.Link != "eth1" {
		t.Errorf("attached to %s, want eth1", r.Link)
	}
	a.expectCarrying(b)
	testhost.Must(t, a.fast.Close())
	testhost.Must(t, b.fast.Close())
	if out := attachedTo(t, a.host) + attachedTo(t, b.host); out != "" {
		t.Errorf("left behind: %s", out)
	}
}

func TestIntegrationFastPathObeysUnderlayMTU(t *testing.T) {
	a, b := newPair(t, onlink.Off, Config{}, nil)
	for _, h := range []*testhost.Host{a.host, b.host} {
		run(t, h, "ip", "link", "set", "eth0", "mtu", "1400")
	}
	testhost.Await(t, "packets longer than the path's MTU to be refused", func() bool { return !tryPing(t, a.container, b.addr(), 1351) })
	if !tryPing(t, a.container, b.addr(), 1350) {
		t.Error("a packet of the path's MTU doesn't pass")
	}
	transfer(t, a.container, b.container, b.addr(), transferSize)
	for _, h := range []*testhost.Host{a.host, b.host} {
		run(t, h, "ip", "link", "set", "eth0", "mtu", "1500")
	}
	testhost.Await(t, "packets of the device's MTU to pass", func() bool {
		run(t, a.container, "ip", "route", "flush", "cache") // what the container was told
		return tryPing(t, a.container, b.addr(), 1450)
	})
	a.expectCarrying(b)
}

func TestIntegrationFastPathOnBridge(t *testing.T) {
	t.Parallel() // it waits more than it works
	a, b := newPair(t, onlink.Off, Config{}, func(a, _ *testhost.Host) {
		for _, c := range []string{
			"ip addr del 10.66.0.1/24 dev eth0", "ip link add br0 type bridge", "ip link set eth0 master br0",
			"ip link set br0 up", "ip addr add 10.66.0.1/24 dev br0",
		} {
			f := strings.Fields(c)
			run(t, a, f[0], f[1:]...)
		}
	})
	if r := a.fast.Report(); r.Link != "br0" {
		t.Errorf("attached to %s, want br0", r.Link)
	}
	bothWays(t, a, b)
	a.expectCarried(100, 100) // no superpackets
	if a.fast.Report().Superpackets {
		t.Error("superpackets are for a bridge, which segments them in software")
	}
}

// What an enslaved interface gets goes to its master's rules, whose verdict is for the
// workers' packets too.
func TestIntegrationFastPathLeavesEnslavedLinks(t *testing.T) {
	t.Parallel() // it waits more than it works
	a, b := newPair(t, onlink.Off, Config{}, nil)
	run(t, a.host, "ip", "link", "add", "br0", "type", "bridge")
	run(t, a.host, "ip", "link", "set", "eth0", "master", "br0")
	a.awaitOff("belongs to br0")
	before := a.router.Stats().FastPath
	if out, err := pingAnyway(t, a.container, b.addr(), 2); err == nil { // the address is at a bridge's port
		t.Errorf("a bridge's port is no way: %s", out)
	}
	if after := a.router.Stats().FastPath; after != before {
		t.Errorf("the fast path carried %+v, before %+v", after, before)
	}
	run(t, a.host, "ip", "link", "set", "eth0", "nomaster")
	a.awaitOn()
	a.expectCarrying(b)
}

// Rules that can't tell our lookups from the workers' are obeyed, and the fast path
// stays on.
func TestIntegrationFastPathObeysRules(t *testing.T) {
	t.Parallel() // it waits more than it works
	a, b := newPair(t, onlink.Off, Config{}, func(a, b *testhost.Host) { testhost.Join(a, b, "eth1", "10.67.0") })
	for _, rule := range []string{
		"from 10.66.0.1", "to 10.66.0.2", "from 10.66.0.1 to 10.66.0.2", "ipproto udp dport 4789",
	} {
		a.expectCarrying(b)
		run(t, a.host, "ip", "route", "add", "unreachable", "10.66.0.2/32", "table", "100")
		run(t, a.host, "ip", strings.Fields("rule add "+rule+" lookup 100")...)
		if out, err := pingAnyway(t, a.container, b.addr(), 2); err == nil {
			t.Errorf("rule %q isn't obeyed: %s", rule, out)
		}
		if r := a.fast.Report(); !r.On {
			t.Errorf("off with rule %q: %s", rule, r.Reason)
		}
		run(t, a.host, "ip", strings.Fields("rule del "+rule+" lookup 100")...)
		run(t, a.host, "ip", "route", "del", "unreachable", "10.66.0.2/32", "table", "100")
	}
	run(t, a.host, "ip", strings.Fields("rule add fwmark 7 lookup 100")...)
	run(t, a.host, "ip", strings.Fields("-6 rule add iif lo lookup 100")...)
	a.expectCarrying(b)
	if r := a.fast.Report(); !r.On {
		t.Errorf("off: %s", r.Reason)
	}
}

// Frames of an on-link peer that a policy wants protected are none for the fast path.
func TestIntegrationFastPathLeavesIPsecOfOnlinkPeersToWorkers(t *testing.T) {
	a, b := newPair(t, onlink.Socket, Config{}, nil)
	testhost.Await(t, "the peer's direct way", func() bool { return a.router.Path(b.subnet()).Direct })
	testhost.Await(t, "the direct way to be the fast path's", func() bool {
		before := a.router.Stats().FastPath
		ping(t, a.container, b.addr(), 2)
		return a.router.Stats().FastPath.TxDirect > before.TxDirect
	})
	policy := strings.Fields("dir in src 10.66.0.2/32 dst 10.66.0.1/32")
	run(t, a.host, "ip", append([]string{"xfrm", "policy", "add"}, append(policy, "action", "block")...)...)
	testhost.Await(t, "the peer to be excluded", func() bool { ok, _ := a.fast.Carries(b.subnet()); return !ok })
	// A frame from the peer, as if its host didn't know that we are on-link.
	before := a.router.Stats()
	frame := forge(testVNI, mac(1), mac(2), testhost.UDPPacket(b.addr(), a.addr(), 64))
	b.send("10.66.0.1", 20, frame)
	b.send("10.66.0.1", 1, forge(testVNI+1, mac(1), mac(2), testhost.UDPPacket(b.addr(), a.addr(), 64)))
	if after := a.router.Stats(); after.FastPath.RxPackets != before.FastPath.RxPackets {
		t.Errorf("the fast path took %d frames that an IPsec policy blocks", after.FastPath.RxPackets-before.FastPath.RxPackets)
	}
}

// Without a policy for them, datagrams are what the default policy says.
func TestIntegrationFastPathObeysIPsecDefault(t *testing.T) {
	a, b := newPair(t, onlink.Off, Config{}, nil)
	for _, direction := range []string{"in", "out"} {
		run(t, a.host, "ip", "xfrm", "policy", "setdefault", direction, "block")
		a.awaitOff("default policy")
		if out, err := pingAnyway(t, a.container, b.addr(), 2); err == nil {
			t.Errorf("the default policy for %s isn't obeyed: %s", direction, out)
		}
		run(t, a.host, "ip", "xfrm", "policy", "setdefault", direction, "accept")
		a.awaitOn()
		a.expectCarrying(b)
	}
}

// Somebody's clsact qdisc, with filters or to be, is left as it is.
func TestIntegrationFastPathLeavesForeignQdiscs(t *testing.T) {
	for _, kind := range []string{"clsact", "ingress"} {
		t.Run(kind, func(t *testing.T) {
			a, b := newPair(t, onlink.Off, Config{}, nil)
			testhost.Must(t, b.fast.Close())
			run(t, b.host, "tc", "qdisc", "add", "dev", "eth0", kind)
			fast, err := attachIn(b, Config{Clsact: true})
			if !errors.Is(err, ErrUnsupported) {
				t.Errorf("beside somebody's qdisc: %v", err)
			}
			testhost.Must(t, closeFast(fast))
			if out := run(t, b.host, "tc", "qdisc", "show", "dev", "eth0"); !strings.Contains(out, kind) {
				t.Errorf("somebody's qdisc is gone: %s", out)
			}
			ping(t, a.container, b.addr(), 5)
		})
	}
}

func attachIn(n *node, c Config) (f *FastPath, err error) {
	n.t.Helper()
	testhost.Must(n.t, n.host.Do(func() error {
		f, err = Attach(n.router, c)
		return nil
	}))
	return f, err
}

func closeFast(f *FastPath) error {
	if f == nil {
		return nil
	}
	return f.Close()
}

// Filters that somebody takes away come again.
func TestIntegrationFastPathAttachesAgain(t *testing.T) {
	a, b := newPair(t, onlink.Off, Config{Clsact: true}, nil)
	a.expectCarrying(b)
	testhost.Must(t, a.host.QdiscDel(&netlink.Clsact{QdiscAttrs: netlink.QdiscAttrs{
		LinkIndex: a.host.Index("eth0"), Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_CLSACT,
	}}))
	testhost.Await(t, "the filter to be there again", func() bool {
		filters, err := a.host.FilterList(a.host.Link("eth0"), netlink.HANDLE_MIN_INGRESS)
		return err == nil && len(filters) == 1
	})
	a.expectCarrying(b)
}

// Descriptors of links at other interfaces are no obstacle.
func TestIntegrationFastPathInheritsFromAnotherLink(t *testing.T) {
	a, b := newPair(t, onlink.Off, Config{}, nil)
	d, err := a.fast.Release()
	testhost.Must(t, err)
	run(t, a.host, "ip", "link", "del", "eth0")
	testhost.Join(a.host, b.host, "eth0", "10.66.0")
	a.attach(Config{Inherited: d})
	b.awaitOn()
	a.expectCarrying(b)
}

// Without privileges there is a reason in words, and nothing stays.
func TestIntegrationAttachWithoutPrivileges(t *testing.T) {
	a, b := newPair(t, onlink.Off, Config{}, nil)
	testhost.Must(t, a.fast.Close())
	for name, effective := range map[string]uint32{"none": 0, "CAP_NET_ADMIN alone": 1 << unix.CAP_NET_ADMIN} {
		t.Run(name, func(t *testing.T) {
			before := testhost.Descriptors(t)
			var refused error
			testhost.Must(t, a.host.Do(func() error { // on a thread that ends after this
				h := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
				caps := [2]unix.CapUserData{{Effective: effective, Permitted: effective}}
				if err := unix.Capset(&h, &caps[0]); err != nil {
					return fmt.Errorf("give capabilities up: %w", err)
				}
				_, refused = Attach(a.router, Config{})
				return nil
			}))
			if !errors.Is(refused, ErrUnsupported) || !errors.Is(refused, unix.EPERM) {
				t.Errorf("without privileges: %v", refused)
			}
			if n := testhost.Descriptors(t); n != before {
				t.Errorf("%d descriptors, before %d", n, before)
			}
		})
	}
	ping(t, a.container, b.addr(), 5)
	if out := attachedTo(t, a.host); out != "" {
		t.Errorf("left behind: %s", out)
	}
}

// What netfilter does with the containers' packets is done whoever carries them, also at
// the device itself.
func TestIntegrationFastPathObeysNetfilterOfInnerPackets(t *testing.T) {
	t.Parallel() // it waits more than it works
	a, b := newPair(t, onlink.Off, Config{}, nil)
	for _, chain := range []string{
		"inet z c { type filter hook forward priority 0; }",
		"netdev z c { type filter hook ingress device flannel.1 priority 0; }",
		"netdev z c { type filter hook egress device flannel.1 priority 0; }",
	} {
		a.expectCarrying(b)
		family, _, _ := strings.Cut(chain, " ")
		run(t, a.host, "nft", "add table "+family+" z; add chain "+chain+"; add rule "+family+" z c ip protocol icmp counter drop")
		before := a.router.Stats()
		if out, err := pingAnyway(t, a.container, b.addr(), 5); err == nil {
			t.Errorf("chain %s isn't obeyed: %s", chain, out)
		}
		if rules := run(t, a.host, "nft", "list table "+family+" z"); !strings.Contains(rules, "packets 5 ") {
			t.Errorf("chain %s hasn't dropped 5 packets: %s", chain, rules)
		}
		if after := a.router.Stats(); after.RxPackets-after.FastPath.RxPackets != before.RxPackets-before.FastPath.RxPackets {
			t.Errorf("with chain %s workers got packets", chain)
		}
		run(t, a.host, "nft", "delete table "+family+" z")
	}
}

// The programs know so many source ports. With some of a worker's only, a flow would
// change its port with who carries it.
func TestIntegrationAttachRefusesMorePorts(t *testing.T) {
	h := testhost.New(t)
	h.Address("lo", "10.66.0.1/32")
	testhost.Must(t, h.LinkSetUp(h.Link("lo")))
	r := testhost.Inside(h, func() (*tunnel.Router, error) {
		d, err := device.Open("flannel.1", device.Config{})
		if err != nil {
			return nil, err
		}
		u, err := underlay.Listen(underlay.Config{
			Address: netip.MustParseAddr("10.66.0.1"), Port: testhost.Port, SourcePorts: tcprog.MaxSourcePorts + 1,
		})
		if err != nil {
			return nil, errors.Join(err, d.Close())
		}
		return tunnel.New(d, u, tunnel.Config{VNI: testVNI, MAC: mac(1), Link: link.Config{MTU: 1450}})
	})
	defer func() { testhost.Must(t, r.Close()) }()
	before := testhost.Descriptors(t)
	var refused error
	testhost.Must(t, h.Do(func() error {
		_, refused = Attach(r, Config{})
		return nil
	}))
	if !errors.Is(refused, ErrUnsupported) || !strings.Contains(refused.Error(), "65 ports") {
		t.Errorf("attached: %v", refused)
	}
	if n := testhost.Descriptors(t); n != before {
		t.Errorf("%d descriptors, before %d", n, before)
	}
}

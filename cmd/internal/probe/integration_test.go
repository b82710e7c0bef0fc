package probe

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"uvxlan/tunnel/netnstest"
)

const (
	patience = 30 * time.Second
	routeMTU = 1400 // of the network behind the router
)

// network is a host, which the test has entered, a router and a host behind it that
// answers to whole networks. The router refuses others, each in its way.
type network struct {
	router, far *netnstest.Namespace
}

// addresses are those of one family.
type addresses struct {
	source, router        netip.Addr
	far                   netip.Prefix // answered
	unreachable, prohibit netip.Addr   // refused by the router
	blackhole             netip.Addr   // dropped by it
	overhead              int          // of a payload that isn't there
}

var families = map[string]addresses{
	"IPv4": {
		source: addr("10.0.1.1"), router: addr("10.0.1.254"), far: netip.MustParsePrefix("10.9.0.0/16"),
		unreachable: addr("10.8.1.1"), prohibit: addr("10.8.2.1"), blackhole: addr("10.8.3.1"), overhead: 36,
	},
	"IPv6": {
		source: addr("fd00:1::1"), router: addr("fd00:1::254"), far: netip.MustParsePrefix("fd00:9::/32"),
		unreachable: addr("fd00:8:1::1"), prohibit: addr("fd00:8:2::1"), blackhole: addr("fd00:8:3::1"), overhead: 56,
	},
}

func addr(s string) netip.Addr { return netip.MustParseAddr(s) }

func newNetwork(t *testing.T) *network {
	t.Helper()
	near := netnstest.Enter(t)
	n := &network{router: netnstest.New(t), far: netnstest.New(t)}
	connect(t, near, "eth0", n.router, "eth0", 1500)
	connect(t, n.router, "eth1", n.far, "eth0", routeMTU)
	sh(t, nil, "sysctl", "-qw", "net.ipv4.ping_group_range=0 2147483647")
	for _, f := range [][]string{{"-4", "10.0.1.1/24", "10.0.1.254", "10.0.2.254", "10.0.2.1"}, {"-6", "fd00:1::1/64", "fd00:1::254", "fd00:2::254", "fd00:2::1"}} {
		bits := f[1][len(f[1])-3:]
		sh(t, nil, "ip", f[0], "addr", "add", f[1], "dev", "eth0", "noprefixroute", "nodad")
		sh(t, n.router, "ip", f[0], "addr", "add", f[2]+bits, "dev", "eth0", "nodad")
		sh(t, n.router, "ip", f[0], "addr", "add", f[3]+bits, "dev", "eth1", "nodad")
		sh(t, n.far, "ip", f[0], "addr", "add", f[4]+bits, "dev", "eth0", "nodad")
		sh(t, nil, "ip", f[0], "route", "add", f[2], "dev", "eth0")
		sh(t, nil, "ip", f[0], "route", "add", "default", "via", f[2])
		sh(t, n.far, "ip", f[0], "route", "add", "default", "via", f[3])
	}
	for name, a := range families {
		family := "-" + name[len("IPv"):]
		sh(t, n.far, "ip", family, "route", "add", "local", a.far.String(), "dev", "lo")
		sh(t, n.router, "ip", family, "route", "add", a.far.String(), "via", map[string]string{"IPv4": "10.0.2.1", "IPv6": "fd00:2::1"}[name])
		sh(t, n.router, "ip", family, "route", "add", "unreachable", a.unreachable.String())
		sh(t, n.router, "ip", family, "route", "add", "prohibit", a.prohibit.String())
		sh(t, n.router, "ip", family, "route", "add", "blackhole", a.blackhole.String())
	}
	sh(t, n.router, "sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1", "net.ipv4.icmp_ratelimit=0", "net.ipv6.icmp.ratelimit=0", "net.ipv4.icmp_msgs_per_sec=100000")
	return n
}

// connect joins two hosts by a cable.
func connect(t *testing.T, a *netnstest.Namespace, aName string, b *netnstest.Namespace, bName string, mtu int) {
	t.Helper()
	if err := a.LinkAdd(&netlink.Veth{
		LinkAttrs: netlink.LinkAttrs{Name: aName, MTU: mtu}, PeerName: bName, PeerMTU: uint32(mtu), PeerNamespace: netlink.NsFd(b.FD()),
	}); err != nil {
		t.Fatal(err)
	}
	for _, end := range []struct {
		at   *netnstest.Namespace
		name string
	}{{a, aName}, {b, bName}} {
		sh(t, end.at, "ip", "link", "set", end.name, "up")
	}
}

// sh runs a command on a host; nil is the test's own.
func sh(t *testing.T, at *netnstest.Namespace, name string, args ...string) {
	t.Helper()
	if at == nil {
		netnstest.Run(t, name, args...)
		return
	}
	if err := at.Do(func() error { netnstest.Run(t, name, args...); return nil }); err != nil {
		t.Fatal(err)
	}
}

// eachSocket runs a test with both kinds of sockets and both families.
func eachSocket(t *testing.T, test func(t *testing.T, n *network, p *Prober, a addresses)) {
	t.Helper()
	for kind, socket := range map[string]int{"raw": unix.SOCK_RAW, "ping": unix.SOCK_DGRAM} {
		for family, a := range families {
			t.Run(kind+" "+family, func(t *testing.T) {
				t.Parallel()
				n := newNetwork(t)
				test(t, n, openKind(t, Config{Source: a.source, KernelTime: true}, socket), a)
			})
		}
	}
}

func openKind(t *testing.T, c Config, kind int) *Prober {
	t.Helper()
	s, err := open(c, kind)
	if err != nil {
		t.Fatal(err)
	}
	p := start(s)
	t.Cleanup(func() {
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	})
	return p
}

// Hosts are asked at once, and each answer goes to whom it is for.
func TestIntegrationManyHosts(t *testing.T) {
	eachSocket(t, func(t *testing.T, _ *network, p *Prober, a addresses) {
		const hosts = 500
		var wg sync.WaitGroup
		to := a.far.Addr()
		// Until a neighbour's MAC is known, the kernel keeps no more than some packets.
		if _, err := p.Echo(t.Context(), Request{To: to.Next(), Timeout: patience}); err != nil {
			t.Fatal(err)
		}
		for i := range hosts {
			to = to.Next()
			r := Request{To: to, Size: a.overhead + i, Timeout: patience}
			wg.Go(func() {
				reply, err := p.Echo(t.Context(), r)
				if err != nil || reply.RTT <= 0 || reply.RTT > patience {
					t.Errorf("%+v: %+v, %v", r, reply, err)
				}
			})
		}
		wg.Wait()
		if len(p.waiting) != 0 {
			t.Errorf("%d requests still wait", len(p.waiting))
		}
	})
}

// A router says why it doesn't pass a request on.
func TestIntegrationICMPErrors(t *testing.T) {
	eachSocket(t, func(t *testing.T, _ *network, p *Prober, a addresses) {
		for _, c := range []struct {
			what                string
			request             Request
			tooBig, isForbidden bool
			mtu                 int
		}{
			{what: "unreachable", request: Request{To: a.unreachable}},
			{what: "prohibited", request: Request{To: a.prohibit}, isForbidden: true},
			{what: "too big", request: Request{To: a.far.Addr().Next(), Size: 1500, DontFragment: true}, tooBig: true, mtu: routeMTU},
		} {
			c.request.Timeout = patience
			// The kernel, which has learnt the MTU meanwhile, is passed over the
			// second time.
			for range 2 {
				_, err := p.Echo(t.Context(), c.request)
				e, ok := errors.AsType[*ICMPError](err)
				if !ok || e.From != a.router || e.TooBig() != c.tooBig || e.Prohibited() != c.isForbidden || e.MTU != c.mtu {
					t.Errorf("%s: %+v, %v", c.what, e, err)
				}
			}
		}
	})
}

func TestIntegrationSizes(t *testing.T) {
	eachSocket(t, func(t *testing.T, _ *network, p *Prober, a addresses) {
		to := a.far.Addr().Next()
		for _, r := range []Request{
			{To: to, Size: routeMTU, DontFragment: true},
			{To: to, Size: 1500},
			{To: to, Size: 4000}, // fragmented on this host, and again by an IPv4 router
		} {
			r.Timeout = patience
			_, err := p.Echo(t.Context(), r)
			if e, ok := errors.AsType[*ICMPError](err); ok && e.TooBig() && a.source.Is6() {
				_, err = p.Echo(t.Context(), r) // an IPv6 host learns of what routers don't fragment
			}
			if err != nil {
				t.Errorf("%+v: %v", r, err)
			}
		}
		if _, err := p.Echo(t.Context(), Request{To: to, Size: 1501, DontFragment: true, Timeout: patience}); !errors.Is(err, unix.EMSGSIZE) {
			t.Errorf("more than the interface's MTU: %v", err)
		}
		for _, size := range []int{a.overhead - 1, maxSize + 1} {
			if _, err := p.Echo(t.Context(), Request{To: to, Size: size}); err == nil {
				t.Errorf("%d bytes are sent", size)
			}
		}
	})
}

// What gets no answer ends by its time, its context or with the prober.
func TestIntegrationNoAnswer(t *testing.T) {
	eachSocket(t, func(t *testing.T, _ *network, p *Prober, a addresses) {
		if _, err := p.Echo(t.Context(), Request{To: a.blackhole, Timeout: time.Millisecond}); !errors.Is(err, ErrNoAnswer) {
			t.Errorf("after the time: %v", err)
		}
		ctx, cancel := context.WithCancelCause(t.Context())
		reason := errors.New("reason")
		results := make(chan error)
		ask := func(ctx context.Context) {
			_, err := p.Echo(ctx, Request{To: a.blackhole})
			results <- err
		}
		go ask(ctx)
		go ask(t.Context())
		for len(waitingOf(p)) < 2 {
			time.Sleep(time.Millisecond)
		}
		cancel(reason)
		if err := <-results; !errors.Is(err, reason) {
			t.Errorf("after the context's end: %v", err)
		}
		if err := p.Close(); err != nil {
			t.Error(err)
		}
		if err := <-results; !errors.Is(err, net.ErrClosed) {
			t.Errorf("after Close: %v", err)
		}
		if _, err := p.Echo(t.Context(), Request{To: a.router}); !errors.Is(err, net.ErrClosed) {
			t.Errorf("on a closed prober: %v", err)
		}
	})
}

func waitingOf(p *Prober) []uint16 {
	p.mu.Lock()
	defer p.mu.Unlock()
	var all []uint16
	for seq := range p.waiting {
		all = append(all, seq)
	}
	return all
}

// A reply of other bytes than were sent is none.
func TestIntegrationDamagedReply(t *testing.T) {
	eachSocket(t, func(t *testing.T, n *network, p *Prober, a addresses) {
		family, protocol, kind := "ip", "icmp", "icmp type echo-reply"
		if a.source.Is6() {
			family, protocol, kind = "ip6", "icmpv6", "icmpv6 type echo-reply"
		}
		sh(t, n.far, "nft", "add", "table", family, "t")
		sh(t, n.far, "nft", "add chain "+family+" t out { type filter hook output priority 0; }")
		sh(t, n.far, "nft", fmt.Sprintf("add rule %s t out meta l4proto %s %s @th,128,16 set 0x1234", family, protocol, kind))
		_, err := p.Echo(t.Context(), Request{To: a.far.Addr().Next(), Size: 200, Timeout: time.Second})
		// The kernel itself drops a wrong checksum, but for raw IPv4 sockets.
		if !errors.Is(err, ErrDamaged) && !errors.Is(err, ErrNoAnswer) || p.socket.raw && a.source.Is4() && !errors.Is(err, ErrDamaged) {
			t.Errorf("the result is %v", err)
		}
	})
}

// A host answers from another address where the one that was asked is an anycast
// address to it, as the first of an IPv6 subnet is to a router (RFC 4291, section
// 2.6.1). The mark tells whose answer it is.
func TestIntegrationAnycast(t *testing.T) {
	for kind, socket := range map[string]int{"raw": unix.SOCK_RAW, "ping": unix.SOCK_DGRAM} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			n := newNetwork(t)
			sh(t, n.far, "sysctl", "-qw", "net.ipv6.conf.all.forwarding=1")
			sh(t, n.far, "ip", "link", "add", "cni0", "type", "veth", "peer", "name", "c1")
			sh(t, n.far, "ip", "addr", "add", "fd00:22::1/64", "dev", "cni0", "nodad")
			sh(t, n.far, "ip", "link", "set", "cni0", "up")
			sh(t, n.far, "ip", "link", "set", "c1", "up")
			sh(t, n.router, "ip", "-6", "route", "add", "fd00:22::/64", "via", "fd00:2::1")
			p := openKind(t, Config{Source: families["IPv6"].source}, socket)
			to := addr("fd00:22::")
			reply, err := p.Echo(t.Context(), Request{To: to, Timeout: patience})
			if err != nil || reply.From == to || !reply.From.IsValid() {
				t.Errorf("the reply is %+v, %v", reply, err)
			}
		})
	}
}

// What the host's own firewall drops is the caller's to know, unless the kernel keeps
// it to itself (icmpv6_push_pending_frames).
func TestIntegrationNotSent(t *testing.T) {
	eachSocket(t, func(t *testing.T, _ *network, p *Prober, a addresses) {
		sh(t, nil, "nft", "add table inet t; add chain inet t out { type filter hook output priority 0; policy drop; }")
		want, timeout := error(unix.EPERM), patience
		if a.source.Is6() && !p.socket.raw {
			want, timeout = ErrNoAnswer, time.Millisecond
		}
		if _, err := p.Echo(t.Context(), Request{To: a.router, Timeout: timeout}); !errors.Is(err, want) {
			t.Errorf("the result is %v", err)
		}
		if all := waitingOf(p); len(all) != 0 {
			t.Errorf("%v still wait", all)
		}
	})
}

// A raw socket gets neither replies to other IDs nor errors that quote them.
func TestIntegrationFilter(t *testing.T) {
	for family, a := range families {
		t.Run(family, func(t *testing.T) {
			newNetwork(t)
			other, err := open(Config{Source: a.source}, unix.SOCK_RAW)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = other.close() })
			p := openKind(t, Config{Source: a.source}, unix.SOCK_RAW)
			for p.socket.id == other.id {
				p = openKind(t, Config{Source: a.source}, unix.SOCK_RAW)
			}
			if _, err := p.Echo(t.Context(), Request{To: a.router, Timeout: patience}); err != nil {
				t.Error(err)
			}
			if _, err := p.Echo(t.Context(), Request{To: a.unreachable, Timeout: patience}); err == nil {
				t.Error("it is reachable")
			}
			err = other.control(func(fd int) error {
				_, err := unix.Read(fd, make([]byte, maxSize))
				return err
			})
			if !errors.Is(err, unix.EAGAIN) {
				t.Errorf("the other socket has got something: %v", err)
			}
		})
	}
}

// Without CAP_NET_RAW a ping socket does, if the group may have it.
func TestIntegrationOpen(t *testing.T) {
	newNetwork(t)
	for _, c := range []struct {
		drop bool
		raw  bool
	}{{false, true}, {true, false}} {
		if c.drop {
			dropRaw(t) // of this thread, which ends with the test
		}
		p, err := Open(Config{Source: families["IPv4"].source})
		if err != nil {
			t.Fatal(err)
		}
		if p.socket.raw != c.raw {
			t.Errorf("with the privilege dropped %t, the socket is raw: %t", c.drop, p.socket.raw)
		}
		p.Close()
	}
	if err := os.WriteFile("/proc/sys/net/ipv4/ping_group_range", []byte("1 0"), 0); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(Config{Source: families["IPv4"].source}); !errors.Is(err, unix.EPERM) {
		t.Errorf("without any privilege: %v", err)
	}
	for _, source := range []netip.Addr{{}, addr("fe80::1%eth0"), addr("192.0.2.1")} {
		if p, err := Open(Config{Source: source}); err == nil {
			p.Close()
			t.Errorf("sends from %s", source)
		}
	}
}

// dropRaw takes CAP_NET_RAW from the calling thread.
func dropRaw(t *testing.T) {
	t.Helper()
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&header, &data[0]); err != nil {
		t.Fatal(err)
	}
	data[0].Effective &^= 1 << unix.CAP_NET_RAW
	if err := unix.Capset(&header, &data[0]); err != nil {
		t.Fatal(err)
	}
}

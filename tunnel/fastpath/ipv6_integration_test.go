package fastpath

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"uvxlan/tunnel"
	"uvxlan/tunnel/internal/testhost"
	"uvxlan/tunnel/link"
	"uvxlan/tunnel/onlink"
)

// Plain packets take the fast path over an IPv6 underlay as over an IPv4 one, and
// superpackets are the workers'.
func TestIntegrationFastPathOverIPv6(t *testing.T) {
	t.Parallel() // it waits more than it works
	for name, c := range map[string]Config{"tcx": {}, "clsact": {Clsact: true}} {
		t.Run(name, func(t *testing.T) {
			a, b := newPairOver(t, true, onlink.Off, c, nil)
			bothWays(t, a, b)
			for _, address := range []string{b.addr(), b.addr6()} {
				for _, length := range []int{8, 1402} {
					datagrams(t, echo(t, a.container, b.container, address), 50, length, 1)
				}
				datagrams(t, echo(t, a.container, b.container, address), 20, 1200, 12)
			}
			for _, n := range []*node{a, b} {
				n.expectCarried(200, 200)
			}
			if r := a.fast.Report(); r.Superpackets {
				t.Errorf("superpackets pass over IPv6: %+v", r)
			}
			if left := a.left(); !strings.Contains(left, "tx superpacket:") {
				t.Errorf("no superpacket of TCP was left: %s", left)
			}
			got := a.router.Traffic(b.subnet())
			if got.TxPackets == 0 || got.RxPackets == 0 {
				t.Errorf("of the peer there is %+v", got)
			}
		})
	}
}

// What would have to be obeyed over IPv4 is obeyed over IPv6: routing rules, IPsec
// policies, an address that is gone, and what the kernel looks up.
func TestIntegrationFastPathHazardsOverIPv6(t *testing.T) {
	t.Parallel() // it waits more than it works
	a, b := newPairOver(t, true, onlink.Off, Config{}, nil)
	for _, c := range []struct{ do, undo, reason string }{
		{"ip -6 rule add iif lo lookup 100", "ip -6 rule del iif lo lookup 100", "iif lo"},
		{"ip -6 rule add oif eth0 lookup 100", "ip -6 rule del oif eth0 lookup 100", "oif eth0"},
		{"ip addr del fd66::1/64 dev eth0", "ip addr add fd66::1/64 dev eth0 nodad", "no interface has fd66::1"},
		{"sysctl -qw net.ipv6.conf.flannel/1.forwarding=0", "sysctl -qw net.ipv6.conf.flannel/1.forwarding=1", "net/ipv6/conf/flannel.1/forwarding is 0"},
	} {
		script(t, a.host, c.do)
		a.awaitOff(c.reason)
		script(t, a.host, c.undo)
		a.awaitOn()
		a.expectCarrying(b)
	}
	// Rules and policies of IPv4 are none for it.
	script(t, a.host, `
		ip rule add iif lo lookup 100
		ip xfrm policy add dir out src 0.0.0.0/0 dst 0.0.0.0/0 action allow`)
	for _, policy := range []string{"src fd66::1/128 dst fd66::2/128 proto udp", "src fd66::/64 dst fd66::/64", "src ::/0 dst ::/0"} {
		script(t, a.host, "ip xfrm policy add dir out "+policy+" action allow")
		testhost.Await(t, "the peer to be excluded by "+policy, func() bool {
			ok, reason := a.fast.Carries(b.subnet())
			return !ok && strings.Contains(reason, "IPsec")
		})
		before := a.router.Stats().FastPath
		ping(t, a.container, b.addr(), 20)
		if after := a.router.Stats().FastPath; after != before {
			t.Errorf("packets that an IPsec policy is for took the fast path: %+v, before %+v", after, before)
		}
		script(t, a.host, "ip xfrm policy delete dir out "+strings.ReplaceAll(policy, " action allow", ""))
		testhost.Await(t, "the peer to be carried", func() bool { ok, _ := a.fast.Carries(b.subnet()); return ok })
		a.expectCarrying(b)
	}
}

// A host with both families carries the peers of each, and where something speaks
// against one of them, those of the other.
func TestIntegrationFastPathOfBothFamilies(t *testing.T) {
	t.Parallel() // it waits more than it works
	hosts := [2]*testhost.Host{}
	hosts[0], hosts[1] = newHosts(t, true)
	var nodes [2]*node
	for i, h := range hosts {
		n := i + 1
		h.Address("eth0", fmt.Sprintf("10.66.0.%d/24", n))
		nodes[i] = newNodeOf(t, n, h, func() (*tunnel.Router, error) {
			return tunnel.Open("flannel.1", tunnel.Setup{
				Address: netip.AddrFrom4([4]byte{10, 66, 0, byte(n)}), AddressV6: netip.MustParseAddr(fmt.Sprintf("fd66::%d", n)),
				Port: testhost.Port, VNI: testVNI, MAC: mac(n), Workers: 2, Direct: onlink.Off,
				Link: link.Config{
					MTU:       1450,
					Addresses: []netip.Addr{netip.AddrFrom4([4]byte{10, 0, byte(n), 0}), netip.MustParseAddr(fmt.Sprintf("fd00:0:0:%d::", n))},
					Networks:  []netip.Prefix{netip.MustParsePrefix("10.0.0.0/16"), netip.MustParsePrefix("fd00::/48")},
				},
			})
		})
		nodes[i].attach(Config{})
	}
	a, b := nodes[0], nodes[1]
	for _, pair := range [][2]*node{{a, b}, {b, a}} {
		peers := pair[1].peers()
		peers[1].Underlay = netip.MustParseAddr(fmt.Sprintf("fd66::%d", pair[1].n)) // of its IPv6 subnet
		testhost.Must(t, pair[0].router.UpdatePeers(peers, nil))
	}
	carried := func(to string) func() bool {
		return func() bool {
			before := a.router.Stats().FastPath
			ping(t, a.container, to, 20)
			after := a.router.Stats().FastPath
			return after.TxPackets >= before.TxPackets+20 && after.RxPackets >= before.RxPackets+20
		}
	}
	for range 2 {
		testhost.Await(t, "pings over IPv4", carried(b.addr()))
		testhost.Await(t, "pings over IPv6", carried(b.addr6()))
		script(t, a.host, "ip -6 rule add iif lo lookup 100")
		wide := b.peers()[1].Subnet
		testhost.Await(t, "the IPv6 peer to be excluded", func() bool {
			ok, reason := a.fast.Carries(wide)
			return !ok && strings.Contains(reason, "iif lo")
		})
		if r := a.fast.Report(); !r.On || r.Peers != 1 || r.Excluded != 1 {
			t.Errorf("with a rule for IPv6: %+v", r)
		}
		testhost.Await(t, "pings over IPv4", carried(b.addr()))
		before := a.router.Stats().FastPath
		ping(t, a.container, b.addr6(), 20)
		if after := a.router.Stats().FastPath; after.TxPackets > before.TxPackets+10 { // but neighbours' own
			t.Errorf("over IPv6 the fast path carried %+v, before %+v", after, before)
		}
		script(t, a.host, "ip -6 rule del iif lo lookup 100")
		testhost.Await(t, "the IPv6 peer to be carried", func() bool { ok, _ := a.fast.Carries(wide); return ok })
	}
}

// The kernel doesn't take datagrams without a checksum over IPv6 for the workers, and the
// programs don't take them either.
func TestIntegrationFastPathTakesNoMissingChecksum(t *testing.T) {
	a, b := newPairOver(t, true, onlink.Off, Config{}, nil)
	sysctl(t, b.host, "net.ipv6.conf.c0.disable_ipv6", "1") // which says something by itself
	const count = 1000
	frame := forge(testVNI, mac(2), mac(1), testhost.UDPPacket(a.addr(), b.addr(), 64))
	send := func(checksum bool) {
		c := testhost.Inside(a.host, func() (*net.UDPConn, error) {
			return net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(netip.AddrPortFrom(b.outer(), testhost.Port)))
		})
		defer c.Close()
		if !checksum {
			const noCheck6Tx = 101 // UDP_NO_CHECK6_TX of linux/udp.h
			raw, err := c.SyscallConn()
			testhost.Must(t, err)
			testhost.Must(t, errors.Join(raw.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.IPPROTO_UDP, noCheck6Tx, 1) }), err))
		}
		for range count {
			if _, err := c.Write(frame); err != nil {
				t.Fatal(err)
			}
		}
	}
	before, container := b.router.Stats(), b.received()
	send(false)
	testhost.Await(t, "the program to have seen them all", func() bool { return b.fast.Report().LeftRx["checksum"] >= count })
	if after := b.router.Stats(); after.RxPackets != before.RxPackets {
		t.Errorf("%d of them came in, by the fast path %d", after.RxPackets-before.RxPackets, after.FastPath.RxPackets-before.FastPath.RxPackets)
	}
	if n := b.received() - container; n > 0 {
		t.Errorf("the container got %d packets", n)
	}
	send(true)
	testhost.Await(t, "those with a checksum to come in", func() bool { return b.router.Stats().RxPackets >= before.RxPackets+count })
}

package tunnel

import (
	"bytes"
	"context"
	"errors"
	"net/netip"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"uvxlan/tunnel/internal/testhost"
	"uvxlan/tunnel/link"
	"uvxlan/tunnel/offload"
	"uvxlan/tunnel/underlay"
)

func TestAdoptedUnderlay(t *testing.T) {
	port := testhost.FreePort(t)
	a := startNode(t, 1, port, nil)
	for name, s := range map[string]Sockets{
		"one socket for both ways": {UDP: []underlay.Sockets{{Receive: []int{testhost.OpenUDP(t, "127.0.0.2", port, false)}}}},
		"sending sockets": {UDP: []underlay.Sockets{{
			Receive: []int{testhost.OpenUDP(t, "127.0.0.3", port, false)},
			Send:    [][]int{{testhost.OpenUDP(t, "127.0.0.3", 0, false), testhost.OpenUDP(t, "127.0.0.3", 0, false)}},
		}}},
	} {
		t.Run(name, func(t *testing.T) {
			u, err := underlay.Adopt(s.UDP, offload.All)
			testhost.Must(t, err)
			local := u.Locals()[0]
			n := local.Addr().As4()[3]
			device := testhost.NewMemoryDevice(t, 1, 0)
			r, err := New(device, u, Config{VNI: testVNI, MAC: testMAC(n), Link: link.Config{MTU: 1450}})
			testhost.Must(t, err)
			b := &node{Router: r, queue: device.Far[0]}
			b.run(t)
			subnet := netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 0, n, 0}), 24)
			addPeers(t, b, a.peer)
			addPeers(t, a, Peer{Subnet: subnet, Underlay: local.Addr(), MAC: testMAC(n)})
			there, here := netip.AddrFrom4([4]byte{10, 0, n, 9}).String(), "10.0.1.9"
			out, back := testhost.UDPPacket(here, there, 500), testhost.UDPPacket(there, here, 700)
			a.queue.Send(t, out)
			if got, _ := b.queue.Receive(t); !bytes.Equal(got, out) {
				t.Error("the packet to the adopted socket changed")
			}
			b.queue.Send(t, back)
			if got, _ := a.queue.Receive(t); !bytes.Equal(got, back) {
				t.Error("the packet from the adopted socket changed")
			}
			testhost.Must(t, b.Close())
			for _, fd := range append([]int{s.UDP[0].Receive[0]}, first(s.UDP[0].Send)...) {
				if testhost.IsOpen(fd) {
					t.Errorf("descriptor %d is open after Close", fd)
				}
			}
		})
	}
}

// A router whose device is another's keeps running when it can't be released.
func TestReleaseRefused(t *testing.T) {
	port := testhost.FreePort(t)
	a, b := startNode(t, 1, port, nil), newNode(t, 2, port, nil)
	if _, err := a.Release(); !errors.Is(err, ErrNotReleased) {
		t.Errorf("release of a memory device: %v", err)
	}
	addPeers(t, a, b.peer)
	addPeers(t, b, a.peer)
	b.run(t)
	sent := testhost.UDPPacket("10.0.1.9", "10.0.2.9", 100)
	a.queue.Send(t, sent)
	if got, _ := b.queue.Receive(t); !bytes.Equal(got, sent) {
		t.Error("the packet changed on its way")
	}
	testhost.Must(t, b.Close())
	if _, err := b.Release(); !errors.Is(err, ErrClosed) {
		t.Errorf("release of a closed router: %v", err)
	}
	if err := b.Run(context.Background()); !errors.Is(err, ErrClosed) {
		t.Error(err)
	}
}

func first(pools [][]int) []int {
	if len(pools) == 0 {
		return nil
	}
	return pools[0]
}

// Sockets with IP_RECVERR are told of ICMP, which one peer causes and which ends no
// router: adoption unsets it, and a donor that sets it again does no harm.
func TestAdoptedSocketsAreToldOfICMP(t *testing.T) {
	port := testhost.FreePort(t)
	a := startNode(t, 1, port, nil)
	fd := testhost.OpenUDP(t, "127.0.0.2", port, false)
	set := func() { testhost.Must(t, unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_RECVERR, 1)) }
	set()
	u, err := underlay.Adopt([]underlay.Sockets{{Receive: []int{fd}}}, offload.All)
	testhost.Must(t, err)
	if on, err := unix.GetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_RECVERR); on != 0 || err != nil {
		t.Errorf("IP_RECVERR is %d after the adoption, %v", on, err)
	}
	device := testhost.NewMemoryDevice(t, 1, 0)
	r, err := New(device, u, Config{VNI: testVNI, MAC: testMAC(2), Link: link.Config{MTU: 1450}})
	testhost.Must(t, err)
	b := &node{Router: r, queue: device.Far[0]}
	b.run(t)
	nobody := Peer{netip.MustParsePrefix("10.0.77.0/24"), netip.MustParseAddr("127.0.0.77"), testMAC(77)}
	addPeers(t, b, a.peer, nobody)
	addPeers(t, a, Peer{netip.MustParsePrefix("10.0.2.0/24"), netip.MustParseAddr("127.0.0.2"), testMAC(2)})
	set()
	for i := range 20 {
		b.queue.Send(t, testhost.UDPPacket("10.0.2.9", "10.0.77.9", 10)) // port unreachable
		out, back := testhost.UDPPacket("10.0.1.9", "10.0.2.9", 100+i), testhost.UDPPacket("10.0.2.9", "10.0.1.9", 200+i)
		a.queue.Send(t, out)
		if got, _ := b.queue.Receive(t); !bytes.Equal(got, out) {
			t.Error("the packet to the adopted socket changed")
		}
		b.queue.Send(t, back)
		if got, _ := a.queue.Receive(t); !bytes.Equal(got, back) {
			t.Error("the packet from the adopted socket changed")
		}
	}
}

// Peers that packets would come back from, or that no interface leads to, are none.
func TestUnreachablePeersAreRefused(t *testing.T) {
	a := newNode(t, 1, testhost.FreePort(t), nil)
	defer a.Close()
	for address, want := range map[string]string{
		"127.0.0.1": "our own address", "::ffff:127.0.0.1": "our own address", "fe80::9": "link-local",
	} {
		p := Peer{netip.MustParsePrefix("10.0.9.0/24"), netip.MustParseAddr(address), testMAC(9)}
		for how, err := range map[string]error{
			"update": a.UpdatePeers([]Peer{p}, nil), "replacement": a.ReplacePeers([]Peer{p}),
		} {
			if err == nil || !strings.Contains(err.Error(), want) || len(a.Peers()) > 0 {
				t.Errorf("%s by %s: %v, peers %v", how, address, err, a.Peers())
			}
		}
	}
}

package main

import (
	"bytes"
	"context"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"testing"

	"go.uber.org/goleak"

	"uvxlan/tunnel"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// pair is two members on loopback addresses that know each other.
func pair(t *testing.T) (a, b *node) {
	t.Helper()
	addresses := []netip.Addr{netip.MustParseAddr("127.0.0.61"), netip.MustParseAddr("127.0.0.62")}
	subnets := []netip.Prefix{netip.MustParsePrefix("10.0.61.0/24"), netip.MustParsePrefix("10.0.62.0/24")}
	port := freePort(t)
	var nodes []*node
	for i, address := range addresses {
		m := &membership{vni: 1, port: port, mtu: 1450, subnet: subnets[i]}
		n, err := join(address, m)
		if err != nil {
			t.Fatal(err)
		}
		peer := tunnel.Peer{Subnet: subnets[1-i], Underlay: addresses[1-i], MAC: macOf(addresses[1-i])}
		if err := n.router.ReplacePeers([]tunnel.Peer{peer}); err != nil {
			t.Fatal(err)
		}
		ran := make(chan error, 1)
		go func() { ran <- n.router.Run(context.Background()) }()
		t.Cleanup(func() {
			if err := n.router.Close(); err != nil {
				t.Error(err)
			}
			if err := <-ran; err != nil {
				t.Error(err)
			}
		})
		nodes = append(nodes, n)
	}
	return nodes[0], nodes[1]
}

func freePort(t *testing.T) uint16 {
	t.Helper()
	c, err := net.ListenUDP("udp4", &net.UDPAddr{})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	return uint16(c.LocalAddr().(*net.UDPAddr).Port)
}

// connect opens a connection from a to b inside the overlay.
func connect(t *testing.T, a, b *node) (from, to net.Conn) {
	t.Helper()
	l, err := b.stack.ListenTCP(&net.TCPAddr{Port: 80})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	accepted := make(chan net.Conn, 1)
	go func() {
		c, _ := l.Accept()
		accepted <- c
	}()
	from, err = a.stack.DialContext(t.Context(), "tcp", netip.AddrPortFrom(b.address, 80).String())
	if err != nil {
		t.Fatal(err)
	}
	if to = <-accepted; to == nil {
		t.Fatal("no connection was accepted")
	}
	return from, to
}

func TestMembersExchangeStreams(t *testing.T) {
	a, b := pair(t)
	from, to := connect(t, a, b)
	defer from.Close()
	defer to.Close()
	data := make([]byte, 4<<20)
	_, _ = rand.NewChaCha8([32]byte{}).Read(data)
	go func() {
		_, _ = from.Write(data)
		from.Close()
	}()
	got, err := io.ReadAll(to)
	if err != nil || !bytes.Equal(got, data) {
		t.Errorf("of %d bytes %d came, or others: %v", len(data), len(got), err)
	}
}

// A member that leaves in the middle of a transfer leaves nothing behind.
func TestMemberLeavesWhileBusy(t *testing.T) {
	for range 10 {
		a, b := pair(t)
		from, to := connect(t, a, b)
		go func() {
			for buf := make([]byte, 64<<10); ; {
				if _, err := from.Write(buf); err != nil {
					return
				}
			}
		}()
		if _, err := io.CopyN(io.Discard, to, 1<<20); err != nil {
			t.Fatal(err)
		}
		for _, n := range []*node{a, b} {
			if err := n.router.Close(); err != nil {
				t.Error(err)
			}
		}
		from.Close()
		to.Close()
	}
}

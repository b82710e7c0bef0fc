package tunnel

import (
	"bytes"
	"context"
	"errors"
	"net"
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"

	"uvxlan/tunnel/internal/testhost"
	"uvxlan/tunnel/offload"
)

// openUDP opens a socket as anybody would, bound to an address of 127.0.0.0/8.
func openUDP(t testing.TB, address string, port uint16, opts ...sockopt) int {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM, 0)
	testhost.Must(t, err)
	t.Cleanup(func() { unix.Close(fd) }) // no error if it was closed before: see isOpen
	testhost.Must(t, setOptions(fd, opts))
	testhost.Must(t, unix.Bind(fd, unixSockaddr(netip.AddrPortFrom(netip.MustParseAddr(address), port))))
	return fd
}

func TestAdoptedUnderlay(t *testing.T) {
	port := freePort(t)
	a := startNode(t, 1, port, nil)
	for name, s := range map[string]Sockets{
		"one socket for both ways": {UDP: []UDPSockets{{Receive: []int{openUDP(t, "127.0.0.2", port)}}}},
		"sending sockets": {UDP: []UDPSockets{{
			Receive: []int{openUDP(t, "127.0.0.3", port)},
			Send:    [][]int{{openUDP(t, "127.0.0.3", 0), openUDP(t, "127.0.0.3", 0)}},
		}}},
	} {
		t.Run(name, func(t *testing.T) {
			local, err := boundTo(s.UDP[0].Receive[0])
			testhost.Must(t, err)
			n := local.Addr().As4()[3]
			u, err := AdoptUnderlay(s.UDP, offload.All)
			testhost.Must(t, err)
			device := testhost.NewMemoryDevice(t, 1, 0)
			r, err := New(device, u, Config{VNI: testVNI, Port: port, MAC: testMAC(n), MTU: 1450})
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

func first(pools [][]int) []int {
	if len(pools) == 0 {
		return nil
	}
	return pools[0]
}

func udp(receive []int, send ...[]int) Sockets {
	return Sockets{UDP: []UDPSockets{{Receive: receive, Send: send}}}
}

// What doesn't fit is refused in words, and stays its owner's.
func TestAdoptRefusesSockets(t *testing.T) {
	port := freePort(t)
	alone := openUDP(t, "127.0.0.4", port)
	shared := []int{openUDP(t, "127.0.0.5", port, reusePort), openUDP(t, "127.0.0.5", port, reusePort)}
	other, sender := openUDP(t, "127.0.0.6", port, reusePort), openUDP(t, "127.0.0.5", 0)
	unbound, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM, 0)
	testhost.Must(t, err)
	t.Cleanup(func() { unix.Close(unbound) })
	tcp, err := net.Listen("tcp4", "127.0.0.1:0")
	testhost.Must(t, err)
	t.Cleanup(func() { tcp.Close() })
	file, err := tcp.(*net.TCPListener).File()
	testhost.Must(t, err)
	t.Cleanup(func() { file.Close() })
	stream := int(file.Fd())
	for name, sockets := range map[string]Sockets{
		"none":                     {},
		"TCP":                      udp([]int{stream}),
		"unbound":                  udp([]int{unbound}),
		"another address":          udp([]int{shared[0], other}),
		"without SO_REUSEPORT":     udp([]int{alone, alone}),
		"pools missing":            udp(shared, []int{sender}),
		"an empty pool":            udp(shared, []int{sender}, []int{}),
		"ports differ":             udp(shared, []int{sender}, []int{openUDP(t, "127.0.0.5", 0)}),
		"one family twice":         {UDP: []UDPSockets{{Receive: []int{alone}}, {Receive: []int{other}}}},
		"a descriptor that is not": udp([]int{1 << 20}),
	} {
		u, err := AdoptUnderlay(sockets.UDP, 0)
		if u != nil || !errors.Is(err, ErrUnfit) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, fd := range []int{alone, shared[0], shared[1], other, sender, unbound, stream} {
		if !testhost.IsOpen(fd) {
			t.Errorf("descriptor %d was closed", fd)
		}
	}
}

// A router whose device is another's keeps running when it can't be released.
func TestReleaseRefused(t *testing.T) {
	port := freePort(t)
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

// Command outside is a runtime that embeds uvxlan: two hosts in one process. It
// is built as a module of its own.
package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/netip"
	"os"
	"runtime"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"uvxlan/encap"
	"uvxlan/tunnel"
	"uvxlan/tunnel/link"
	"uvxlan/tunnel/offload"
	"uvxlan/tunnel/tunneltest"
	"uvxlan/tunnel/underlay"

	"example.test/outside/join"
)

func main() {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	scenarios := map[string]func(context.Context) error{"memory": memory, "namespaces": namespaces, "alone": alone}
	scenario, ok := scenarios[os.Args[1]]
	if !ok {
		log.Fatalf("there is no scenario %q", os.Args[1])
	}
	if err := scenario(ctx); err != nil {
		log.Fatal(err)
	}
	fmt.Println("ok")
}

var network = netip.MustParsePrefix("172.7.0.0/16")

// host is one of the two.
type host struct {
	subnet  netip.Prefix
	address netip.Addr
	mac     encap.MAC
}

func (h host) peer() tunnel.Peer {
	return tunnel.Peer{Subnet: h.subnet, Underlay: h.address, MAC: h.mac}
}

func two(addresses ...string) (a, b host) {
	return host{netip.MustParsePrefix("172.7.21.0/24"), netip.MustParseAddr(addresses[0]), encap.MAC{2, 21}},
		host{netip.MustParsePrefix("172.7.22.0/24"), netip.MustParseAddr(addresses[1]), encap.MAC{2, 22}}
}

// memory joins two devices in memory over loopback; it needs no privilege.
func memory(ctx context.Context) error {
	port, err := strconv.ParseUint(os.Args[2], 10, 16)
	if err != nil {
		return err
	}
	a, b := two("127.0.21.1", "127.0.22.1")
	start := func(own, other host) (*tunneltest.Device, *tunnel.Router, error) {
		device, err := tunneltest.NewDevice("memory0", 1)
		if err != nil {
			return nil, nil, err
		}
		sockets, err := underlay.Listen(underlay.Config{Address: own.address, Port: uint16(port), Offloads: offload.All})
		if err != nil {
			return nil, nil, err
		}
		router, err := tunnel.New(device, sockets, tunnel.Config{VNI: 1, MAC: own.mac, Link: link.Config{MTU: 1450}})
		if err != nil {
			return nil, nil, err
		}
		return device, router, router.ReplacePeers([]tunnel.Peer{other.peer()})
	}
	left, first, err := start(a, b)
	if err != nil {
		return err
	}
	right, second, err := start(b, a)
	if err != nil {
		return err
	}
	ended := make(chan error, 2)
	for _, r := range []*tunnel.Router{first, second} {
		go func() { ended <- r.Run(ctx) }()
	}
	if err := errors.Join(exchange(ctx, left, right, a, b), exchange(ctx, right, left, b, a)); err != nil {
		return err
	}
	if s := first.Stats(); s.Dropped() > 0 {
		return fmt.Errorf("dropped: %+v", s)
	}
	return errors.Join(first.Close(), second.Close(), <-ended, <-ended)
}

// exchange sends packets of all sizes from one host's container to the other's.
func exchange(ctx context.Context, from, to *tunneltest.Device, a, b host) error {
	for size := 28; size <= 1450; size++ {
		packet := bytes.Repeat([]byte{byte(size)}, size)
		p := encap.IPv4(packet)
		copy(packet, []byte{0x45, 0, 0, 0, 0, 0, 0, 0, 64, 253}) // an experiment's protocol, RFC 3692
		copy(packet[12:], a.subnet.Addr().Next().AsSlice())
		copy(packet[16:], b.subnet.Addr().Next().AsSlice())
		p.SetTotalLen(size)
		p.UpdateChecksum()
		if err := from.Send(packet); err != nil {
			return err
		}
		got, err := to.Receive(ctx)
		if err != nil {
			return err
		}
		if !bytes.Equal(got, packet) {
			return fmt.Errorf("%d bytes arrived as %d others", len(packet), len(got))
		}
	}
	return nil
}

// namespaces joins two hosts that are the network namespaces of descriptors 3 and
// 4, as the README says.
func namespaces(ctx context.Context) error {
	a, b := two("192.168.14.21", "192.168.14.22")
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	ended := make(chan error, 2)
	for fd, h := range map[int][2]host{3: {a, b}, 4: {b, a}} {
		go func() {
			ended <- inside(fd, func() error {
				join.Join(ctx, h[0].address, h[0].subnet.Addr(), network, h[0].mac, h[1].peer())
				return nil
			})
		}()
	}
	if err := transfer(ctx, a, b); err != nil {
		return err
	}
	stop()
	return errors.Join(<-ended, <-ended)
}

// inside runs f in a network namespace, on a thread that ends with the goroutine.
func inside(fd int, f func() error) error {
	runtime.LockOSThread()
	if err := unix.Setns(fd, unix.CLONE_NEWNET); err != nil {
		return err
	}
	return f()
}

// transfer sends a megabyte from one host to the other and back.
func transfer(ctx context.Context, a, b host) error {
	server := net.TCPAddrFromAddrPort(netip.AddrPortFrom(b.subnet.Addr(), 7))
	echoed := make(chan error, 1)
	go func() {
		echoed <- inside(4, func() error {
			l, err := retry(ctx, func() (net.Listener, error) { return net.ListenTCP("tcp4", server) })
			if err != nil {
				return err
			}
			c, err := l.Accept()
			if err != nil {
				return err
			}
			_, err = io.Copy(c, c)
			return errors.Join(err, c.Close(), l.Close())
		})
	}()
	asked := make(chan error, 1)
	go func() { asked <- inside(3, func() error { return ask(ctx, server) }) }()
	return errors.Join(<-asked, <-echoed)
}

func ask(ctx context.Context, server *net.TCPAddr) error {
	c, err := retry(ctx, func() (*net.TCPConn, error) { return net.DialTCP("tcp4", nil, server) })
	if err != nil {
		return err
	}
	sent := bytes.Repeat([]byte("0123456789abcdef"), 1<<16)
	wrote := make(chan error, 1)
	go func() {
		_, err := c.Write(sent)
		wrote <- errors.Join(err, c.CloseWrite())
	}()
	got, err := io.ReadAll(c)
	if !bytes.Equal(got, sent) {
		err = errors.Join(err, fmt.Errorf("%d bytes came back of %d", len(got), len(sent)))
	}
	return errors.Join(err, <-wrote, c.Close())
}

// retry waits for the other goroutines' devices to be up.
func retry[T any](ctx context.Context, f func() (T, error)) (T, error) {
	for {
		result, err := f()
		if err == nil || ctx.Err() != nil {
			return result, err
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// alone is a host on loopback, in a user namespace of its own.
func alone(ctx context.Context) error {
	a, b := two("127.0.0.1", "127.0.0.2")
	ctx, stop := context.WithCancel(ctx)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		join.Join(ctx, a.address, a.subnet.Addr(), network, a.mac, b.peer())
	}()
	_, err := retry(ctx, func() (any, error) {
		l, err := net.ListenTCP("tcp4", net.TCPAddrFromAddrPort(netip.AddrPortFrom(a.subnet.Addr(), 0)))
		if err != nil {
			return nil, err
		}
		return nil, l.Close()
	})
	stop()
	<-ended
	return err
}

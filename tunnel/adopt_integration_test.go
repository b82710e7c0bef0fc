package tunnel

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"uvxlan/encap"
	"uvxlan/tunnel/offload"
)

// attachTUN attaches a queue as anybody would.
func attachTUN(name string, flags uint16) (int, error) {
	fd, err := unix.Open(tunPath, unix.O_RDWR, 0)
	if err != nil {
		return -1, err
	}
	return fd, attachQueue(fd, name, flags)
}

func TestIntegrationAdoptChecksDevice(t *testing.T) {
	const good = unix.IFF_TUN | unix.IFF_NO_PI | unix.IFF_VNET_HDR
	h := newMachine(t)
	for _, c := range []struct {
		name   string
		flags  uint16
		queues int
		want   string // in the error; empty if it is adopted
	}{
		{"fit0", good, 1, ""},
		{"fit1", good | unix.IFF_MULTI_QUEUE, 1, ""},
		{"fit3", good | unix.IFF_MULTI_QUEUE, 3, ""},
		{"tap0", unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR, 1, "IFF_TUN"},
		{"plain0", unix.IFF_TUN | unix.IFF_NO_PI, 1, "IFF_VNET_HDR"},
		{"twice0", good | unix.IFF_MULTI_QUEUE, 0, "twice"},
	} {
		fds := inside(h, func() (fds []int, err error) {
			for range max(c.queues, 1) {
				fd, err := attachTUN(c.name, c.flags)
				if err != nil {
					return nil, err
				}
				fds = append(fds, fd)
			}
			return fds, nil
		})
		if c.queues == 0 {
			fds = append(fds, fds[0])
		}
		d, err := AdoptDevice(fds, offload.All)
		switch {
		case c.want != "":
			if !errors.Is(err, ErrUnfit) || !isOpen(fds[0]) {
				t.Errorf("%s: %v; its descriptor is open: %t", c.name, err, isOpen(fds[0]))
			}
			must(t, unix.Close(fds[0]))
		case err != nil:
			t.Errorf("%s: %v", c.name, err)
		default:
			if d.Name() != c.name || len(d.Queues()) != c.queues || !d.Offloads().Has(offload.TSO) {
				t.Errorf("%s: %s, %d queues, %s", c.name, d.Name(), len(d.Queues()), d.Offloads())
			}
			must(t, d.Close())
			if isOpen(fds[0]) {
				t.Errorf("%s: a queue is open after Close", c.name)
			}
		}
	}
}

// vtep is a host of 10.66.0.0/24 with 10.99.n.1 as its overlay address.
type vtep struct {
	*machine
	n       byte
	router  *Router
	running sync.WaitGroup
}

func vtepMAC(n byte) encap.MAC { return encap.MAC{2, 0, 0, 0, 9, n} }

func vtepAddress(n byte) netip.Addr { return netip.AddrFrom4([4]byte{10, 99, n, 1}) }

func vtepPeer(n byte) Peer {
	return Peer{Subnet: netip.PrefixFrom(vtepAddress(n), 24).Masked(), Underlay: netip.AddrFrom4([4]byte{10, 66, 0, n}), MAC: vtepMAC(n)}
}

func vtepConfig(n byte) Config {
	return Config{VNI: 7, Port: wirePort, MAC: vtepMAC(n), MTU: 1450, Addresses: []netip.Addr{vtepAddress(n)}}
}

func vtepLink(n byte) LinkConfig {
	return LinkConfig{Addresses: []netip.Addr{vtepAddress(n)}, Networks: []netip.Prefix{netip.MustParsePrefix("10.99.0.0/16")}, MTU: 1450}
}

// start opens everything in the machine and runs the router.
func (v *vtep) start(workers int, direct DirectMode, peers ...Peer) {
	v.t.Helper()
	u := inside(v.machine, func() (*Underlay, error) {
		return Listen(UnderlayConfig{Address: vtepPeer(v.n).Underlay, Port: wirePort, Workers: workers, Offloads: offload.All, Direct: direct})
	})
	d := inside(v.machine, func() (Device, error) {
		d, err := OpenDevice("overlay0", DeviceConfig{Queues: workers, Offloads: offload.All})
		return d, errors.Join(err, ConfigureLink("overlay0", vtepLink(v.n)))
	})
	v.run(d, u, peers...)
	v.t.Cleanup(func() {
		must(v.t, v.router.Close())
		v.running.Wait()
	})
}

func (v *vtep) run(d Device, u *Underlay, peers ...Peer) {
	v.t.Helper()
	r, err := New(d, u, vtepConfig(v.n))
	must(v.t, err)
	must(v.t, r.ReplacePeers(peers))
	v.router = r
	v.running.Go(func() {
		// It may be released before it runs.
		if err := r.Run(context.Background()); err != nil && !errors.Is(err, ErrClosed) {
			v.t.Error(err)
		}
	})
}

// handOver puts another router in the place of the one that runs.
func (v *vtep) handOver(direct DirectMode) {
	v.t.Helper()
	peers := v.router.Peers()
	begin := time.Now()
	given, err := v.router.Release()
	must(v.t, err)
	released := time.Since(begin)
	must(v.t, v.router.Close()) // has nothing to close
	u := inside(v.machine, func() (*Underlay, error) {
		return AdoptUnderlay(given.Sockets, UnderlayConfig{Offloads: offload.All, Direct: direct})
	})
	d, err := AdoptDevice(given.Queues, offload.All)
	must(v.t, err)
	v.run(d, u, peers...)
	v.t.Logf("released in %s, all in %s", released, time.Since(begin))
}

// Packets that come while nobody moves them wait: of a stream at a steady pace
// none is lost while router after router takes the descriptors over, at either
// end, and what each leaves open is no more than what it got.
func TestIntegrationReleaseLosesNothing(t *testing.T) {
	for name, direct := range map[string]DirectMode{"vxlan": DirectOff, "socket": DirectSocket} {
		t.Run(name, func(t *testing.T) {
			a, b := &vtep{machine: newMachine(t), n: 1}, &vtep{machine: newMachine(t), n: 2}
			join(a.machine, b.machine, "eth0", "10.66.0")
			a.start(2, direct, vtepPeer(2))
			b.start(2, direct, vtepPeer(1))
			in := inside(b.machine, func() (net.PacketConn, error) { return net.ListenPacket("udp4", "10.99.2.1:0") })
			defer in.Close()
			takeAll(t, in.(*net.UDPConn))
			out := inside(a.machine, func() (net.Conn, error) { return net.Dial("udp4", in.LocalAddr().String()) })
			defer out.Close()
			// No more are on their way than any queue has room for.
			const count, pause, inFlight = 2000, 100 * time.Microsecond, 200
			var arrived atomic.Uint32
			var sending sync.WaitGroup
			defer sending.Wait()
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			sending.Go(func() {
				for i := range uint32(count) {
					for i >= arrived.Load()+inFlight && ctx.Err() == nil {
						time.Sleep(pause)
					}
					if _, err := out.Write(binary.BigEndian.AppendUint32(nil, i)); err != nil {
						t.Error(err)
					}
					time.Sleep(pause)
				}
			})
			before := openDescriptors(t)
			handovers := 0
			var got [count]bool
			buf := make([]byte, 64)
			for received := range count {
				must(t, in.SetReadDeadline(time.Now().Add(patience)))
				n, _, err := in.ReadFrom(buf)
				if err != nil {
					t.Fatalf("after %d of %d packets and %d handovers: %v", received, count, handovers, err)
				}
				i := binary.BigEndian.Uint32(buf[:n])
				if got[i] {
					t.Errorf("packet %d came twice", i)
				}
				got[i] = true
				arrived.Add(1)
				if received%200 == 100 {
					[]*vtep{a, b}[handovers%2].handOver(direct)
					handovers++
				}
			}
			if after := openDescriptors(t); after > before {
				t.Errorf("%d handovers made %d descriptors %d", handovers, before, after)
			}
		})
	}
}

// takeAll gives a socket room for all that a test sends: what it has no room for
// while the test is busy isn't the router's loss.
func takeAll(t *testing.T, conn *net.UDPConn) {
	t.Helper()
	raw, err := conn.SyscallConn()
	must(t, err)
	must(t, raw.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 16<<20) }))
	must(t, err)
}

// openDescriptors is how many this process has open.
func openDescriptors(t *testing.T) (n int) {
	t.Helper()
	for fd := range 1024 {
		if isOpen(fd) {
			n++
		}
	}
	return n
}

// A namespace that can't be entered is an error, and what runs inside stays there.
func TestIntegrationInside(t *testing.T) {
	h := newMachine(t)
	h.address("lo", "10.98.0.1/32")
	ns := inside(h, func() (*os.File, error) { return os.Open("/proc/thread-self/ns/net") })
	defer ns.Close()
	var l net.Listener
	must(t, Inside(ns, func() (err error) {
		l, err = net.Listen("tcp4", "10.98.0.1:0")
		return err
	}))
	must(t, l.Close())
	if l, err := net.Listen("tcp4", "10.98.0.1:0"); err == nil {
		l.Close()
		t.Error("the test's own namespace has the address")
	}
	wrong := errors.New("wrong")
	if err := Inside(ns, func() error { return fmt.Errorf("it is %w", wrong) }); !errors.Is(err, wrong) {
		t.Error(err)
	}
}

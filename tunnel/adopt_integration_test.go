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
	"uvxlan/tunnel/device"
	"uvxlan/tunnel/internal/testhost"
	"uvxlan/tunnel/link"
	"uvxlan/tunnel/offload"
	"uvxlan/tunnel/onlink"
	"uvxlan/tunnel/underlay"
)

// vtep is a host of 10.66.0.0/24 with 10.99.n.1 as its overlay address.
type vtep struct {
	*testhost.Host
	n         byte
	anySource bool // as of Config
	router    *Router
	running   sync.WaitGroup
}

func vtepMAC(n byte) encap.MAC { return encap.MAC{2, 0, 0, 0, 9, n} }

func vtepAddress(n byte) netip.Addr { return netip.AddrFrom4([4]byte{10, 99, n, 1}) }

func vtepPeer(n byte) Peer {
	return Peer{Subnet: netip.PrefixFrom(vtepAddress(n), 24).Masked(), Underlay: netip.AddrFrom4([4]byte{10, 66, 0, n}), MAC: vtepMAC(n)}
}

func vtepConfig(n byte) Config {
	return Config{VNI: 7, MAC: vtepMAC(n), Link: link.Config{MTU: 1450, Addresses: []netip.Addr{vtepAddress(n)}}}
}

func vtepLink(n byte) link.Config {
	return link.Config{Addresses: []netip.Addr{vtepAddress(n)}, Networks: []netip.Prefix{netip.MustParsePrefix("10.99.0.0/16")}, MTU: 1450}
}

// start opens everything in the machine and runs the router.
func (v *vtep) start(workers int, direct onlink.Mode, peers ...Peer) {
	v.T.Helper()
	u := testhost.Inside(v.Host, func() (*underlay.UDP, error) {
		return underlay.Listen(underlay.Config{Address: vtepPeer(v.n).Underlay, Port: testhost.Port, Workers: workers, Offloads: offload.All})
	})
	d := testhost.Inside(v.Host, func() (device.Device, error) {
		d, err := device.Open("overlay0", device.Config{Queues: workers, Offloads: offload.All})
		return d, errors.Join(err, link.Configure("overlay0", vtepLink(v.n)))
	})
	v.run(d, u, v.follow(direct, onlink.Config{Workers: workers}), peers...)
	v.T.Cleanup(func() {
		testhost.Must(v.T, v.router.Close())
		v.running.Wait()
	})
}

func (v *vtep) follow(mode onlink.Mode, c onlink.Config) *onlink.Paths {
	v.T.Helper()
	if mode == onlink.Off {
		return nil
	}
	c.Mode = mode
	return testhost.Inside(v.Host, func() (*onlink.Paths, error) { return onlink.Open(c) })
}

func (v *vtep) run(d device.Device, u *underlay.UDP, p *onlink.Paths, peers ...Peer) {
	v.T.Helper()
	c := vtepConfig(v.n)
	c.OnLink, c.AnySource = p, v.anySource
	r, err := New(d, u, c)
	testhost.Must(v.T, err)
	testhost.Must(v.T, r.ReplacePeers(peers))
	v.router = r
	v.running.Go(func() {
		// It may be released before it runs.
		if err := r.Run(context.Background()); err != nil && !errors.Is(err, ErrClosed) {
			v.T.Error(err)
		}
	})
}

// handOver puts another router in the place of the one that runs.
func (v *vtep) handOver(direct onlink.Mode) {
	v.T.Helper()
	peers := v.router.Peers()
	begin := time.Now()
	given, err := v.router.Release()
	testhost.Must(v.T, err)
	released := time.Since(begin)
	testhost.Must(v.T, v.router.Close()) // has nothing to close
	u := testhost.Inside(v.Host, func() (*underlay.UDP, error) {
		return underlay.Adopt(given.Sockets.UDP, offload.All)
	})
	d, err := device.Adopt(given.Queues, offload.All)
	testhost.Must(v.T, err)
	v.run(d, u, v.follow(direct, onlink.Config{Sockets: given.Sockets.Packet}), peers...)
	v.T.Logf("released in %s, all in %s", released, time.Since(begin))
}

// Packets that come while nobody moves them wait: of a stream at a steady pace
// none is lost while router after router takes the descriptors over, at either
// end, and what each leaves open is no more than what it got.
func TestIntegrationReleaseLosesNothing(t *testing.T) {
	for name, direct := range map[string]onlink.Mode{"vxlan": onlink.Off, "socket": onlink.Socket} {
		t.Run(name, func(t *testing.T) {
			a, b := &vtep{Host: testhost.New(t), n: 1}, &vtep{Host: testhost.New(t), n: 2}
			testhost.Join(a.Host, b.Host, "eth0", "10.66.0")
			a.start(2, direct, vtepPeer(2))
			b.start(2, direct, vtepPeer(1))
			in := testhost.Inside(b.Host, func() (net.PacketConn, error) { return net.ListenPacket("udp4", "10.99.2.1:0") })
			defer in.Close()
			takeAll(t, in.(*net.UDPConn))
			out := testhost.Inside(a.Host, func() (net.Conn, error) { return net.Dial("udp4", in.LocalAddr().String()) })
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
			before := testhost.Descriptors(t)
			handovers := 0
			var got [count]bool
			buf := make([]byte, 64)
			for received := range count {
				testhost.Must(t, in.SetReadDeadline(time.Now().Add(testhost.Patience)))
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
			if after := testhost.Descriptors(t); after > before {
				t.Errorf("%d handovers made %d descriptors %d", handovers, before, after)
			}
		})
	}
}

// A router may be released while a fast path is in use, or after. The fast path keeps
// its peers, for whoever takes them over, and nothing stays open.
func TestIntegrationReleaseBesideAFastPath(t *testing.T) {
	a := &vtep{Host: testhost.New(t), n: 1}
	testhost.Join(a.Host, testhost.New(t), "eth0", "10.66.0")
	a.start(2, onlink.Off, vtepPeer(2))
	w, err := a.router.Wire()
	if err != nil || w.Device != "overlay0" {
		t.Errorf("the wire is %+v, %v", w, err)
	}
	subnet, before := vtepPeer(2).Subnet, testhost.Descriptors(t)
	for _, ended := range []bool{true, false} {
		old, f := a.router, newFakePath()
		f.of[subnet], f.stats = PeerTraffic{TxPackets: 5}, FastPathStats{TxPackets: 4}
		old.UseFastPath(f)
		if ended {
			old.UseFastPath(nil)
		}
		a.handOver(onlink.Off)
		if _, err := old.Wire(); !errors.Is(err, ErrClosed) {
			t.Errorf("a released router has a wire: %v", err)
		}
		old.UseFastPath(nil)
		if peer, all := old.Traffic(subnet).TxPackets, old.Stats().TxPackets; peer != 5 || all != 4 {
			t.Errorf("ended before Release: %t: %d packets of the peer and %d in all", ended, peer, all)
		}
		if _, ok := f.get(subnet); !ok {
			t.Errorf("ended before Release: %t: the fast path has lost its peers", ended)
		}
	}
	if after := testhost.Descriptors(t); after > before {
		t.Errorf("two handovers made %d descriptors %d", before, after)
	}
}

// Descriptors may be asked for while the router is closed.
func TestIntegrationDescriptorsOfAClosingRouter(t *testing.T) {
	v := &vtep{Host: testhost.New(t), n: 1}
	testhost.Join(v.Host, testhost.New(t), "eth0", "10.66.0")
	v.start(2, onlink.Off)
	asked, closed := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(closed)
		<-asked
		if err := v.router.Close(); err != nil {
			t.Error(err)
		}
	}()
	d, err := v.router.Descriptors()
	if err != nil || len(d.Queues) != 2 {
		t.Errorf("an open router has %+v, %v", d, err)
	}
	close(asked)
	for err == nil {
		_, err = v.router.Descriptors()
	}
	if !errors.Is(err, ErrClosed) {
		t.Error(err)
	}
	<-closed
}

// takeAll gives a socket room for all that a test sends: what it has no room for
// while the test is busy isn't the router's loss.
func takeAll(t *testing.T, conn *net.UDPConn) {
	t.Helper()
	raw, err := conn.SyscallConn()
	testhost.Must(t, err)
	testhost.Must(t, raw.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 16<<20) }))
	testhost.Must(t, err)
}

// A namespace that can't be entered is an error, and what runs inside stays there.
func TestIntegrationInside(t *testing.T) {
	h := testhost.New(t)
	h.Address("lo", "10.98.0.1/32")
	ns := testhost.Inside(h, func() (*os.File, error) { return os.Open("/proc/thread-self/ns/net") })
	defer ns.Close()
	var l net.Listener
	testhost.Must(t, Inside(ns, func() (err error) {
		l, err = net.Listen("tcp4", "10.98.0.1:0")
		return err
	}))
	testhost.Must(t, l.Close())
	if l, err := net.Listen("tcp4", "10.98.0.1:0"); err == nil {
		l.Close()
		t.Error("the test's own namespace has the address")
	}
	wrong := errors.New("wrong")
	if err := Inside(ns, func() error { return fmt.Errorf("it is %w", wrong) }); !errors.Is(err, wrong) {
		t.Error(err)
	}
}

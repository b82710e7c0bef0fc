package device_test

import (
	"encoding/binary"
	"errors"
	"net"
	"os"
	"slices"
	"testing"
	"time"
	"unsafe"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"uvxlan/encap"
	"uvxlan/tunnel"
	"uvxlan/tunnel/device"
	"uvxlan/tunnel/internal/testhost"
	"uvxlan/tunnel/offload"
)

// openOn opens a device of the driver on a machine of its own, up and with an
// address.
func openOn(t *testing.T, driver device.Driver, offloads offload.Set) *subject {
	t.Helper()
	h := testhost.New(t)
	d := testhost.Inside(h, func() (device.Device, error) {
		return device.Open("tun0", device.Config{Driver: driver, Queues: 2, Offloads: offloads})
	})
	h.Address("tun0", ourAddress+"/24")
	testhost.Must(t, h.LinkSetMTU(h.Link("tun0"), 1500))
	testhost.Must(t, h.LinkSetUp(h.Link("tun0")))
	return &subject{t: t, device: d, far: newRawFar(h), mtu: 1500, kernel: h}
}

// TestIntegrationDevicesConform runs every driver on a TUN device of the kernel's.
func TestIntegrationDevicesConform(t *testing.T) {
	for _, driver := range device.Drivers()[1:] {
		t.Run(string(driver), func(t *testing.T) {
			open := func(t *testing.T) *subject { return openOn(t, driver, offload.All) }
			conform(t, open)
			for _, part := range []struct {
				name string
				run  func(s *subject)
			}{
				{"names", testNames}, {"superpackets", testSuperpackets}, {"MTU", testMTU},
				{"down and up", testDownUp}, {"removed", testRemoved},
			} {
				t.Run(part.name, func(t *testing.T) { part.run(open(t)) })
			}
			t.Run("without offloads", func(t *testing.T) {
				s := openOn(t, driver, 0)
				if s.device.Offloads() != 0 {
					t.Errorf("offloads are %s", s.device.Offloads())
				}
				testSuperpackets(s)
			})
		})
	}
}

func testNames(s *subject) {
	defer s.device.Close()
	if s.device.Name() != "tun0" {
		s.t.Errorf("the name is %q", s.device.Name())
	}
	want := 2
	if device.DriverOf(s.device) == device.DriverWireGuard {
		want = 1
	}
	if got := len(s.device.Queues()); got != want {
		s.t.Errorf("%d queues, want %d", got, want)
	}
	for _, driver := range device.Drivers() {
		before := testhost.Descriptors(s.t)
		_, err := s.reopen(driver)
		if !errors.Is(err, device.ErrExists) {
			s.t.Errorf("a second device of the name, by %s: %v", driver, err)
		}
		if after := testhost.Descriptors(s.t); after != before {
			s.t.Errorf("the refusal of %s left %d descriptors open", driver, after-before)
		}
	}
	testhost.Must(s.t, s.device.Close())
	if _, err := s.kernel.LinkByName("tun0"); !errors.As(err, new(netlink.LinkNotFoundError)) {
		s.t.Errorf("after Close the interface is there: %v", err)
	}
}

func (s *subject) reopen(driver device.Driver) (d device.Device, err error) {
	_ = testhost.Inside(s.kernel, func() (struct{}, error) {
		d, err = device.Open("tun0", device.Config{Driver: driver, Queues: 2, Offloads: offload.All})
		return struct{}{}, nil
	})
	return d, err
}

// Datagrams that a socket sends in one call come out, and go back in, whether
// together or one by one. None is lost or cut differently.
func testSuperpackets(s *subject) {
	defer s.device.Close()
	conn := testhost.Inside(s.kernel, func() (*net.UDPConn, error) {
		c, err := net.Dial("udp4", theirAddress+":9")
		if err != nil {
			return nil, err
		}
		return c.(*net.UDPConn), nil
	})
	defer conn.Close()
	const size, last, count = 1000, 77, 20
	if _, _, err := conn.WriteMsgUDP(make([]byte, size*(count-1)+last), segmentSize(size), nil); err != nil {
		s.t.Fatal(err)
	}
	var sizes []int
	packets := 0
	for len(sizes) < count {
		p, o := s.readTest(encap.ProtoUDP)
		sizes = append(sizes, udpSizes(p, o)...)
		packets++
		testhost.Must(s.t, s.write(o, swapped(p)))
	}
	want := append(slices.Repeat([]int{size}, count-1), last)
	if !slices.Equal(sizes, want) {
		s.t.Errorf("datagrams of %d came out", sizes)
	}
	if together := packets < count; together != s.device.Offloads().Has(offload.USO) {
		s.t.Errorf("%d packets came with offloads %s", packets, s.device.Offloads())
	}
	testhost.Must(s.t, conn.SetReadDeadline(time.Now().Add(testhost.Patience)))
	for i := range want {
		n, err := conn.Read(make([]byte, device.MaxPacket))
		if err != nil || n != want[i] {
			s.t.Fatalf("datagram %d came back with %d bytes: %v", i, n, err)
		}
	}
}

func testMTU(s *subject) {
	defer s.device.Close()
	for _, mtu := range []int{1280, 9000, 65535} {
		testhost.Must(s.t, s.kernel.LinkSetMTU(s.kernel.Link("tun0"), mtu))
		s.roundTrip(mtu)
		if mtu < device.MaxPacket {
			if err := s.far.send(testPacket(mtu + 1)); !errors.Is(err, unix.EMSGSIZE) {
				s.t.Errorf("a packet beyond the MTU of %d: %v", mtu, err)
			}
		}
	}
}

func testDownUp(s *subject) {
	defer s.device.Close()
	s.roundTrip(100)
	for range 2 {
		testhost.Must(s.t, s.kernel.LinkSetDown(s.kernel.Link("tun0")))
		if err := s.write(encap.Offload{}, swapped(testPacket(100))); err == nil {
			s.t.Error("a packet was taken while the link was down")
		}
		if _, _, err := s.tryRead(time.Millisecond); err != nil && !errors.Is(err, unix.EAGAIN) && !isTimeout(err) {
			s.t.Errorf("read while the link is down: %v", err)
		}
		testhost.Must(s.t, s.kernel.LinkSetUp(s.kernel.Link("tun0")))
		s.roundTrip(100)
	}
}

func isTimeout(err error) bool {
	var timeout interface{ Timeout() bool }
	return errors.As(err, &timeout) && timeout.Timeout()
}

// The device is deleted under a router that waits for packets.
func testRemoved(s *subject) {
	r, ran := s.route()
	testhost.Must(s.t, s.far.send(testPacket(100)))
	testhost.Await(s.t, "the router reads", func() bool { return r.Stats().Drops[tunnel.DropNoRoute] > 0 })
	testhost.Must(s.t, s.kernel.LinkDel(s.kernel.Link("tun0")))
	select {
	case err := <-ran:
		if !errors.Is(err, device.ErrGone) {
			s.t.Errorf("run: %v, want %v", err, device.ErrGone)
		}
	case <-time.After(testhost.Patience):
		s.t.Error("the router didn't notice")
	}
	testhost.Must(s.t, r.Close())
}

// By default the device is this package's own.
func TestIntegrationDriverAuto(t *testing.T) {
	s := openOn(t, "", offload.All)
	defer s.device.Close()
	if got := device.DriverOf(s.device); got != device.DriverNative {
		t.Errorf("the driver is %s", got)
	}
}

// Without multi-queue, as where a sandbox plays the kernel, water has one queue
// and still no part of a device that is there already.
func TestIntegrationWaterWithOneQueue(t *testing.T) {
	h := testhost.New(t)
	before := testhost.Descriptors(t)
	d := testhost.Inside(h, func() (device.Device, error) { return device.Open("tun0", device.Config{Driver: device.DriverWater}) })
	if n := len(d.Queues()); n != 1 {
		t.Errorf("%d queues", n)
	}
	tap := h.Link("tun0").(*netlink.Tuntap)
	if tap.Flags&netlink.TUNTAP_MULTI_QUEUE != 0 || !tap.NonPersist {
		t.Errorf("the interface is %+v", tap)
	}
	testhost.Must(t, d.Close())
	if after := testhost.Descriptors(t); after != before {
		t.Errorf("%d descriptors are left open", after-before)
	}
}

// segmentSize is the control message that has datagrams of size bytes made of one
// message (UDP_SEGMENT, udp(7)).
func segmentSize(size uint16) []byte {
	b := make([]byte, unix.CmsgSpace(2))
	h := (*unix.Cmsghdr)(unsafe.Pointer(&b[0]))
	h.Level, h.Type = unix.IPPROTO_UDP, unix.UDP_SEGMENT
	h.SetLen(unix.CmsgLen(2))
	binary.NativeEndian.PutUint16(b[unix.CmsgLen(0):], size)
	return b
}

// The counters of an interface that only has the device's name aren't the device's.
func TestIntegrationDroppedIsOfTheRightNamespace(t *testing.T) {
	there, here := testhost.New(t), testhost.New(t)
	open := func(h *testhost.Host) int {
		return testhost.Inside(h, func() (int, error) {
			return testhost.AttachTUN(testhost.TUNPath, "tun7", unix.IFF_TUN|unix.IFF_NO_PI|unix.IFF_VNET_HDR)
		})
	}
	foreign := open(there)
	adopt := func(fd int) (known bool) {
		d := testhost.Inside(here, func() (device.Device, error) { return device.Adopt([]int{fd}, offload.All) })
		_, known = device.Dropped(d)
		testhost.Must(t, d.Close())
		return known
	}
	own := open(here)
	if adopt(foreign) {
		t.Error("a device of another network namespace has the drops of one here")
	}
	if !adopt(own) {
		t.Error("the drops of a device of this network namespace aren't known")
	}
}

// The kernel's devices know what their interface is called, whoever renames it.
func TestIntegrationInterface(t *testing.T) {
	for _, driver := range device.Drivers()[1:] {
		s := openOn(t, driver, offload.All)
		if name, ok := device.Interface(s.device); name != "tun0" || !ok {
			t.Errorf("%s: the interface is %q, %t", driver, name, ok)
		}
		l := s.kernel.Link("tun0")
		testhost.Must(t, s.kernel.LinkSetDown(l))
		testhost.Must(t, s.kernel.LinkSetName(l, "other7"))
		if name, ok := device.Interface(s.device); name != "other7" || !ok {
			t.Errorf("%s: renamed, the interface is %q, %t", driver, name, ok)
		}
		testhost.Must(t, s.device.Close())
		if name, ok := device.Interface(s.device); ok {
			t.Errorf("%s: closed, the interface is %q", driver, name)
		}
	}
}

// A device has the drops of its own interface, whatever that is called, and whoever
// has its name since. Those of one that was moved away aren't known.
func TestIntegrationDroppedFollowsTheInterface(t *testing.T) {
	for _, driver := range []device.Driver{device.DriverNative, device.DriverWater} {
		t.Run(string(driver), func(t *testing.T) {
			s := openOn(t, driver, offload.All)
			defer s.device.Close()
			out := testhost.Inside(s.kernel, func() (net.Conn, error) { return net.Dial("udp4", theirAddress+":9") })
			defer out.Close()
			var lost uint64
			testhost.Await(t, "packets that nobody reads to be lost", func() bool {
				for range 100 {
					_, _ = out.Write(nil) // what is lost is the point
				}
				lost = s.kernel.Link("tun0").Attrs().Statistics.TxDropped
				return lost > 0
			})
			expect := func(when string, want uint64, known bool) {
				t.Helper()
				if n, ok := device.Dropped(s.device); n != want || ok != known {
					t.Errorf("%s: %d dropped, known: %t, want %d, %t", when, n, ok, want, known)
				}
			}
			namesake := func(name string) {
				t.Helper()
				fd := testhost.Inside(s.kernel, func() (int, error) {
					return testhost.AttachTUN(testhost.TUNPath, name, unix.IFF_TUN|unix.IFF_NO_PI)
				})
				t.Cleanup(func() { testhost.Must(t, unix.Close(fd)) })
			}
			expect("as it was opened", lost, true)
			l := s.kernel.Link("tun0")
			testhost.Must(t, s.kernel.LinkSetDown(l))
			testhost.Must(t, s.kernel.LinkSetName(l, "other7"))
			expect("renamed", lost, true)
			namesake("tun0")
			expect("beside another of its name", lost, true)

			elsewhere := testhost.New(t)
			ns := testhost.Inside(elsewhere, func() (*os.File, error) { return os.Open("/proc/thread-self/ns/net") })
			defer ns.Close()
			testhost.Must(t, s.kernel.LinkSetNsFd(l, int(ns.Fd())))
			expect("moved", 0, false)
			namesake("other7")
			expect("moved, beside another of its name", 0, false)
		})
	}
}

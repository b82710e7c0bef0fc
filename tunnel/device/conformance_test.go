package device_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"uvxlan/encap"
	"uvxlan/tunnel"
	"uvxlan/tunnel/device"
	"uvxlan/tunnel/internal/testhost"
	"uvxlan/tunnel/link"
	"uvxlan/tunnel/offload"
	"uvxlan/tunnel/underlay"
)

// subject is a device under test and its far end: the kernel's side of it, or
// whatever plays it.
type subject struct {
	t      *testing.T
	device device.Device
	far    farEnd
	// mtu is the longest packet that passes at first.
	mtu int
	// kernel has the interface, nil if there is none.
	kernel *testhost.Host
}

// farEnd sends IP packets into the device and takes those that it delivers.
type farEnd interface {
	send(packet []byte) error
	receive() []byte
}

// Addresses in the tests' devices: ours is the kernel's side.
const ourAddress, theirAddress = "10.9.0.1", "10.9.0.2"

// testProto is the IP protocol of test packets (RFC 3692, section 2.1).
const testProto = 253

// testPacket is an IPv4 packet of n bytes from our address to theirs.
func testPacket(n int) []byte {
	src, dst := netip.MustParseAddr(ourAddress).As4(), netip.MustParseAddr(theirAddress).As4()
	p := make([]byte, n)
	p[0], p[8], p[9] = 0x45, 64, testProto
	p[4], p[5] = 1, byte(n) // the kernel would choose another for 0
	copy(p[12:], src[:])
	copy(p[16:], dst[:])
	for i := range p[20:] {
		p[20+i] = byte(i*7 + n)
	}
	encap.IPv4(p).SetTotalLen(n)
	encap.IPv4(p).UpdateChecksum()
	return p
}

// swapped makes of a packet one of the other direction, with the same checksums.
func swapped(p []byte) []byte {
	p = bytes.Clone(p)
	src := [4]byte(p[12:])
	copy(p[12:16], p[16:20])
	copy(p[16:20], src[:])
	if p[9] == encap.ProtoUDP {
		port := [2]byte(p[20:])
		copy(p[20:22], p[22:24])
		copy(p[22:24], port[:])
	}
	return p
}

// read waits for a packet on any of the device's queues.
func (s *subject) read() ([]byte, encap.Offload) {
	s.t.Helper()
	p, o, err := s.tryRead(testhost.Patience)
	testhost.Must(s.t, err)
	return p, o
}

func (s *subject) tryRead(wait time.Duration) ([]byte, encap.Offload, error) {
	buf := make([]byte, device.MaxPacket)
	for {
		var fds []unix.PollFd
		for _, q := range s.device.Queues() {
			n, o, err := q.Read(buf)
			if !errors.Is(err, unix.EAGAIN) {
				return buf[:n], o, err
			}
			fds = append(fds, unix.PollFd{Fd: int32(q.FD()), Events: unix.POLLIN})
		}
		limit := unix.NsecToTimespec(int64(wait))
		if n, err := unix.Ppoll(fds, &limit, nil); err != nil || n == 0 {
			return nil, encap.Offload{}, errors.Join(err, os.ErrDeadlineExceeded)
		}
	}
}

// readTest reads the next of our test packets; the kernel also sends its own.
func (s *subject) readTest(proto byte) ([]byte, encap.Offload) {
	s.t.Helper()
	for {
		if p, o := s.read(); len(p) >= 20 && p[0]>>4 == 4 && p[9] == proto {
			return p, o
		}
	}
}

// write writes a packet in the given parts, through to the device.
func (s *subject) write(o encap.Offload, parts ...[]byte) error {
	q := s.device.Queues()[0]
	if err := q.Write(o, parts); err != nil {
		return err
	}
	if lost := device.Flush(q); lost > 0 {
		return errors.New("lost by flush")
	}
	return nil
}

// roundTrip sends packets of n bytes out of the device and back.
func (s *subject) roundTrip(n int) {
	s.t.Helper()
	want := testPacket(n)
	testhost.Must(s.t, s.far.send(want))
	got, o := s.readTest(testProto)
	if !bytes.Equal(got, want) || o.GSO != encap.GSONone {
		s.t.Fatalf("of %d bytes %d came, %+v: %x", n, len(got), o, got[:min(len(got), 32)])
	}
	back := swapped(got)
	testhost.Must(s.t, s.write(encap.Offload{}, back[:20], back[20:]))
	if got := s.far.receive(); !bytes.Equal(got, back) {
		s.t.Fatalf("back of %d bytes %d came: %x", n, len(got), got[:min(len(got), 32)])
	}
}

// conform runs what every device must pass. Each part has a device of its own.
func conform(t *testing.T, open func(t *testing.T) *subject) {
	for _, part := range []struct {
		name string
		run  func(s *subject)
	}{
		{"sizes", testSizes}, {"order", testOrder}, {"refusals", testRefusals},
		{"close idle", testCloseIdle}, {"close while reading", testCloseWhileReading},
	} {
		t.Run(part.name, func(t *testing.T) { part.run(open(t)) })
	}
}

func testSizes(s *subject) {
	defer s.device.Close()
	for n := 20; n <= s.mtu; n++ {
		s.roundTrip(n)
	}
	if _, _, err := s.device.Queues()[0].Read(make([]byte, device.MaxPacket)); !errors.Is(err, unix.EAGAIN) {
		s.t.Errorf("read of an empty queue: %v, want EAGAIN unwrapped", err)
	}
}

// What was written or sent one after the other comes in that order.
func testOrder(s *subject) {
	defer s.device.Close()
	const packets = 32
	for i := range packets {
		testhost.Must(s.t, s.far.send(testPacket(100+i)))
	}
	for i := range packets {
		if got, _ := s.readTest(testProto); !bytes.Equal(got, testPacket(100+i)) {
			s.t.Fatalf("packet %d came in the place of %d", len(got)-100, i)
		}
	}
	q := s.device.Queues()[0]
	for i := range packets {
		testhost.Must(s.t, q.Write(encap.Offload{}, [][]byte{swapped(testPacket(100 + i))}))
	}
	if lost := device.Flush(q); lost != 0 {
		s.t.Errorf("%d packets were lost", lost)
	}
	for i := range packets {
		if got := s.far.receive(); !bytes.Equal(got, swapped(testPacket(100+i))) {
			s.t.Fatalf("packet %d came in the place of %d", len(got)-100, i)
		}
	}
}

// A superpacket is refused where it was not granted, rather than let through.
func testRefusals(s *subject) {
	defer s.device.Close()
	p := testhost.TCPPacket(theirAddress, ourAddress, 1, 3000)
	err := s.write(testhost.Superpacket(1000), p)
	if granted := s.device.Offloads().Has(offload.TCP); granted != (err == nil) {
		s.t.Errorf("a TCP superpacket: %v; granted: %t", err, granted)
	}
	s.roundTrip(100)
}

func testCloseIdle(s *subject) {
	fds := s.device.Queues()[0].FD()
	testhost.Must(s.t, s.device.Close())
	if _, err := unix.FcntlInt(uintptr(fds), unix.F_GETFD, 0); !errors.Is(err, unix.EBADF) {
		s.t.Errorf("the queue's descriptor after Close: %v", err)
	}
}

// A router closes its device while packets come.
func testCloseWhileReading(s *subject) {
	r, ran := s.route()
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		for {
			select {
			case <-stop:
				return
			default:
				_ = s.far.send(testPacket(1000)) // the device goes meanwhile
			}
		}
	}()
	testhost.Await(s.t, "packets come", func() bool { return r.Stats().Drops[tunnel.DropNoRoute] > 1000 })
	testhost.Must(s.t, r.Close())
	testhost.Must(s.t, <-ran)
	close(stop)
	<-stopped
}

// route runs a router on the device, without peers.
func (s *subject) route() (*tunnel.Router, <-chan error) {
	s.t.Helper()
	u, err := underlay.Listen(underlay.Config{
		Address: netip.MustParseAddr("127.0.0.1"), Port: freePort(s.t), Workers: len(s.device.Queues()),
	})
	testhost.Must(s.t, err)
	r, err := tunnel.New(s.device, u, tunnel.Config{VNI: 1, MAC: encap.MAC{2, 1}, Link: link.Config{MTU: 1450}})
	testhost.Must(s.t, err)
	s.t.Cleanup(func() { r.Close() })
	ran := make(chan error, 1)
	go func() { ran <- r.Run(context.Background()) }()
	return r, ran
}

// freePort is a UDP port that nobody has.
func freePort(t *testing.T) uint16 {
	t.Helper()
	c, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	testhost.Must(t, err)
	defer c.Close()
	return c.LocalAddr().(*net.UDPAddr).AddrPort().Port()
}

// memoryFar is the far end of a memory device.
type memoryFar struct {
	t *testing.T
	q *testhost.MemoryQueue
}

func (f memoryFar) send(p []byte) error { return f.q.Write(encap.Offload{}, [][]byte{p}) }

// receive passes over what isn't a test packet, as a raw socket does.
func (f memoryFar) receive() []byte {
	f.t.Helper()
	for {
		if p, _ := f.q.Receive(f.t); len(p) >= 20 && p[9] == testProto {
			return p
		}
	}
}

func TestMemoryDeviceConforms(t *testing.T) {
	conform(t, func(t *testing.T) *subject {
		d := testhost.NewMemoryDevice(t, 1, offload.TCP)
		return &subject{t: t, device: d, far: memoryFar{t, d.Far[0]}, mtu: 2000}
	})
}

// rawFar is the kernel's side of a TUN interface, by raw sockets.
type rawFar struct {
	t       *testing.T
	out, in int
}

func newRawFar(h *testhost.Host) rawFar {
	h.T.Helper()
	f := rawFar{t: h.T}
	open := func(proto int) int {
		fd := testhost.Inside(h, func() (int, error) { return unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, proto) })
		h.T.Cleanup(func() { unix.Close(fd) })
		return fd
	}
	f.out, f.in = open(unix.IPPROTO_RAW), open(testProto)
	testhost.Must(h.T, unix.SetsockoptTimeval(f.in, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 5}))
	return f
}

func (f rawFar) send(p []byte) error {
	return unix.Sendto(f.out, p, 0, &unix.SockaddrInet4{Addr: [4]byte(p[16:])})
}

func (f rawFar) receive() []byte {
	f.t.Helper()
	buf := make([]byte, device.MaxPacket)
	n, err := unix.Read(f.in, buf)
	testhost.Must(f.t, err)
	return buf[:n]
}

// udpSizes are the payloads' lengths of an IPv4 UDP packet's datagrams.
func udpSizes(p []byte, o encap.Offload) (sizes []int) {
	payload := int(binary.BigEndian.Uint16(p[2:])) - 28
	for o.GSO != encap.GSONone && payload > int(o.SegmentSize) {
		sizes = append(sizes, int(o.SegmentSize))
		payload -= int(o.SegmentSize)
	}
	return append(sizes, payload)
}

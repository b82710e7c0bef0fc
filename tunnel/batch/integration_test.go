package batch

import (
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"uvxlan/tunnel/netnstest"
)

// network is a host with two links to another one.
type network struct {
	near, other *netnstest.Namespace
}

var (
	slowAddr = netip.MustParseAddr("10.71.1.2")
	fastAddr = netip.MustParseAddr("10.71.2.2")
)

const testPort = 4789

// newNetwork moves the test into a namespace of its own.
func newNetwork(t *testing.T) *network {
	t.Helper()
	n := &network{other: netnstest.New(t)}
	n.near = netnstest.Enter(t)
	run := func(args ...string) { t.Helper(); netnstest.Run(t, args[0], args[1:]...) }
	for _, link := range []struct{ name, near, far string }{
		{"slow", "10.71.1.1/24", "10.71.1.2/24"},
		{"fast", "10.71.2.1/24", "10.71.2.2/24"},
	} {
		if err := n.near.LinkAdd(&netlink.Veth{
			LinkAttrs: netlink.LinkAttrs{Name: link.name}, PeerName: link.name, PeerNamespace: netlink.NsFd(n.other.FD()),
		}); err != nil {
			t.Fatal(err)
		}
		run("ip", "address", "add", link.near, "dev", link.name)
		run("ip", "link", "set", link.name, "up")
		if err := n.other.Do(func() error {
			run("ip", "address", "add", link.far, "dev", link.name)
			run("ip", "link", "set", link.name, "up")
			return nil
		}); err != nil {
			t.Fatal(err)
		}
	}
	return n
}

// lost is how many packets the kernel says that it lost on a link's way, behind
// the queue: on a busy machine the receiving CPU's backlog may be full.
func (n *network) lost(t *testing.T, link string) (lost uint64) {
	t.Helper()
	for _, end := range []*netnstest.Namespace{n.near, n.other} {
		l, err := end.LinkByName(link)
		if err != nil {
			t.Fatal(err)
		}
		s := l.Attrs().Statistics
		lost += s.TxDropped + s.RxDropped
	}
	return lost
}

// arrived waits until a receiver has all that was sent, unless the kernel says
// that it lost some.
func (n *network) arrived(t *testing.T, link string, r *receiver, sent uint64) {
	t.Helper()
	await(t, "receive all by the "+link+" link", func() bool {
		return uint64(r.got.Load()) == sent || n.lost(t, link) > 0
	})
	if got := uint64(r.got.Load()); got > sent {
		t.Errorf("%d datagrams were sent by the %s link, and %d arrived", sent, link, got)
	}
}

// receiver counts the datagrams that arrive at an address of the other host, and
// checks the order of each flow, which names itself and its packets.
type receiver struct {
	conn       *net.UDPConn
	got        atomic.Int64
	disordered atomic.Int64
	done       chan struct{}
}

func (n *network) receive(t *testing.T, at netip.Addr) *receiver {
	t.Helper()
	r := &receiver{done: make(chan struct{})}
	if err := n.other.Do(func() (err error) {
		r.conn, err = net.ListenUDP("udp4", net.UDPAddrFromAddrPort(netip.AddrPortFrom(at, testPort)))
		return err
	}); err != nil {
		t.Fatal(err)
	}
	raw, err := r.conn.SyscallConn()
	if err == nil {
		err = raw.Control(func(fd uintptr) {
			_ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 32<<20)
		})
	}
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		defer close(r.done)
		last := map[uint32]uint32{}
		buf := make([]byte, 64<<10)
		for {
			n, err := r.conn.Read(buf)
			if err != nil {
				return
			}
			if n >= 8 {
				flow, number := binary.BigEndian.Uint32(buf), binary.BigEndian.Uint32(buf[4:])
				if number <= last[flow] {
					r.disordered.Add(1)
				}
				last[flow] = number
			}
			r.got.Add(1)
		}
	}()
	t.Cleanup(func() { r.conn.Close(); <-r.done })
	return r
}

// realSockets opens n UDP sockets with send buffers of so many bytes.
func realSockets(t *testing.T, n, buffer int) (fds []int) {
	t.Helper()
	for range n {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0) // it would block
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { unix.Close(fd) })
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, buffer); err != nil {
			t.Fatal(err)
		}
		if err := unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_DONT); err != nil {
			t.Fatal(err)
		}
		fds = append(fds, fd)
	}
	return fds
}

func monotonic() int64 {
	var now unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_MONOTONIC_COARSE, &now)
	return now.Nano()
}

// traffic sends numbered packets of flows to a destination.
type traffic struct {
	to       *Destination
	of       Counters
	numbers  map[int]uint32
	begun    int64
	datagram [1200]byte
}

func (f *traffic) begin(b *Batch, flow int) {
	f.begun++
	if !b.Begin(f.to, &f.of, uint32(flow), 0, 1, len(f.datagram)) {
		return
	}
	d := make([]byte, len(f.datagram))
	f.numbers[flow]++
	binary.BigEndian.PutUint32(d, uint32(flow))
	binary.BigEndian.PutUint32(d[4:], f.numbers[flow])
	b.Append(d[:100], d[100:])
}

func newTraffic(to netip.Addr) *traffic {
	return &traffic{to: NewDestination(netip.AddrPortFrom(to, testPort)), numbers: map[int]uint32{}}
}

func await(t *testing.T, what string, met func() bool) {
	t.Helper()
	for limit := time.Now().Add(patience); !met(); time.Sleep(time.Millisecond) {
		if time.Now().After(limit) {
			t.Fatalf("%s: not in %s", what, patience)
		}
	}
}

// Behind a link that takes a fraction of what is sent into it, nothing of what
// goes by another link waits or is lost, and every packet is accounted for.
func TestIntegrationSlowLink(t *testing.T) {
	netnstest.RequireRoot(t)
	n := newNetwork(t)
	// Nothing is dropped in the queue: what the kernel took arrives.
	netnstest.Run(t, "tc", "qdisc", "replace", "dev", "slow", "root", "tbf", "rate", "50mbit", "burst", "32kb", "limit", "100mb")
	slowEnd, fastEnd := n.receive(t, slowAddr), n.receive(t, fastAddr)
	fds := realSockets(t, 16, SendBuffer)
	b := newBatch(t, UDPConfig{IPv4: fds, Segment: true})
	slow, fast := newTraffic(slowAddr), newTraffic(fastAddr)
	var sum Result
	round := func() {
		now := monotonic()
		if b.Blocked() {
			addUp(&sum, b.Retry(now))
		}
		for flow := range 32 {
			slow.begin(b, flow)
			if flow%4 == 0 {
				fast.begin(b, flow)
			}
		}
		addUp(&sum, b.Flush(now))
	}
	for limit := monotonic() + int64(3*ConfinedFor); monotonic() < limit || slow.of.Dropped.Load() == 0; {
		round()
		time.Sleep(200 * time.Microsecond) // 1.5 Gbit/s, as the CPU allows
	}
	lost, begun := fast.of.Dropped.Load(), fast.begun
	for range 3000 {
		round()
		time.Sleep(200 * time.Microsecond)
	}
	if d := fast.of.Dropped.Load() - lost; d != 0 {
		t.Errorf("of %d packets by the fast link %d were dropped", fast.begun-begun, d)
	}
	if b.blocked > 4 || b.blocked == 0 {
		t.Errorf("%d sockets are full", b.blocked)
	}
	queued := 0
	for _, fd := range fds {
		n, err := unix.IoctlGetInt(fd, unix.TIOCOUTQ)
		if err != nil {
			t.Fatal(err)
		}
		queued += n
	}
	for i := range b.sockets {
		if s := &b.sockets[i]; s.blocked && sendBuffer(s.fd) > SendBuffer/2 {
			t.Errorf("a socket that is full for long has a buffer of %d bytes", sendBuffer(s.fd))
		}
	}
	await(t, "drain the backlog", func() bool {
		addUp(&sum, b.Retry(monotonic()))
		return !b.Blocked()
	})
	n.arrived(t, "fast", fastEnd, fast.of.Packets.Load())
	n.arrived(t, "slow", slowEnd, slow.of.Packets.Load())
	for _, f := range []*traffic{slow, fast} {
		if sent, dropped := f.of.Packets.Load(), f.of.Dropped.Load(); sent+dropped != uint64(f.begun) || f.of.Bytes.Load() != 1200*sent {
			t.Errorf("of %d packets %d are counted as sent, %d as dropped", f.begun, sent, dropped)
		}
	}
	if sum.Full != slow.of.Dropped.Load()+fast.of.Dropped.Load() || sum.Full != sum.Dropped() {
		t.Errorf("counted %+v", sum)
	}
	t.Logf("the kernel lost %d and %d; %d bytes queued; slow: %d sent, %d dropped, %d out of order; fast: %d sent, %d dropped at first, %d out of order",
		n.lost(t, "slow"), n.lost(t, "fast"), queued, slow.of.Packets.Load(), slow.of.Dropped.Load(), slowEnd.disordered.Load(),
		fast.of.Packets.Load(), lost, fastEnd.disordered.Load())
}

// A path with a smaller MTU takes no runs of larger datagrams, but fragments
// those; when its MTU has grown it is sent runs again.
func TestIntegrationPathMTU(t *testing.T) {
	netnstest.RequireRoot(t)
	n := newNetwork(t)
	netnstest.Run(t, "ip", "route", "change", "10.71.2.0/24", "dev", "fast", "mtu", "1000")
	end := n.receive(t, fastAddr)
	b := newBatch(t, UDPConfig{IPv4: realSockets(t, 1, 128<<10), Segment: true})
	f := newTraffic(fastAddr)
	send := func(now int64) Result {
		for range 10 {
			f.begin(b, 0)
		}
		return b.Flush(now)
	}
	now := monotonic()
	if got := send(now); got.Datagrams != 10 || got.Messages != 10 || got.Fallbacks != 1 || !f.to.TooBig() {
		t.Errorf("counted %+v", got)
	}
	if got := send(now + 1); got.Datagrams != 10 || got.Messages != 10 || got.Fallbacks != 0 {
		t.Errorf("after the refusal: counted %+v", got)
	}
	netnstest.Run(t, "ip", "route", "change", "10.71.2.0/24", "dev", "fast")
	now += int64(runsOffMin)
	b.Flush(now)
	if got := send(now); got.Datagrams != 10 || got.Messages != 1 || got.Fallbacks != 0 || f.to.TooBig() {
		t.Errorf("with the larger MTU: counted %+v", got)
	}
	n.arrived(t, "fast", end, 30)
	if end.disordered.Load() != 0 {
		t.Error("out of order")
	}
}

// A packet socket's frames wait for room as datagrams do; an interface that is
// down returns them.
func TestIntegrationPacketSocket(t *testing.T) {
	netnstest.RequireRoot(t)
	n := newNetwork(t)
	netnstest.Run(t, "tc", "qdisc", "replace", "dev", "slow", "root", "tbf", "rate", "50mbit", "burst", "32kb", "limit", "100mb")
	end := n.receive(t, slowAddr)
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	if err := errors.Join(unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_VNET_HDR, 1),
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, 64<<10)); err != nil {
		t.Fatal(err)
	}
	b, err := NewPacket(fd)
	owned(t, b, err)
	near, err := net.InterfaceByName("slow")
	if err != nil {
		t.Fatal(err)
	}
	var far *net.Interface
	if err := n.other.Do(func() (err error) {
		far, err = net.InterfaceByName("slow")
		return err
	}); err != nil {
		t.Fatal(err)
	}
	to := NewLinkDestination(near.Index, [6]byte(far.HardwareAddr))
	ethernet := append(append(append([]byte{}, far.HardwareAddr...), near.HardwareAddr...), 8, 0)
	var of Counters
	var sum Result
	begun := uint64(0)
	add := func() {
		begun++
		if b.Whole(to, &of, 1, 1028) {
			b.Part(make([]byte, 10))
			b.Part(ethernet)
			b.Part(udpPacket(uint32(begun), 1000))
		}
	}
	for of.Dropped.Load() == 0 {
		for range 64 {
			add()
		}
		addUp(&sum, b.Flush(monotonic()))
	}
	await(t, "drain the backlog", func() bool {
		addUp(&sum, b.Retry(monotonic()))
		return !b.Blocked()
	})
	if sum.Datagrams != of.Packets.Load() || sum.Full != of.Dropped.Load() || sum.Datagrams+sum.Full != begun {
		t.Errorf("of %d: counted %+v", begun, sum)
	}
	n.arrived(t, "slow", end, sum.Datagrams)
	if end.disordered.Load() != 0 {
		t.Error("out of order")
	}
	netnstest.Run(t, "ip", "link", "set", "slow", "down")
	add()
	add()
	if got := b.Flush(monotonic()); got.Returned != 2 || got.Messages != 0 {
		t.Errorf("an interface that is down: counted %+v", got)
	} else if m, _, reason := b.Returned(1, nil); len(m) != 10+14+1028 || !errors.Is(reason, unix.ENETDOWN) {
		t.Errorf("returned %d bytes: %v", len(m), reason)
	}
}

// udpPacket is a numbered packet of flow 0 by the slow link.
func udpPacket(number uint32, size int) []byte {
	p := make([]byte, 28+size)
	p[0], p[8], p[9] = 0x45, 64, unix.IPPROTO_UDP
	binary.BigEndian.PutUint16(p[2:], uint16(len(p)))
	copy(p[12:], []byte{10, 71, 1, 1})
	ip := slowAddr.As4()
	copy(p[16:], ip[:])
	sum := uint32(0)
	for i := 0; i < 20; i += 2 {
		sum += uint32(binary.BigEndian.Uint16(p[i:]))
	}
	sum = sum>>16 + sum&0xffff
	binary.BigEndian.PutUint16(p[10:], ^uint16(sum+sum>>16))
	binary.BigEndian.PutUint16(p[20:], 5000)
	binary.BigEndian.PutUint16(p[22:], testPort)
	binary.BigEndian.PutUint16(p[24:], uint16(8+size)) // no checksum
	binary.BigEndian.PutUint32(p[32:], number)
	return p
}

package batch

import (
	"bytes"
	"net"
	"net/netip"
	"testing"
	"time"
	"unsafe"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"uvxlan/tunnel/internal/mmsg"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// patience is how long a test waits for what must come.
const patience = 20 * time.Second

// loopback is a batch over n UDP sockets, and a socket that receives.
func loopback(tb testing.TB, n int, segment, v6 bool) (*Batch, *Destination, *net.UDPConn) {
	tb.Helper()
	family, ip := unix.AF_INET, net.IPv4(127, 0, 0, 1)
	if v6 {
		family, ip = unix.AF_INET6, net.IPv6loopback
	}
	c, err := net.ListenUDP("udp", &net.UDPAddr{IP: ip})
	if err != nil {
		tb.Skipf("no loopback address: %v", err)
	}
	tb.Cleanup(func() { c.Close() })
	_ = c.SetReadBuffer(4 << 20)
	var fds []int
	for range n {
		fd, err := unix.Socket(family, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0) // not O_NONBLOCK
		if err != nil {
			tb.Fatal(err)
		}
		tb.Cleanup(func() { unix.Close(fd) })
		fds = append(fds, fd)
	}
	config := UDPConfig{IPv4: fds, Segment: segment}
	if v6 {
		config = UDPConfig{IPv6: fds, Segment: segment}
	}
	addr := c.LocalAddr().(*net.UDPAddr).AddrPort()
	return newBatch(tb, config), NewDestination(netip.AddrPortFrom(addr.Addr().Unmap(), addr.Port())), c
}

func expect(t *testing.T, c *net.UDPConn, want [][]byte) {
	t.Helper()
	buf := make([]byte, 64<<10)
	for i, w := range want {
		if err := c.SetReadDeadline(time.Now().Add(patience)); err != nil {
			t.Fatal(err)
		}
		n, err := c.Read(buf)
		if err != nil || !bytes.Equal(buf[:n], w) {
			t.Fatalf("datagram %d: got %d bytes, want %d, the same: %t, %v", i, n, len(w), bytes.Equal(buf[:n], w), err)
		}
	}
}

// datagrams makes datagrams of the given sizes in memory outside Go's heap;
// every second one lies behind the one before, as packets in an arena do.
func datagrams(tb testing.TB, sizes ...int) (all [][]byte) {
	tb.Helper()
	arena, err := unix.Mmap(-1, 0, 1<<20, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = unix.Munmap(arena) })
	at := 0
	for i, n := range sizes {
		at += 1 - i%2
		d := arena[at : at+n : at+n]
		for j := range d {
			d[j] = byte(i + j)
		}
		all = append(all, d)
		at += n
	}
	return all
}

func repeat(size, n int) []int {
	sizes := make([]int, n)
	for i := range sizes {
		sizes[i] = size
	}
	return sizes
}

func TestRuns(t *testing.T) {
	for _, c := range []struct {
		name     string
		sizes    []int
		ecn      []uint8
		messages uint64 // with segmentation
	}{
		{"one", []int{100}, nil, 1},
		{"equal", []int{100, 100, 100, 100}, nil, 1},
		{"last is shorter", []int{100, 100, 60, 60, 100}, nil, 3},
		{"longer starts a new run", []int{60, 100, 100}, nil, 2},
		{"ECN differs", []int{100, 100, 100}, []uint8{0, 2, 2}, 2},
		{"more than a run takes", repeat(64, 100), nil, 2},
		{"more bytes than a run takes", []int{30000, 30000, 30000}, nil, 2},
	} {
		for _, v6 := range []bool{false, true} {
			for _, segment := range []bool{true, false} {
				t.Run(c.name, func(t *testing.T) {
					b, to, conn := loopback(t, 1, segment, v6)
					want := datagrams(t, c.sizes...)
					sum := 0
					for i, d := range want {
						ecn := uint8(0)
						if c.ecn != nil {
							ecn = c.ecn[i]
						}
						if !b.Begin(to, nil, 0, ecn, 1, len(d)) {
							t.Fatal("not accepted")
						}
						b.Append(d[:len(d)/3], d[len(d)/3:])
						sum += len(d)
					}
					n, messages := uint64(len(want)), c.messages
					if !segment {
						messages = n
					}
					if got := b.Flush(1); got != (Result{Packets: n, Messages: messages, Datagrams: n, Bytes: uint64(sum)}) {
						t.Errorf("counted %+v, want %d messages", got, messages)
					}
					expect(t, conn, want)
				})
			}
		}
	}
}

// A run grows although datagrams for other sockets come in between, and each
// socket's are sent in order.
func TestInterleavedRuns(t *testing.T) {
	const flows, each = 16, 20
	b, _ := pooled(t)
	k := newKernel(b)
	to := host(1)
	want := make([][][]byte, flows)
	for i, d := range datagrams(t, repeat(64, flows*each)...) {
		put(b, to, i%flows, d)
		want[i%flows] = append(want[i%flows], d)
	}
	got := b.Flush(1)
	if got.Messages != flows || k.calls != flows || got.Datagrams != flows*each {
		t.Errorf("%d calls, counted %+v", k.calls, got)
	}
	for i, w := range want {
		same(t, "a socket", k.of(sockets[i], nil), w)
	}
}

// The same over real sockets: the kernel reads what was laid out.
func TestInterleavedRunsArrive(t *testing.T) {
	b, to, conn := loopback(t, 4, true, false)
	all := datagrams(t, repeat(100, 40)...)
	for i, d := range all {
		put(b, to, i%4, d)
	}
	if got := b.Flush(1); got.Messages != 4 || got.Datagrams != 40 {
		t.Errorf("counted %+v", got)
	}
	var next [4]int
	buf := make([]byte, 1000)
	for range all {
		if err := conn.SetReadDeadline(time.Now().Add(patience)); err != nil {
			t.Fatal(err)
		}
		n, err := conn.Read(buf)
		if err != nil {
			t.Fatal(err)
		}
		flow := int(buf[0]) % 4
		if want := all[next[flow]*4+flow]; !bytes.Equal(buf[:n], want) {
			t.Fatalf("flow %d: datagram %d is another", flow, next[flow])
		}
		next[flow]++
	}
}

// Pieces that lie behind each other in memory are one.
func TestAdjacentPieces(t *testing.T) {
	b, k := pooled(t)
	to, d := host(1), datagrams(t, 64, 64, 64, 64)
	for _, d := range d {
		put(b, to, 0, d)
	}
	if b.pieces != 2 {
		t.Errorf("%d pieces", b.pieces)
	}
	b.Flush(1)
	same(t, "sent", k.take(), d)
}

// A superpacket's datagrams count as one packet, and their encapsulation doesn't
// count as bytes.
func TestCounts(t *testing.T) {
	b := newBatch(t, UDPConfig{IPv4: sockets, Segment: true, Overhead: 22})
	newKernel(b)
	to := host(1)
	var first, second Counters
	send := func(of *Counters, n int) {
		if !b.Begin(to, of, 7, 0, n, n*1000) {
			t.Fatal("not accepted")
		}
		for _, d := range numbered(0, n, 1022) {
			b.Append(d[:50], d[50:])
		}
	}
	send(&first, 70) // more than a run takes
	send(&second, 1)
	send(&second, 2)
	if got := b.Flush(1); got != (Result{Packets: 3, Messages: 3, Datagrams: 73, Bytes: 73000}) {
		t.Errorf("counted %+v", got)
	}
	if first.Packets.Load() != 70 || first.Bytes.Load() != 70000 || second.Packets.Load() != 3 || second.Bytes.Load() != 3000 {
		t.Errorf("peers: %d packets %d bytes, %d packets %d bytes",
			first.Packets.Load(), first.Bytes.Load(), second.Packets.Load(), second.Bytes.Load())
	}
	if got := b.Flush(2); got != (Result{}) {
		t.Errorf("an empty batch counted %+v", got)
	}
}

func TestNoSocketOfTheFamily(t *testing.T) {
	b, _ := pooled(t)
	var of Counters
	if b.Begin(NewDestination(netip.MustParseAddrPort("[2001:db8::1]:4789")), &of, 1, 0, 5, 5000) {
		t.Error("accepted")
	}
	if got := b.Flush(1); got != (Result{Refused: 5}) || of.Dropped.Load() != 5 {
		t.Errorf("counted %+v, of the peer %d", got, of.Dropped.Load())
	}
}

func TestFits(t *testing.T) {
	b, k := pooled(t)
	d, to := numbered(0, 1, 64)[0], host(1)
	begun := 0
	for ; b.Fits(2); begun++ {
		put(b, to, begun, d[:64-begun%2]) // mostly runs of one
	}
	if begun < maxMessages {
		t.Errorf("full after %d datagrams", begun)
	}
	if got := b.Flush(1); got.Datagrams != uint64(begun) || len(k.take()) != begun || !b.Fits(maxPieces) {
		t.Errorf("counted %+v of %d", got, begun)
	}
}

// What is borrowed may be large, but what is kept for it may not.
func TestSize(t *testing.T) {
	if size := unsafe.Sizeof(Batch{}); size > 150<<10 {
		t.Errorf("a batch has %d bytes", size)
	}
}

func TestNoAllocation(t *testing.T) {
	b, to, conn := loopback(t, 16, true, false)
	_ = conn.SetReadBuffer(1) // what isn't read is dropped
	var of Counters
	d := datagrams(t, repeat(100, 128)...)
	now := int64(0)
	if n := testing.AllocsPerRun(100, func() {
		now += int64(time.Millisecond)
		for i, d := range d {
			if b.Begin(to, &of, uint32(i), uint8(i&2), 1, len(d)) {
				b.Append(d[:20], d[20:])
			}
		}
		b.Flush(now)
	}); n != 0 {
		t.Errorf("%v allocations a flush", n)
	}
	full := func(int, []mmsg.Header) (int, unix.Errno) { return 0, unix.EAGAIN }
	if n := testing.AllocsPerRun(100, func() {
		now += int64(time.Millisecond)
		b.sendmmsg = full
		for i, d := range d {
			if b.Begin(to, &of, uint32(i), 0, 1, len(d)) {
				b.Append(d[:20], d[20:])
			}
		}
		b.Flush(now)
		b.sendmmsg = mmsg.Send
		b.Retry(now)
	}); n != 0 {
		t.Errorf("%v allocations a flush through the backlog", n)
	}
	if of.Packets.Load() == 0 || b.Blocked() {
		t.Errorf("sent %d, blocked: %t", of.Packets.Load(), b.Blocked())
	}
}

func TestBuffers(t *testing.T) {
	_, _, conn := loopback(t, 0, true, false)
	raw, err := conn.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		set  func(int) error
		opt  int
		size int
	}{{SetSendBuffer, unix.SO_SNDBUF, SendBuffer}, {SetReceiveBuffer, unix.SO_RCVBUF, ReceiveBuffer}} {
		var got int
		var failed error
		if err := raw.Control(func(fd uintptr) {
			failed = c.set(int(fd))
			got, _ = unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, c.opt)
		}); err != nil || failed != nil {
			t.Error(err, failed)
		}
		if got > 2*c.size || got < 100<<10 {
			t.Errorf("asked for %d bytes, got %d", c.size, got)
		}
	}
	if SetSendBuffer(-1) == nil || SetReceiveBuffer(-1) == nil {
		t.Error("no socket has a buffer")
	}
}

package tunnel

import (
	"bytes"
	"errors"
	"net"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"uvxlan/encap"
	"uvxlan/tunnel/internal/arena"
	"uvxlan/tunnel/internal/testhost"
)

func newArena(t testing.TB, size int) *arena.Arena {
	t.Helper()
	a, err := arena.Map(size, false)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := a.Close(); err != nil {
			t.Error(err)
		}
	})
	return a
}

// loopback is a UDP socket to receive from, and one that sends to it.
func loopback(t *testing.T) (fd int, to *net.UDPConn) {
	t.Helper()
	fd, err := udpSocket(false)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	if err := bind(fd, netip.MustParseAddrPort("127.0.0.1:0")); err != nil {
		t.Fatal(err)
	}
	address, err := boundTo(fd)
	if err != nil {
		t.Fatal(err)
	}
	to, err = net.DialUDP("udp4", nil, net.UDPAddrFromAddrPort(address))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { to.Close() })
	return fd, to
}

// A batch of messages of any size arrives whole, in calls that each find others
// in the long buffers.
func TestInboxTakesMessagesOfAnySize(t *testing.T) {
	fd, to := loopback(t)
	b := newInbox(newArena(t, inboxMemory))
	sizes := []int{0, 1, 1472, rxHead - 1, rxHead, rxHead + 1, 9000, maxRunBytes, 60, maxRunBytes - 1, 2*rxHead + 1}
	for round := range 3 {
		b.reset()
		var sent [][]byte
		for n := 0; n < rxBatch && b.unused > 0; {
			count := min(1+n%3, rxBatch-n, b.unused) // what the socket surely has room for
			for i := range count {
				m := bytes.Repeat([]byte{byte(round*rxBatch + n + i)}, sizes[(round+n+i)%len(sizes)])
				if _, err := to.Write(m); err != nil {
					t.Fatal(err)
				}
				sent = append(sent, m)
			}
			got, err := b.fill(fd, n, rxBatch-n)
			if err != nil || got != count {
				t.Fatalf("round %d: received %d of %d messages, %v", round, got, count, err)
			}
			n += got
		}
		long := 0
		for i, want := range sent {
			got := b.message(i)
			if !bytes.Equal(got, want) || cap(got) != len(got) || b.truncated(i) {
				t.Fatalf("round %d: message %d of %d bytes changed on its way", round, i, len(want))
			}
			if len(want) > rxHead {
				long++
			}
		}
		if b.unused != rxLong-long {
			t.Errorf("round %d: %d long buffers are unused after %d long messages", round, b.unused, long)
		}
	}
}

// A batch whose long buffers are all in use ends there; the socket keeps the rest.
func TestInboundDeliversMoreLongMessagesThanABatchHolds(t *testing.T) {
	port := freePort(t)
	a := newNode(t, 1, port, nil)
	defer a.Close()
	addPeers(t, a, testPeer9)
	w := newWire(t, 9, a)
	header := encap.MakeFrameHeader(testVNI, testMAC(1), testMAC(9), encap.EtherTypeIPv4)
	const packets = 2 * rxLong
	for i := range packets {
		w.send(t, header, testhost.UDPPacket("10.0.9.9", "10.0.1.9", rxHead+i))
	}
	in, received := a.workers[0].in, 0
	for received < packets {
		found, err := in.drain()
		if err != nil || found == none {
			t.Fatalf("%d of %d packets were delivered, %v", received, packets, err)
		}
		for ; received < int(in.total.rx.packets.Load()); received++ {
			if got, _ := a.queue.Receive(t); len(got) != encap.IPv4HeaderLen+8+rxHead+received {
				t.Fatalf("packet %d has %d bytes", received, len(got))
			}
		}
	}
}

// Packets of an ordinary MTU make head buffers resident and no long ones.
func TestSmallPacketsTakeLittleRoom(t *testing.T) {
	fd, to := loopback(t)
	b := newInbox(newArena(t, inboxMemory))
	for n := range rxBatch {
		if _, err := to.Write(make([]byte, 1472)); err != nil {
			t.Fatal(err)
		}
		if got, err := b.fill(fd, n, rxBatch-n); got != 1 || err != nil {
			t.Fatalf("received %d messages, %v", got, err)
		}
	}
	if n := residentBytes(t, b.longs); n != 0 {
		t.Errorf("%d bytes of long buffers are resident", n)
	}
	if n, most := residentBytes(t, b.heads), len(b.heads)+os.Getpagesize(); n == 0 || n > most {
		t.Errorf("%d bytes of head buffers are resident, want some and at most %d", n, most)
	}
}

// residentBytes is how much of the pages that lie within b is in memory
// (mincore(2)).
func residentBytes(t *testing.T, b []byte) (n int) {
	t.Helper()
	page := os.Getpagesize()
	skip := int(-uintptr(unsafe.Pointer(unsafe.SliceData(b))) % uintptr(page))
	b = b[skip:]
	pages := make([]byte, len(b)/page)
	_, _, errno := unix.Syscall(unix.SYS_MINCORE, uintptr(unsafe.Pointer(unsafe.SliceData(b))), uintptr(len(pages)*page),
		uintptr(unsafe.Pointer(&pages[0])))
	if errno != 0 {
		t.Fatal("mincore:", errno)
	}
	for _, p := range pages {
		n += int(p&1) * page
	}
	return n
}

// mappedForPackets is how much is mapped that is to have no huge pages, which is
// what routers map and little else.
func mappedForPackets(t *testing.T) (kib int) {
	t.Helper()
	smaps, err := os.ReadFile("/proc/self/smaps")
	if err != nil {
		t.Fatal(err)
	}
	size := 0
	for line := range strings.Lines(string(smaps)) {
		f := strings.Fields(line)
		switch f[0] {
		case "Size:":
			if size, err = strconv.Atoi(f[1]); err != nil {
				t.Fatal(err)
			}
		case "VmFlags:":
			if slices.Contains(f, "nh") { // VM_NOHUGEPAGE
				kib += size
			}
		}
	}
	return kib
}

// Close gives back what New has mapped, and so does a New that fails half-way.
func TestRouterGivesItsMemoryBack(t *testing.T) {
	before := mappedForPackets(t)
	a := newNode(t, 1, freePort(t), nil)
	if n := mappedForPackets(t) - before; n == 0 {
		t.Skip("the kernel doesn't tell which memory has no huge pages")
	}
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	if n := mappedForPackets(t) - before; n != 0 {
		t.Errorf("%d KiB are mapped after Close", n)
	}

	dev := testhost.NewMemoryDevice(t, 2, 0)
	u, err := Listen(UnderlayConfig{Address: netip.MustParseAddr("127.0.0.1"), Port: freePort(t), Workers: 2})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := errors.Join(u.Close(), dev.Close()); err != nil {
			t.Error(err)
		}
	}()
	// There is a descriptor for the first worker, and none for the second.
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	next, err := unix.Dup(0)
	if err != nil {
		t.Fatal(err)
	}
	unix.Close(next)
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: uint64(next) + 1, Max: limit.Max}); err != nil {
		t.Fatal(err)
	}
	r, failure := New(dev, u, a.config)
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	if !errors.Is(failure, unix.EMFILE) {
		t.Errorf("New returned %v, %v", r, failure)
	}
	if n := mappedForPackets(t) - before; n != 0 {
		t.Errorf("%d KiB are mapped after New has failed", n)
	}
}

// A router's packets don't count in Go's heap, whose collector lets as much
// garbage gather as is in use.
func TestRouterTakesLittleHeap(t *testing.T) {
	heap := func() int {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return int(m.HeapAlloc)
	}
	before := heap()
	a := newNode(t, 1, freePort(t), nil)
	defer a.Close()
	if n := heap() - before; n > 3<<20 {
		t.Errorf("a router with one worker takes %d KiB of Go's heap", n>>10)
	} else {
		t.Logf("a router with one worker takes %d KiB of Go's heap", n>>10)
	}
}

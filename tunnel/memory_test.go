package tunnel

import (
	"errors"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"uvxlan/encap"
	"uvxlan/tunnel/internal/arena"
	"uvxlan/tunnel/internal/testhost"
	"uvxlan/tunnel/underlay"
)

// A batch whose long buffers are all in use ends there; the socket keeps the rest.
func TestInboundDeliversMoreLongMessagesThanABatchHolds(t *testing.T) {
	port := testhost.FreePort(t)
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
	a := newNode(t, 1, testhost.FreePort(t), nil)
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
	u, err := underlay.Listen(underlay.Config{Address: netip.MustParseAddr("127.0.0.1"), Port: testhost.FreePort(t), Workers: 2})
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
	a := newNode(t, 1, testhost.FreePort(t), nil)
	defer a.Close()
	if n := heap() - before; n > 1<<20 {
		t.Errorf("a router with one worker takes %d KiB of Go's heap", n>>10)
	} else {
		t.Logf("a router with one worker takes %d KiB of Go's heap", n>>10)
	}
}

// rxLong and rxHead are the underlay's: how many messages of a batch may be longer
// than rxHead.
const rxLong, rxHead = 32, 2 << 10

func newArena(t testing.TB, size int) *arena.Arena {
	t.Helper()
	a, err := arena.Map(size, false)
	testhost.Must(t, err)
	t.Cleanup(func() { testhost.Must(t, a.Close()) })
	return a
}

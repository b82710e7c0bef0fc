package underlay

import (
	"bytes"
	"net"
	"net/netip"
	"os"
	"testing"
	"unsafe"

	"uvxlan/tunnel/internal/arena"

	"golang.org/x/sys/unix"
)

// maxPayload is the longest UDP payload over IPv4.
const maxPayload = 65507

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
	sizes := []int{0, 1, 1472, rxHead - 1, rxHead, rxHead + 1, 9000, maxPayload, 60, maxPayload - 1, 2*rxHead + 1}
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

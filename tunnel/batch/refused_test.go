package batch

import (
	"errors"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// What is refused as a run goes out as single datagrams. The destination gets
// runs again after a while, which grows as long as they are refused.
func TestRunsComeBack(t *testing.T) {
	b, k := pooled(t)
	to, now := host(1), int64(1)
	refusing := true
	k.refuse = func(_ int, m wire) unix.Errno {
		if refusing && m.segment > 0 {
			return unix.EMSGSIZE
		}
		return 0
	}
	// round tells whether a run was tried, and whether it was refused.
	round := func() (tried, refused bool) {
		d := numbered(int(now%1000000), 4, 100)
		for _, d := range d {
			put(b, to, 5, d)
		}
		tried = b.used == 1
		got := b.Flush(now)
		if got.Datagrams != 4 || got.Packets != 4 || got.Bytes != 400 || got.Dropped() != 0 {
			t.Fatalf("counted %+v", got)
		}
		same(t, "sent", k.take(), d)
		return tried, got.Fallbacks == 1
	}
	if tried, refused := round(); !tried || !refused || !to.TooBig() || to.TooBig() {
		t.Fatalf("tried: %t, refused: %t", tried, refused)
	}
	for _, wait := range []time.Duration{1, 2, 4, 8, 16, 32, 60, 60} {
		now += int64(wait*time.Second) - 1
		if tried, _ := round(); tried {
			t.Errorf("a run %s too early", wait*time.Second)
		}
		now++
		b.Flush(now)
		if tried, refused := round(); !tried || !refused {
			t.Errorf("no run after %s", wait*time.Second)
		}
		if tried, _ := round(); tried {
			t.Error("a run after it was refused")
		}
	}
	refusing = false
	now += int64(runsOffMax)
	b.Flush(now)
	for range 3 {
		if tried, refused := round(); !tried || refused {
			t.Error("runs don't come back")
		}
	}
	refusing = true
	round()
	now += int64(runsOffMin)
	b.Flush(now)
	if tried, _ := round(); !tried {
		t.Error("the wait isn't short again")
	}
}

// Datagrams that are too long for the path make no runs, which would be refused, and
// don't keep shorter ones from making some. A changed MTU is a reason to try again.
func TestLongDatagramsMakeNoRuns(t *testing.T) {
	b, k := pooled(t)
	to := host(1)
	k.refuse = func(_ int, m wire) unix.Errno {
		if m.segment > 100 {
			return unix.EMSGSIZE
		}
		return 0
	}
	send := func(size int) Result {
		d := numbered(0, 3, size)
		for _, d := range d {
			put(b, to, 5, d)
		}
		got := b.Flush(1)
		same(t, "sent", k.take(), d)
		return got
	}
	to.SetMaxDatagram(100)
	if got := send(101); got.Messages != 3 || got.Fallbacks != 0 || to.TooBig() {
		t.Errorf("long ones: counted %+v", got)
	}
	if got := send(100); got.Messages != 1 || got.Datagrams != 3 {
		t.Errorf("shorter ones: counted %+v", got)
	}
	to.SetMaxDatagram(0)
	if got := send(101); got.Fallbacks != 1 || !to.TooBig() || to.Runs(1) {
		t.Errorf("of an unknown path: counted %+v", got)
	}
	to.SetMaxDatagram(100)
	if !to.Runs(1) || to.MaxDatagram() != 100 {
		t.Error("no runs although the MTU is known")
	}
	if !to.Used() || to.Used() {
		t.Error("it doesn't tell of its use")
	}
}

// A run whose single datagrams fail as well was not refused for being one.
func TestPassingFaultKeepsRuns(t *testing.T) {
	b, k := pooled(t)
	to := host(1)
	var of Counters
	k.refuse = func(int, wire) unix.Errno { return unix.EINVAL }
	for _, d := range numbered(0, 3, 100) {
		if b.Begin(to, &of, 0, 0, 1, 100) {
			b.Append(d, nil)
		}
	}
	if got := b.Flush(1); got != (Result{Refused: 3}) || !to.Runs(1) || of.Dropped.Load() != 3 || of.Packets.Load() != 0 {
		t.Errorf("runs: %t, counted %+v", to.Runs(1), got)
	}
}

// Only some datagrams of a run that is sent singly may pass.
func TestSinglesCount(t *testing.T) {
	b, k := pooled(t)
	var of Counters
	d := numbered(0, 9, 100)
	k.refuse = func(_ int, m wire) unix.Errno {
		switch {
		case m.segment > 0:
			return unix.EIO
		case m.data[5] == '3':
			return unix.EPERM
		case m.data[5] == '4':
			return unix.ENOBUFS
		}
		return 0
	}
	b.Begin(host(1), &of, 0, 2, 9, 900)
	for i, d := range d {
		b.Append(d[:i*10], d[i*10:])
	}
	if got := b.Flush(1); got != (Result{Packets: 1, Messages: 7, Datagrams: 7, Bytes: 700, Refused: 1, Congested: 1, Fallbacks: 1}) {
		t.Errorf("counted %+v", got)
	}
	if of.Packets.Load() != 7 || of.Dropped.Load() != 2 {
		t.Errorf("of the peer %d sent, %d dropped", of.Packets.Load(), of.Dropped.Load())
	}
	for _, m := range k.sent {
		if m.ecn != 2 {
			t.Errorf("a datagram's ECN field is %d", m.ecn)
		}
	}
	same(t, "sent", k.take(), append(d[:3:3], d[5:]...))
}

// The buffer may be full in the middle of a run that is sent singly; the rest of
// it waits, and is no run either when it goes.
func TestSinglesIntoFullBuffer(t *testing.T) {
	b := newBatch(t, UDPConfig{IPv4: sockets[:1], Segment: true})
	k := newKernel(b)
	k.refuse = func(_ int, m wire) unix.Errno {
		if m.segment > 0 {
			return unix.EMSGSIZE
		}
		return 0
	}
	d, to := numbered(0, 8, 100), host(1)
	for _, d := range d {
		put(b, to, 0, d)
	}
	k.drain(250, sockets[0])
	got := b.Flush(1)
	if got.Datagrams != 3 || !b.Blocked() {
		t.Fatalf("counted %+v", got)
	}
	k.drain(150, sockets[0])
	addUp(&got, b.Retry(2))
	k.drain(1<<20, sockets[0])
	addUp(&got, b.Retry(3))
	if got.Datagrams != 8 || got.Packets != 8 || got.Bytes != 800 || got.Dropped() != 0 {
		t.Errorf("counted %+v", got)
	}
	same(t, "sent", k.take(), d)
}

// An error that is another message's costs nothing.
func TestPendingError(t *testing.T) {
	b, k := pooled(t)
	left := 0
	k.refuse = func(int, wire) unix.Errno {
		if left == 0 {
			return 0
		}
		left--
		return unix.ECONNREFUSED
	}
	for n := range 5 { // before which message
		d := numbered(0, 5, 100)
		for i, d := range d {
			put(b, host(i), 0, d)
		}
		at := 0
		refuse := k.refuse
		k.refuse = func(fd int, m wire) unix.Errno {
			if at++; at == n+1 {
				left = 1
			}
			return refuse(fd, m)
		}
		if got := b.Flush(1); got != (Result{Packets: 5, Messages: 5, Datagrams: 5, Bytes: 500}) {
			t.Errorf("error before message %d: counted %+v", n, got)
		}
		same(t, "sent", k.take(), d)
		k.refuse = refuse
	}
}

// A destination that can't be reached takes none of the others' datagrams along.
func TestRefusedDestination(t *testing.T) {
	b, to, conn := loopback(t, 1, true, false)
	nowhere := NewDestination(netip.MustParseAddrPort("255.255.255.255:9")) // without SO_BROADCAST: EACCES
	d := datagrams(t, 100, 200, 200, 300)
	var good, bad Counters
	add := func(to *Destination, of *Counters, d []byte) {
		b.Begin(to, of, 0, 0, 1, len(d))
		b.Append(d, nil)
	}
	add(to, &good, d[0])
	add(nowhere, &bad, d[1])
	add(nowhere, &bad, d[2])
	add(to, &good, d[3])
	if got := b.Flush(1); got != (Result{Packets: 2, Messages: 2, Datagrams: 2, Bytes: 400, Refused: 2}) {
		t.Errorf("counted %+v", got)
	}
	if good.Packets.Load() != 2 || good.Dropped.Load() != 0 || bad.Packets.Load() != 0 || bad.Dropped.Load() != 2 {
		t.Error("the peers' counters are wrong")
	}
	expect(t, conn, [][]byte{d[0], d[3]})
}

// A datagram that no path takes tells so.
func TestTooBig(t *testing.T) {
	b, to, _ := loopback(t, 1, true, false)
	put(b, to, 0, datagrams(t, 65508)[0])
	if got := b.Flush(1); got.Refused != 1 || !to.TooBig() || to.TooBig() {
		t.Errorf("counted %+v", got)
	}
}

func packetBatch(t *testing.T) (*Batch, *kernel) {
	b, err := NewPacket(sockets[:1]...)
	owned(t, b, err)
	return b, newKernel(b)
}

func whole(b *Batch, to *Destination, of *Counters, segments int, parts ...string) bool {
	bytes := 0
	for _, p := range parts {
		bytes += len(p)
	}
	if !b.Whole(to, of, segments, bytes) {
		return false
	}
	for _, p := range parts {
		b.Part([]byte(p))
	}
	return true
}

// A link that takes no more gives back what it was to take, in order, and so do
// the messages that follow on it; other links' pass.
func TestReturned(t *testing.T) {
	b, k := packetBatch(t)
	good, bad := NewLinkDestination(2, [6]byte{2, 0, 0, 0, 0, 1}), NewLinkDestination(3, [6]byte{2, 0, 0, 0, 0, 2})
	var of, bads Counters
	k.refuse = func(_ int, m wire) unix.Errno {
		if m.to == string(bad.name[:bad.len]) {
			return unix.ENETDOWN
		}
		return 0
	}
	whole(b, good, &of, 3, "vnet", "1")
	whole(b, bad, &bads, 4, "vnet", "2", "more")
	whole(b, good, &of, 1, "vnet", "3")
	whole(b, bad, &bads, 1, "vnet", "4")
	whole(b, bad, &bads, 1, "vnet", "5")
	whole(b, good, &of, 1, "vnet", "6")
	got := b.Flush(1)
	if got != (Result{Packets: 3, Messages: 3, Datagrams: 5, Bytes: 15, Returned: 3}) {
		t.Errorf("counted %+v", got)
	}
	if of.Packets.Load() != 5 || bads.Packets.Load() != 0 || bads.Dropped.Load() != 0 {
		t.Errorf("of the peers %d and %d packets, %d dropped", of.Packets.Load(), bads.Packets.Load(), bads.Dropped.Load())
	}
	for i, want := range []string{"vnet2more", "vnet4", "vnet5"} {
		message, to, reason := b.Returned(i, nil)
		if string(message) != want || to != bad || !errors.Is(reason, unix.ENETDOWN) {
			t.Errorf("returned %q, %v", message, reason)
		}
	}
	same(t, "sent", k.take(), [][]byte{[]byte("vnet1"), []byte("vnet3"), []byte("vnet6")})
}

// What waited is returned as well.
func TestReturnedFromBacklog(t *testing.T) {
	b, k := packetBatch(t)
	to := NewLinkDestination(2, [6]byte{2, 0, 0, 0, 0, 1})
	k.fill(sockets[0])
	for i := range 3 {
		whole(b, to, nil, 1, "vnet", string(rune('0'+i)))
	}
	if got := b.Flush(1); got != (Result{}) || !b.Holds(to) {
		t.Errorf("counted %+v", got)
	}
	k.drain(1<<20, sockets[0])
	k.refuse = func(_ int, m wire) unix.Errno {
		if string(m.data) == "vnet1" {
			return unix.ENODEV
		}
		return 0
	}
	if got := b.Retry(2); got.Messages != 1 || got.Returned != 2 || b.Blocked() {
		t.Errorf("blocked: %t, counted %+v", b.Blocked(), got)
	}
	for i, want := range []string{"vnet1", "vnet2"} {
		if message, _, reason := b.Returned(i, nil); string(message) != want || !errors.Is(reason, unix.ENODEV) {
			t.Errorf("returned %q, %v", message, reason)
		}
	}
}

// The interface's queue drops for want of room, which no other way would help.
func TestCongestedInterface(t *testing.T) {
	b, k := packetBatch(t)
	to := NewLinkDestination(2, [6]byte{2, 0, 0, 0, 0, 1})
	var of Counters
	k.refuse = func(_ int, m wire) unix.Errno {
		if string(m.data) == "vnet1" {
			return unix.ENOBUFS
		}
		return 0
	}
	for i := range 3 {
		whole(b, to, &of, 5, "vnet", string(rune('0'+i)))
	}
	if got := b.Flush(1); got.Congested != 5 || got.Datagrams != 10 || got.Returned != 0 || of.Dropped.Load() != 5 {
		t.Errorf("counted %+v", got)
	}
}

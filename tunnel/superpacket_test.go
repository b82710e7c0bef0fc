package tunnel

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"

	"uvxlan/encap"
	"uvxlan/tunnel/internal/flowlimit"
	"uvxlan/tunnel/internal/testhost"
	"uvxlan/tunnel/offload"
	"uvxlan/tunnel/underlay"
)

func withAllOffloads(t *testing.T, n byte, port uint16) *node {
	t.Helper()
	nd := newNodeOn(t, testhost.NewMemoryDevice(t, 1, offload.All), n, port, offload.All, nil)
	nd.run(t)
	return nd
}

// A superpacket goes out as segments of the MTU and comes out of the other
// router's device as it went in.
func TestRouterCarriesSuperpackets(t *testing.T) {
	port := testhost.FreePort(t)
	a, b := withAllOffloads(t, 1, port), withAllOffloads(t, 2, port)
	addPeers(t, a, b.peer)
	addPeers(t, b, a.peer)
	const size = 1398
	for _, payload := range []int{size + 1, 10 * size, 64000} {
		sent := testhost.TCPPacket("10.0.1.9", "10.0.2.9", 1000, payload)
		if err := a.queue.Write(testhost.Superpacket(size), [][]byte{sent}); err != nil {
			t.Fatal(err)
		}
		got, offload := receiveFlow(t, b, len(sent))
		if !bytes.Equal(got, sent) {
			t.Errorf("%d bytes of payload: the superpacket changed on its way", payload)
		}
		if offload.GSO != encap.GSOTCPv4 || offload.SegmentSize != size || !offload.NeedsChecksum {
			t.Errorf("%d bytes of payload: offload %+v", payload, offload)
		}
	}
	waitStats(t, a, func(s Stats) bool { return s.TxPackets == 3 && s.TxDatagrams == 2+10+46 && s.Dropped() == 0 })
}

// A superpacket that no peer takes is as many dropped packets as it has segments.
func TestRouterCountsDroppedSegments(t *testing.T) {
	a := withAllOffloads(t, 1, testhost.FreePort(t))
	const size, segments = 1398, 10
	for _, dst := range []string{"10.0.99.9", "224.0.0.1"} {
		sent := testhost.TCPPacket("10.0.1.9", dst, 1000, segments*size)
		testhost.Must(t, a.queue.Write(testhost.Superpacket(size), [][]byte{sent}))
	}
	waitStats(t, a, func(s Stats) bool { return s.Drop(DropNoRoute) == segments && s.Drop(DropMulticast) == segments })
}

// receiveFlow reads superpackets until they have the bytes of one of the given
// length. How many there are depends on how the datagrams were received.
func receiveFlow(t *testing.T, n *node, length int) ([]byte, encap.Offload) {
	t.Helper()
	whole, offload := n.queue.Receive(t)
	for len(whole) < length {
		more, o := n.queue.Receive(t)
		whole = append(whole, more[52:]...)
		if o.GSO != encap.GSONone {
			offload = o
		}
	}
	p := encap.IPv4(whole)
	p.SetTotalLen(len(p))
	p.UpdateChecksum()
	p[33] |= 0x08 // PSH is the last one's
	binary.BigEndian.PutUint16(p[36:], encap.Fold(p.PseudoHeaderSum(encap.ProtoTCP, len(p)-20)))
	return p, offload
}

// What a container's kernel leaves of a lone packet's checksum is filled in.
func TestRouterFillsChecksum(t *testing.T) {
	port := testhost.FreePort(t)
	a, b := withAllOffloads(t, 1, port), withAllOffloads(t, 2, port)
	addPeers(t, a, b.peer)
	addPeers(t, b, a.peer)
	sent := testhost.TCPPacket("10.0.1.9", "10.0.2.9", 1000, 333)
	o := encap.Offload{NeedsChecksum: true, ChecksumStart: 20, ChecksumOffset: 16}
	if err := a.queue.Write(o, [][]byte{sent}); err != nil {
		t.Fatal(err)
	}
	got, offload := b.queue.Receive(t)
	if state, _, _ := encap.TransportChecksum(got); state != encap.ChecksumGood || offload != (encap.Offload{}) {
		t.Errorf("the checksum is %s, offload %+v", state, offload)
	}
}

// A kernel VXLAN peer on the same machine sends whole superpackets, unfilled.
func TestRouterTakesOversizedDatagrams(t *testing.T) {
	a := withAllOffloads(t, 1, testhost.FreePort(t))
	addPeers(t, a, testPeer9)
	header := encap.MakeFrameHeader(testVNI, testMAC(1), testMAC(9), encap.EtherTypeIPv4)
	sent := testhost.TCPPacket("10.0.9.1", "10.0.1.9", 7, 30000)
	w := newWire(t, 9, a)
	w.send(t, header, sent)
	got, offload := a.queue.Receive(t)
	if !bytes.Equal(got, sent) || offload != testhost.Superpacket(1450-52) {
		t.Errorf("the packet is unchanged: %t, offload %+v", bytes.Equal(got, sent), offload)
	}
	unfilled := testhost.TCPPacket("10.0.9.1", "10.0.1.9", 7, 100)
	w.send(t, header, unfilled)
	got, offload = a.queue.Receive(t)
	if !bytes.Equal(got, unfilled) || offload != (encap.Offload{NeedsChecksum: true, ChecksumStart: 20, ChecksumOffset: 16}) {
		t.Errorf("the packet is unchanged: %t, offload %+v", bytes.Equal(got, unfilled), offload)
	}
}

// loopQueue gives the same packets again and again and takes all.
type loopQueue struct {
	packets [][]byte
	offload encap.Offload
	next    int
	taken   int
}

func (q *loopQueue) FD() int { return -1 }

func (q *loopQueue) Read(buf []byte) (int, encap.Offload, error) {
	if q.next == len(q.packets) {
		q.next = 0
		return 0, encap.Offload{}, unix.EAGAIN
	}
	q.next++
	return copy(buf, q.packets[q.next-1]), q.offload, nil
}

func (q *loopQueue) Write(_ encap.Offload, parts [][]byte) error {
	for _, p := range parts {
		q.taken += len(p)
	}
	return nil
}

// newLoop makes a worker that sends what a loopQueue gives to itself.
func newLoop(t testing.TB, q *loopQueue) *worker {
	t.Helper()
	n := newNodeOn(t, testhost.NewMemoryDevice(t, 1, offload.All), 1, testhost.FreePort(t), offload.All, func(c *Config) { c.AnySource = true })
	t.Cleanup(func() {
		if err := n.Close(); err != nil {
			t.Error(err)
		}
	})
	// Not by UpdatePeers, which refuses our own address.
	n.peers.replace([]*entry{newEntry(n.peer, testVNI, n.config.MAC, n.destination(n.peer.Underlay))})
	w := n.workers[0]
	w.out.queue, w.in.queue = q, q
	return w
}

func loops() map[string]*loopQueue {
	small := &loopQueue{}
	for range 32 {
		small.packets = append(small.packets, testhost.UDPPacket("10.0.1.5", "10.0.1.9", 64))
	}
	bulk := &loopQueue{offload: testhost.Superpacket(1398)}
	for i := range 4 {
		bulk.packets = append(bulk.packets, testhost.TCPPacket("10.0.1.5", "10.0.1.9", uint32(i*62000), 62000))
	}
	return map[string]*loopQueue{"UDP 64 B": small, "TCP superpackets": bulk}
}

// round sends a batch and receives until all of it came back.
func round(t testing.TB, w *worker, q *loopQueue, want int) {
	if _, err := w.out.drain(); err != nil {
		t.Fatal(err)
	}
	for q.taken = 0; q.taken < want; {
		if _, err := w.in.drain(); err != nil {
			t.Fatal(err)
		}
	}
}

func (q *loopQueue) bytes() (n int) {
	for _, p := range q.packets {
		n += len(p)
	}
	return n
}

// refusingQueue answers every read but the first good ones with err.
type refusingQueue struct {
	loopQueue
	err  error
	good int
}

func (q *refusingQueue) Read(buf []byte) (int, encap.Offload, error) {
	if q.good == 0 {
		return 0, encap.Offload{}, q.err
	}
	q.good--
	return q.loopQueue.Read(buf)
}

// A device that gives nothing but errors doesn't keep its worker busy.
func TestOutboundRestsWhenEveryReadIsRefused(t *testing.T) {
	packet := testhost.UDPPacket("10.0.1.5", "224.0.0.1", 64) // dropped
	for _, err := range []error{unix.EINVAL, unix.EBADMSG, unix.ENOMEM} {
		for good, rests := range map[int]bool{0: true, 1: false} {
			synctest.Test(t, func(t *testing.T) {
				q := &refusingQueue{loopQueue{packets: [][]byte{packet}}, err, good}
				var c counters
				o := newOutbound(q, newPeerTable(), openMemory(t), nil, flowlimit.New(1450), newLocal(&Config{}), newArena(t, outboundMemory), &c)
				start := time.Now()
				l, drainErr := o.drain()
				if rested := time.Since(start) > 0; l != full || drainErr != nil || rested != rests {
					t.Errorf("%v after %d good packets: found %d, %v, rested: %t", err, good, l, drainErr, rested)
				}
				if n := c.drops[DropMalformedOut].Load(); n != uint64(txBatch-good) {
					t.Errorf("counted %d", n)
				}
			})
		}
	}
}

func TestWorkerDoesNotAllocate(t *testing.T) {
	for name, q := range loops() {
		w := newLoop(t, q)
		if n := testing.AllocsPerRun(100, func() { round(t, w, q, q.bytes()) }); n != 0 {
			t.Errorf("%s: %v allocations a batch", name, n)
		}
		var s Stats
		if w.total.addTo(&s); s.Dropped() != 0 {
			t.Errorf("%s: counted %+v", name, s)
		}
	}
}

// BenchmarkWorker sends and receives over loopback: both halves of the loop
// with real sockets and without a device.
func BenchmarkWorker(b *testing.B) {
	for name, q := range loops() {
		b.Run(name, func(b *testing.B) {
			w := newLoop(b, q)
			want := q.bytes()
			b.SetBytes(int64(want))
			b.ReportAllocs()
			for b.Loop() {
				round(b, w, q, want)
			}
		})
	}
}

// openMemory is a host of a network in memory.
func openMemory(t testing.TB) underlay.Conn {
	t.Helper()
	u, err := underlay.NewMemory().Listen(1, netip.MustParseAddrPort("192.0.2.1:4789"))
	testhost.Must(t, err)
	conn, err := u.Open(0, false)
	testhost.Must(t, err)
	t.Cleanup(func() { testhost.Must(t, u.Close()) })
	return conn
}

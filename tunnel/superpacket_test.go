package tunnel

import (
	"bytes"
	"encoding/binary"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"

	"uvxlan/encap"
	"uvxlan/tunnel/offload"
)

// tcpPacket is an IPv4 TCP packet whose checksum field holds the pseudo-header's
// sum, as a kernel hands over what it leaves to be finished.
func tcpPacket(src, dst string, seq uint32, payload int) encap.IPv4 {
	const ip, tcp = encap.IPv4HeaderLen, 32
	p := slices.Concat(udpPacket(src, dst, 0)[:ip], make([]byte, tcp+payload))
	for i := range payload {
		p[ip+tcp+i] = byte(int(seq) + i*7)
	}
	p[6], p[9] = 0x40, encap.ProtoTCP
	p.SetTotalLen(len(p))
	p.UpdateChecksum()
	h := p[ip:]
	binary.BigEndian.PutUint16(h, 40000)
	binary.BigEndian.PutUint16(h[2:], 5001)
	binary.BigEndian.PutUint32(h[4:], seq)
	h[12], h[13] = tcp/4<<4, 0x18
	copy(h[20:], []byte{1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2}) // timestamps
	binary.BigEndian.PutUint16(h[16:], encap.Fold(p.PseudoHeaderSum(encap.ProtoTCP, tcp+payload)))
	return p
}

// asSuperpacket is how a kernel hands over p to be cut into segments of size.
func asSuperpacket(size int) Offload {
	return Offload{
		NeedsChecksum: true, ChecksumStart: 20, ChecksumOffset: 16,
		GSO: encap.GSOTCPv4, SegmentSize: uint16(size), HeaderLen: 52,
	}
}

func withAllOffloads(t *testing.T, n byte, port uint16) *node {
	t.Helper()
	nd := newNodeOn(t, newMemoryDevice(t, 1, offload.All), n, port, offload.All, nil)
	nd.run(t)
	return nd
}

// A superpacket goes out as segments of the MTU and comes out of the other
// router's device as it went in.
func TestRouterCarriesSuperpackets(t *testing.T) {
	port := freePort(t)
	a, b := withAllOffloads(t, 1, port), withAllOffloads(t, 2, port)
	addPeers(t, a, b.peer)
	addPeers(t, b, a.peer)
	const size = 1398
	for _, payload := range []int{size + 1, 10 * size, 64000} {
		sent := tcpPacket("10.0.1.9", "10.0.2.9", 1000, payload)
		if err := a.queue.Write(asSuperpacket(size), [][]byte{sent}); err != nil {
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
	s := waitStats(t, a, func(s Stats) bool { return s.TxPackets == 3 })
	if s.TxDatagrams != 2+10+46 || s.Dropped() != 0 {
		t.Errorf("counted %+v", s)
	}
}

// receiveFlow reads superpackets until they have the bytes of one of the given
// length. How many there are depends on how the datagrams were received.
func receiveFlow(t *testing.T, n *node, length int) ([]byte, Offload) {
	t.Helper()
	whole, offload := n.queue.receive(t)
	for len(whole) < length {
		more, o := n.queue.receive(t)
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
	port := freePort(t)
	a, b := withAllOffloads(t, 1, port), withAllOffloads(t, 2, port)
	addPeers(t, a, b.peer)
	addPeers(t, b, a.peer)
	sent := tcpPacket("10.0.1.9", "10.0.2.9", 1000, 333)
	o := Offload{NeedsChecksum: true, ChecksumStart: 20, ChecksumOffset: 16}
	if err := a.queue.Write(o, [][]byte{sent}); err != nil {
		t.Fatal(err)
	}
	got, offload := b.queue.receive(t)
	if state, _, _ := encap.TransportChecksum(got); state != encap.ChecksumGood || offload != (Offload{}) {
		t.Errorf("the checksum is %s, offload %+v", state, offload)
	}
}

// A kernel VXLAN peer on the same machine sends whole superpackets, unfilled.
func TestRouterTakesOversizedDatagrams(t *testing.T) {
	a := withAllOffloads(t, 1, freePort(t))
	addPeers(t, a, testPeer9)
	header := encap.MakeFrameHeader(testVNI, testMAC(1), testMAC(9), encap.EtherTypeIPv4)
	sent := tcpPacket("10.0.9.1", "10.0.1.9", 7, 30000)
	w := newWire(t, 9, a)
	w.send(t, header, sent)
	got, offload := a.queue.receive(t)
	if !bytes.Equal(got, sent) || offload != asSuperpacket(1450-52) {
		t.Errorf("the packet is unchanged: %t, offload %+v", bytes.Equal(got, sent), offload)
	}
	unfilled := tcpPacket("10.0.9.1", "10.0.1.9", 7, 100)
	w.send(t, header, unfilled)
	got, offload = a.queue.receive(t)
	if !bytes.Equal(got, unfilled) || offload != (Offload{NeedsChecksum: true, ChecksumStart: 20, ChecksumOffset: 16}) {
		t.Errorf("the packet is unchanged: %t, offload %+v", bytes.Equal(got, unfilled), offload)
	}
}

// loopQueue gives the same packets again and again and takes all.
type loopQueue struct {
	packets [][]byte
	offload Offload
	next    int
	taken   int
}

func (q *loopQueue) FD() int { return -1 }

func (q *loopQueue) Read(buf []byte) (int, Offload, error) {
	if q.next == len(q.packets) {
		q.next = 0
		return 0, Offload{}, unix.EAGAIN
	}
	q.next++
	return copy(buf, q.packets[q.next-1]), q.offload, nil
}

func (q *loopQueue) Write(_ Offload, parts [][]byte) error {
	for _, p := range parts {
		q.taken += len(p)
	}
	return nil
}

// loop is a worker that sends what a loopQueue gives to itself.
func newLoop(t testing.TB, q *loopQueue) *worker {
	t.Helper()
	n := newNodeOn(t, newMemoryDevice(t, 1, offload.All), 1, freePort(t), offload.All, func(c *Config) { c.AnySource = true })
	t.Cleanup(func() {
		if err := n.Close(); err != nil {
			t.Error(err)
		}
	})
	addPeers(t, n, n.peer)
	w := n.workers[0]
	w.out.queue, w.in.queue = q, q
	return w
}

func loops() map[string]*loopQueue {
	small := &loopQueue{}
	for range 32 {
		small.packets = append(small.packets, udpPacket("10.0.1.5", "10.0.1.9", 64))
	}
	bulk := &loopQueue{offload: asSuperpacket(1398)}
	for i := range 4 {
		bulk.packets = append(bulk.packets, tcpPacket("10.0.1.5", "10.0.1.9", uint32(i*62000), 62000))
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

func (q *refusingQueue) Read(buf []byte) (int, Offload, error) {
	if q.good == 0 {
		return 0, Offload{}, q.err
	}
	q.good--
	return q.loopQueue.Read(buf)
}

// A device that gives nothing but errors doesn't keep its worker busy.
func TestOutboundRestsWhenEveryReadIsRefused(t *testing.T) {
	packet := udpPacket("10.0.1.5", "224.0.0.1", 64) // dropped
	for _, err := range []error{unix.EINVAL, unix.EBADMSG, unix.ENOMEM} {
		for good, rests := range map[int]bool{0: true, 1: false} {
			synctest.Test(t, func(t *testing.T) {
				q := &refusingQueue{loopQueue{packets: [][]byte{packet}}, err, good}
				var c counters
				o := newOutbound(q, newPeerTable(), [families][]*sender{}, nil, newLocal(&Config{}), &c)
				start := time.Now()
				l, drainErr := o.drain()
				if rested := time.Since(start) > 0; l != full || drainErr != nil || rested != rests {
					t.Errorf("%v after %d good packets: load %d, %v, rested: %t", err, good, l, drainErr, rested)
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

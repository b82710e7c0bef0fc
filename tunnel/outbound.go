package tunnel

import (
	"errors"
	"net/netip"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"uvxlan/encap"
)

// A packet's way out, in the order of the functions below:
//
//  1. drain reads packets from the device's queue into the arena, one after the
//     other, until there are none or the batch is full.
//  2. forward finds the peer whose subnet holds the destination, in the table
//     that was current when the batch began. Without one the sender is told.
//  3. The packet joins the batch of a sending socket, chosen by its flow: a
//     datagram of the peer's frame header and the packet where it lies.
//  4. send passes each socket's batch to the kernel in one call.

const (
	// txBatch is the most packets of a batch, txArena the bytes they may take
	// before the last: enough to spread a system call's cost, little enough to
	// stay in the cache.
	txBatch = 64
	txArena = 512 << 10
	// sendPatience is how long a full socket buffer may hold up a worker before
	// the datagram is dropped as a full interface queue would drop it.
	sendPatience = 5 * time.Millisecond
)

// outbound is the sending half of a worker.
type outbound struct {
	queue   Queue
	table   *peerTable
	sockets []*sender
	local   *local
	arena   []byte
	parts   [1][]byte
	answer  [encap.MaxICMPLen]byte
	tally   tally
	total   *counters
}

func newOutbound(q Queue, t *peerTable, fds []int, v6 bool, l *local, c *counters) *outbound {
	o := &outbound{queue: q, table: t, local: l, total: c, arena: make([]byte, txArena+MaxPacket)}
	for _, fd := range fds {
		o.sockets = append(o.sockets, newSender(fd, v6))
	}
	return o
}

// drain sends what the device has, up to one batch, and tells whether there may
// be more. Its error means that the device is of no more use.
func (o *outbound) drain() (more bool, err error) {
	peers := o.table.load()
	packets, used := 0, 0
	for packets < txBatch && used <= txArena {
		n, _, err := o.queue.Read(o.arena[used : used+MaxPacket])
		if errors.Is(err, unix.EAGAIN) {
			break
		}
		if err != nil {
			o.finish(packets)
			return false, err
		}
		o.forward(peers, o.arena[used:used+n])
		used += n
		packets++
	}
	o.finish(packets)
	return packets == txBatch || used > txArena, nil
}

// forward puts one packet where it is to go. The packet stays in the arena
// until the batch is sent.
func (o *outbound) forward(peers *table, packet []byte) {
	dst, ecn, ok := destination(packet)
	if !ok {
		o.tally.drop(DropMalformedOut)
		return
	}
	peer := peers.lookup(dst)
	if peer == nil {
		o.refuse(packet, dst)
		return
	}
	header := &peer.header4
	if dst.Is6() {
		header = &peer.header6
	}
	s := o.sockets[encap.FlowHash(packet)%uint32(len(o.sockets))]
	s.add(&peer.to, header, packet, ecn)
	o.tally.packets++
	o.tally.bytes += uint64(len(packet))
}

// destination is what an outgoing packet's path depends on.
func destination(packet []byte) (dst netip.Addr, ecn uint8, ok bool) {
	if p, err := encap.ParseIPv4(packet); err == nil {
		return p.Dst(), p.ECN(), true
	}
	if p, err := encap.ParseIPv6(packet); err == nil {
		return p.Dst(), p.ECN(), true
	}
	return netip.Addr{}, 0, false
}

// refuse drops a packet that no peer would take and tells its sender, as a
// router does (RFC 1812, section 4.3.3.1; RFC 4443, section 3.1).
func (o *outbound) refuse(packet []byte, dst netip.Addr) {
	if dst.IsMulticast() || dst == broadcast {
		o.tally.drop(DropMulticast)
		return
	}
	o.tally.drop(DropNoRoute)
	n := o.local.unreachable(o.answer[:], packet)
	if n == 0 {
		return
	}
	o.parts[0] = o.answer[:n]
	if o.queue.Write(Offload{}, o.parts[:]) == nil {
		o.tally.answers++
	}
}

var broadcast = netip.AddrFrom4([4]byte{255, 255, 255, 255})

// finish sends the batch and adds it to the totals.
func (o *outbound) finish(packets int) {
	if packets == 0 {
		return
	}
	for _, s := range o.sockets {
		s.send(&o.tally)
	}
	o.total.addTx(&o.tally)
}

// sender is one sending socket and its part of the batch.
type sender struct {
	fd   int
	n    int
	ecn  [4][]byte
	msgs [txBatch]mmsghdr
	iovs [txBatch][2]unix.Iovec
}

func newSender(fd int, v6 bool) *sender {
	s := &sender{fd: fd, ecn: ecnControls(v6)}
	for i := range s.msgs {
		h := &s.msgs[i].hdr
		h.Iov = &s.iovs[i][0]
		h.SetIovlen(len(s.iovs[i]))
		s.iovs[i][0].SetLen(encap.FrameHeaderLen)
	}
	return s
}

// add appends a datagram of header and packet. All three are borrowed until
// send; the table's entries never change.
func (s *sender) add(to *sockaddr, header *encap.FrameHeader, packet []byte, ecn uint8) {
	h, iov := &s.msgs[s.n].hdr, &s.iovs[s.n]
	h.Name, h.Namelen = &to.raw[0], to.len
	h.Control = unsafe.SliceData(s.ecn[ecn])
	h.SetControllen(len(s.ecn[ecn]))
	iov[0].Base = &header[0]
	iov[1].Base = &packet[0]
	iov[1].SetLen(len(packet))
	s.n++
}

// send passes the batch to the kernel. A datagram that is refused is dropped
// and the rest goes on; a full buffer is waited for a moment, which holds up
// the device's queue as a busy interface would.
func (s *sender) send(t *tally) {
	for rest := s.msgs[:s.n]; len(rest) > 0; {
		n, err := mmsg(unix.SYS_SENDMMSG, s.fd, rest)
		rest = rest[n:]
		if err == nil || errors.Is(err, unix.EAGAIN) && writable(s.fd, sendPatience) {
			continue
		}
		t.drop(DropSend)
		rest = rest[1:]
	}
	s.n = 0
}

package tunnel

import (
	"errors"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"

	"uvxlan/encap"
	"uvxlan/tunnel/device"
	"uvxlan/tunnel/internal/arena"
	"uvxlan/tunnel/internal/flowlimit"
	"uvxlan/tunnel/onlink"
	"uvxlan/tunnel/underlay"
)

// A packet's way out, in the order of the functions below:
//
//  1. drain reads packets from the device's queue into memory, one after the
//     other, until there are none or the batch is full. One of them may be a
//     superpacket of up to 64 KiB.
//  2. forward finds the peer whose subnet holds the destination, in the table as
//     it is after the packet was read: what Apply has put in force counts for
//     every packet sent since. Without a peer the sender is told; likewise if
//     the packet is too long for the path and must not be fragmented (pathmtu.go).
//  3. whole and cut make datagrams of it: the frame header goes into the buffer
//     before a packet; a superpacket's segments get headers of their own and
//     their payload stays where it is.
//  4. The datagrams join the batch, each at a sending socket that its flow chooses,
//     and flush passes them to the kernel, in one call a socket.
//
// A peer on the same Ethernet may have a direct route: then 3 is left out, and
// the packet joins the batch of the packet socket as it is (package onlink).

const (
	// txBatch is the most packets of a batch, txBytes the bytes they may take
	// before the last: enough to spread a system call's cost, little enough to
	// stay in the cache.
	txBatch = 64
	txBytes = 512 << 10
	// txHeaders is the memory for the segments' headers: of txBytes at an ordinary MTU.
	// A batch that needs more is sent in parts.
	txHeaders = 64 << 10
	// txPackets is the memory for a batch's packets, and outboundMemory all that an
	// outbound takes of the worker's arena.
	txPackets      = txBytes + headroom + device.MaxPacket
	outboundMemory = txPackets + txHeaders
	// refusalPause is how long a worker sleeps after a batch in which the device
	// gave nothing but errors, which may go on for as long as it likes.
	refusalPause = time.Millisecond
	// datagramPieces is how many pieces of memory a datagram has at most.
	datagramPieces = 2
	// headroom is kept free before each packet for its frame header.
	headroom = encap.FrameHeaderLen
)

// outbound is the sending half of a worker.
type outbound struct {
	queue     device.Queue
	table     *peerTable
	conn      underlay.Conn
	direct    *onlink.Sender // nil unless on-link peers are sent to directly
	limits    *flowlimit.Table
	local     *local
	packets   []byte // the batch's, each behind its headroom
	headers   []byte // of segments
	used      int    // of headers
	segmenter encap.Segmenter
	parts     [1][]byte
	answer    [encap.MaxICMPLen]byte
	counts    batchCounts
	now       int64 // of the monotonic clock, about
	total     *counters
}

func newOutbound(q device.Queue, t *peerTable, conn underlay.Conn, d *onlink.Sender, limits *flowlimit.Table, l *local, memory *arena.Arena, c *counters) *outbound {
	return &outbound{
		queue: q, table: t, conn: conn, direct: d, limits: limits, local: l, total: c,
		packets: memory.Alloc(txPackets),
		headers: memory.Alloc(txHeaders),
	}
}

// drain sends what the device has, up to one batch. Its error means that the
// device is of no more use.
func (o *outbound) drain() (amount, error) {
	packets, refused, at := 0, 0, 0
	for packets < txBatch && at <= txBytes {
		n, offload, err := o.queue.Read(o.packets[at+headroom:][:device.MaxPacket])
		switch {
		case errors.Is(err, unix.EAGAIN):
			o.finish(packets)
			return amountOf(packets, false), nil
		case errors.Is(err, unix.EINVAL), errors.Is(err, unix.EBADMSG), errors.Is(err, unix.ENOMEM):
			// The kernel gave up on this packet, not on the device.
			o.counts.drop(DropMalformedOut)
			packets++
			refused++
			continue
		case errors.Is(err, unix.ENOBUFS):
			o.counts.drop(DropOverflow)
			packets++
			continue
		case err != nil:
			o.finish(packets)
			return none, err
		}
		o.forward(o.table.load(), o.packets[at:at+headroom+n], offload)
		at += headroom + n
		packets++
	}
	o.finish(packets)
	if refused == packets {
		time.Sleep(refusalPause)
	}
	return full, nil
}

// forward puts one packet, which lies behind its headroom, where it is to go.
// It stays where it is until the batch is sent.
func (o *outbound) forward(peers *table, buffer []byte, offload encap.Offload) {
	dst, ecn, n := destination(buffer[headroom:])
	if n == 0 {
		o.counts.drop(DropMalformedOut)
		return
	}
	buffer = buffer[:headroom+n]
	packet := buffer[headroom:]
	peer := peers.lookup(dst)
	if peer == nil {
		o.refuse(packet, dst, offload)
		return
	}
	o.limits.Learn(packet)
	if via := peer.hop.Direct(); via != nil {
		o.direct.Add(onlink.Frame{Hop: peer.hop, Via: via, Of: &peer.traffic.sent, Buffer: buffer, Offload: offload})
		return
	}
	if o.direct != nil && o.direct.Holds(peer.hop) {
		// The path changed within the batch: what came first goes first.
		o.sendDirect()
	}
	o.encapsulate(peer, buffer, ecn, offload)
}

// sendDirect ends the batch of the packet socket.
func (o *outbound) sendDirect() { o.counts.sentDirect(o.direct.Flush(o.now, o.divert)) }

// divert sends by VXLAN what a link refused, at once.
func (o *outbound) divert(buffer []byte, offload encap.Offload) {
	dst, ecn, n := destination(buffer[headroom:])
	peer := o.table.load().lookup(dst)
	if n == 0 || peer == nil {
		o.counts.dropN(DropSend, offload.Segments(buffer[headroom:]))
		return
	}
	o.encapsulate(peer, buffer[:headroom+n], ecn, offload)
	o.flush()
}

// encapsulate makes a packet datagrams to its peer.
func (o *outbound) encapsulate(peer *entry, buffer []byte, ecn uint8, offload encap.Offload) {
	packet := buffer[headroom:]
	if limit := peer.to.MaxDatagram() - headroom; len(packet) > limit && o.tooBig(peer, packet, offload, limit) {
		return
	}
	header := &peer.header4
	if packet[0]>>4 == 6 {
		header = &peer.header6
	}
	count := 1
	if offload.GSO != encap.GSONone {
		if o.segmenter.Start(packet, offload) != nil {
			o.counts.drop(DropMalformedOut)
			return
		}
		count = offload.Segments(packet)
	} else if offload.NeedsChecksum && !encap.FillChecksum(packet, offload) {
		o.counts.drop(DropMalformedOut)
		return
	}
	if !o.conn.Begin(peer.to, &peer.traffic.sent, encap.FlowHash(packet), ecn, count, len(packet)) {
		return
	}
	if offload.GSO != encap.GSONone {
		o.cut(header)
		return
	}
	o.whole(header, buffer)
}

// destination is what an outgoing packet's path depends on, and the packet's
// length without what may follow it; 0 if it is none.
func destination(packet []byte) (dst netip.Addr, ecn uint8, n int) {
	if p, err := encap.ParseIPv4(packet); err == nil {
		return p.Dst(), p.ECN(), len(p)
	}
	if p, err := encap.ParseIPv6(packet); err == nil {
		return p.Dst(), p.ECN(), len(p)
	}
	return netip.Addr{}, 0, 0
}

// whole makes one datagram of a packet, in place.
func (o *outbound) whole(header *encap.FrameHeader, buffer []byte) {
	if !o.conn.Fits(datagramPieces) {
		o.flush()
	}
	copy(buffer, header[:])
	o.conn.Append(buffer, nil)
}

// cut makes a datagram of each segment of a superpacket.
func (o *outbound) cut(header *encap.FrameHeader) {
	for {
		if !o.conn.Fits(datagramPieces) || len(o.headers)-o.used < headroom+encap.MaxHeaderLen {
			o.flush()
		}
		block := o.headers[o.used:]
		n, payload := o.segmenter.Next(block[headroom:])
		if n == 0 {
			return
		}
		n += copy(block, header[:])
		o.conn.Append(block[:n:n], payload)
		o.used += n
	}
}

// refuse drops a packet that no peer would take and tells its sender, as a
// router does (RFC 1812, section 4.3.3.1; RFC 4443, section 3.1).
func (o *outbound) refuse(packet []byte, dst netip.Addr, offload encap.Offload) {
	n := offload.Segments(packet)
	if dst.IsMulticast() || dst == broadcast {
		o.counts.dropN(DropMulticast, n)
		return
	}
	o.counts.dropN(DropNoRoute, n)
	o.tell(o.local.unreachable(o.answer[:], packet))
}

// tell gives the sender of a packet the answer of n bytes, if there is any.
func (o *outbound) tell(n int) {
	if n == 0 {
		return
	}
	o.parts[0] = o.answer[:n]
	if o.queue.Write(encap.Offload{}, o.parts[:]) == nil && device.Flush(o.queue) == 0 {
		o.counts.answers++
	}
}

var broadcast = netip.AddrFrom4([4]byte{255, 255, 255, 255})

// finish ends a batch and adds it to the totals.
func (o *outbound) finish(packets int) {
	if packets == 0 {
		return
	}
	if o.direct != nil {
		o.sendDirect()
	}
	o.flush()
	o.total.add(&o.total.tx, &o.counts)
}

// flush passes the datagrams of the batch to the kernel.
func (o *outbound) flush() {
	o.counts.sent(o.conn.Flush(o.now))
	o.used = 0
}

// blocked tells whether packets wait for room in a send buffer.
func (o *outbound) blocked() bool { return o.conn.Blocked() || o.direct != nil && o.direct.Blocked() }

// appendBlocked appends the sockets that packets wait for.
func (o *outbound) appendBlocked(fds []int) []int {
	if o.direct != nil {
		fds = o.direct.AppendBlocked(fds)
	}
	return o.conn.AppendBlocked(fds)
}

// retry sends what waits.
func (o *outbound) retry() {
	if o.direct != nil {
		o.counts.sentDirect(o.direct.Retry(o.now, o.divert))
	}
	o.counts.sent(o.conn.Retry(o.now))
	if o.counts != (batchCounts{}) {
		o.total.add(&o.total.tx, &o.counts)
	}
}

package tunnel

import (
	"errors"
	"net/netip"

	"golang.org/x/sys/unix"

	"uvxlan/encap"
	"uvxlan/tunnel/batch"
	"uvxlan/tunnel/device"
	"uvxlan/tunnel/internal/flowlimit"
	"uvxlan/tunnel/offload"
	"uvxlan/tunnel/underlay"
)

// A packet's way in, in the order of the functions below:
//
//  1. drain receives as many messages as have arrived, up to a batch.
//  2. receive splits a message into its datagrams: the kernel hands over those
//     of one sender together. A kernel that speaks VXLAN on this machine sends a
//     superpacket in one datagram, unsplit, which then is the packet.
//  3. judge checks the frame: our VNI, from a known peer, to our VTEP. Questions
//     about our own address are answered on the spot.
//  4. deliver4 and deliver6 check that the inner source belongs to that peer and
//     carry a congestion mark inward.
//  5. The packets of a batch gather in the coalescer, which joins those of a
//     flow to superpackets, and write hands each to the device in one call.

// bulk is the mean length of messages from which on the underlay is looked at again
// before the batch is written: more of the same flow makes larger superpackets. Small
// packets are better delivered at once.
const bulk = 16 << 10

// inbound is the receiving half of a worker.
type inbound struct {
	conn      underlay.Conn
	queue     device.Queue
	table     *peerTable
	local     *local
	port      uint16
	vni       encap.VNI
	mac       encap.MAC
	anySrc    bool
	source    source
	frame     encap.Frame
	coalescer *encap.Coalescer
	cutUDP    bool // the device is to get no UDP superpackets
	segments  segmentWriter
	answer    answer
	now       int64 // about, in nanoseconds of Unix time
	counts    batchCounts
	run       peerRun
	total     *counters
}

func newInbound(c *Config, conn underlay.Conn, port uint16, q device.Queue, granted offload.Set, t *peerTable, limits *flowlimit.Table, l *local, total *counters) *inbound {
	in := &inbound{
		conn: conn, queue: q, table: t, local: l, total: total,
		port: port, vni: c.VNI, mac: c.MAC, anySrc: c.AnySource,
		coalescer: encap.NewCoalescer(c.Link.MTU),
		cutUDP:    !granted.Has(offload.UDP),
	}
	in.coalescer.SetLimit(limits.Limit)
	in.coalescer.SetTCP(granted.Has(offload.TCP))
	in.coalescer.SetUDP(granted.Has(offload.UDP))
	return in
}

// drain delivers what has arrived, up to one batch. Its error means that the
// underlay is of no more use.
func (in *inbound) drain() (amount, error) {
	n, bytes := 0, 0
	var full bool
	for {
		messages, more, err := in.conn.Receive(n > 0)
		if err != nil && n == 0 {
			return none, err
		}
		peers := in.table.load() // after the call: it has whoever was added before they sent
		for i := range messages {
			in.receive(peers, &messages[i])
			bytes += len(messages[i].Data)
		}
		n += len(messages)
		full = more
		if full || len(messages) == 0 || bytes < bulk*n {
			break
		}
	}
	if n == 0 {
		return none, nil
	}
	in.write()
	in.run.flush(in.now)
	in.total.add(&in.total.rx, &in.counts)
	return amountOf(n, full), nil
}

// accepted is no reason to drop.
const accepted = dropReasons

// receive splits a message into its datagrams.
func (in *inbound) receive(peers *table, m *underlay.Message) {
	in.source = source{from: m.From.Addr(), ecn: m.ECN}
	in.source.known = in.anySrc || peers.knows(in.source.from)
	in.counts.messages++
	if m.Truncated {
		in.counts.drop(DropTruncated)
		return
	}
	data, size := m.Data, m.SegmentSize
	if size < len(data) && unsplit(data) {
		in.source.size, size = size, len(data)
	}
	for ok := true; ok; ok = len(data) > 0 { // an empty datagram is one too
		n := min(size, len(data))
		if reason := in.judge(peers, data[:n:n]); reason != accepted {
			in.counts.drop(reason)
		}
		in.counts.datagrams++
		data = data[n:]
	}
}

// unsplit tells whether a message that the kernel gives a segment size is one frame
// all the same: a kernel VXLAN peer's superpacket of UDP, passed unsplit, whose size
// is that of the datagrams inside.
func unsplit(message []byte) bool {
	if len(message) < encap.FrameHeaderLen {
		return false
	}
	packet := message[encap.FrameHeaderLen:]
	if p, err := encap.ParseIPv4(packet); err == nil {
		return len(p) == len(packet)
	}
	p, err := encap.ParseIPv6(packet)
	return err == nil && len(p) == len(packet)
}

// source is what a message's datagrams have in common.
type source struct {
	from  netip.Addr
	known bool // a peer's address
	ecn   uint8
	size  int // of the datagrams inside an unsplit superpacket of UDP
	// inner is the inner source that was last found to belong to the peer, and
	// traffic that peer's.
	inner   netip.Addr
	traffic *traffic
}

// judge decides on one datagram and passes its packet on.
func (in *inbound) judge(peers *table, datagram []byte) DropReason {
	if reason := in.check(datagram); reason != accepted {
		return reason
	}
	switch in.frame.EtherType {
	case encap.EtherTypeIPv4:
		return in.deliver4(peers)
	case encap.EtherTypeIPv6:
		if n := in.local.advertise(&in.answer, &in.frame); n > 0 {
			return in.resolve(n)
		}
		return in.deliver6(peers)
	case encap.EtherTypeARP:
		if n := in.local.arpReply(&in.answer, &in.frame); n > 0 {
			return in.resolve(n)
		}
	}
	return DropEtherType
}

// check decodes the frame (RFC 7348, section 5) and judges its outside.
func (in *inbound) check(datagram []byte) DropReason {
	f := &in.frame
	switch err := f.Decode(datagram); {
	case err != nil:
		return DropShort
	case !f.HasVNI:
		return DropNoVNI
	case f.VNI != in.vni:
		return DropForeignVNI
	case !in.source.known:
		return DropUnknownPeer
	case f.Dst == in.mac:
		return accepted
	case f.Dst.IsGroup() && f.EtherType != encap.EtherTypeIPv4:
		return accepted
	}
	return DropInnerMAC
}

// resolve sends the answer to a question about our own address, n bytes of
// frame, to the peer that asked.
func (in *inbound) resolve(n int) DropReason {
	to := batch.NewDestination(netip.AddrPortFrom(in.source.from, in.port))
	if in.conn.Begin(to, nil, 0, 0, 1, n-headroom) {
		in.conn.Append(in.answer[:n], nil)
	}
	r := in.conn.Flush(monotonic())
	r.Packets = 0 // none of the device's
	counts := batchCounts{answers: 1}
	counts.sent(r)
	in.total.add(&in.total.tx, &counts)
	return accepted
}

// deliver4 judges the inside of an IPv4 frame and passes it on.
func (in *inbound) deliver4(peers *table) DropReason {
	p, err := encap.ParseIPv4(in.frame.Payload)
	if err != nil {
		return DropMalformed
	}
	ecn, reason := in.admit(peers, p.Src(), p.ECN())
	if reason != accepted {
		return reason
	}
	if ecn != p.ECN() {
		p.SetECN(ecn)
	}
	in.gather(p)
	return accepted
}

// deliver6 is deliver4 for IPv6. A group MAC is for neighbour discovery only,
// which was answered before.
func (in *inbound) deliver6(peers *table) DropReason {
	p, err := encap.ParseIPv6(in.frame.Payload)
	if err != nil {
		return DropMalformed
	}
	if in.frame.Dst != in.mac {
		return DropInnerMAC
	}
	ecn, reason := in.admit(peers, p.Src(), p.ECN())
	if reason != accepted {
		return reason
	}
	if ecn != p.ECN() {
		p.SetECN(ecn)
	}
	in.gather(p)
	return accepted
}

// admit judges a packet by its inner source and ECN field, and returns the ECN
// field it is to have.
func (in *inbound) admit(peers *table, src netip.Addr, inner uint8) (ecn uint8, reason DropReason) {
	if !in.owns(peers, src) {
		return 0, DropInnerSource
	}
	ecn, drop := encap.DecapsulateECN(in.source.ecn, inner)
	if drop {
		return 0, DropECN
	}
	return ecn, accepted
}

// owns tells whether the message's peer may send packets of the inner source
// src: its own subnet's or its own address.
func (in *inbound) owns(peers *table, src netip.Addr) bool {
	s := &in.source
	if src == s.inner || src == s.from {
		return true
	}
	peer := peers.lookup(src)
	switch {
	case peer != nil && (in.anySrc || peer.Underlay == s.from):
		s.inner, s.traffic = src, peer.traffic
	case in.anySrc:
		s.inner, s.traffic = src, nil
	default:
		return false
	}
	return true
}

// gather keeps a packet for the end of the batch.
func (in *inbound) gather(packet []byte) {
	segments := in.coalescer.AddSuperpacket(packet, in.source.size)
	if segments == 0 {
		in.write()
		segments = in.coalescer.AddSuperpacket(packet, in.source.size)
	}
	in.run.add(in.source.traffic, segments, len(packet), in.now)
	in.counts.datagrams += uint64(segments - 1) // receive counts one
}

// write hands what was gathered to the device.
func (in *inbound) write() {
	written := 0
	for i := range in.coalescer.Len() {
		p := in.coalescer.Packet(i)
		if err := in.put(p.Offload, p.Parts); err != nil {
			in.counts.dropN(DropDevice, p.Segments())
			continue
		}
		written++
		in.counts.bytes += uint64(p.Len)
	}
	if lost := device.Flush(in.queue); lost > 0 {
		in.counts.dropN(DropDevice, lost)
		written = max(written-lost, 0) // a superpacket may be lost in many pieces
	}
	in.counts.packets += uint64(written)
	in.coalescer.Reset()
}

// put writes one packet to the device, a superpacket that it doesn't take segment by
// segment.
func (in *inbound) put(o encap.Offload, parts [][]byte) error {
	if o.GSO == encap.GSOUDP && in.cutUDP {
		return in.segments.write(in.queue, o, parts)
	}
	err := in.queue.Write(o, parts)
	if !errors.Is(err, unix.EINVAL) || o == (encap.Offload{}) {
		return err
	}
	if o.GSO != encap.GSONone {
		in.counts.fallbacks++
	}
	return in.segments.write(in.queue, o, parts)
}

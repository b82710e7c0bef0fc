package tunnel

import (
	"errors"
	"net/netip"

	"golang.org/x/sys/unix"

	"uvxlan/encap"
	"uvxlan/tunnel/device"
	"uvxlan/tunnel/internal/arena"
	"uvxlan/tunnel/internal/family"
	"uvxlan/tunnel/offload"
)

// A packet's way in, in the order of the functions below:
//
//  1. drain receives as many messages as a socket has, up to a batch (inbox.go).
//  2. receive splits a message into its datagrams: the kernel hands over those
//     of one sender together.
//  3. take checks the frame: our VNI, from a known peer, to our VTEP. Questions
//     about our own address are answered on the spot.
//  4. deliver4 and deliver6 check that the inner source belongs to that peer and
//     carry a congestion mark inward.
//  5. The packets of a batch gather in the coalescer, which joins those of a
//     flow to superpackets, and write hands each to the device in one call.

const (
	// rxBytes is what the messages of a batch may have together, judged by those
	// before: it should stay in the cache until it is written.
	rxBytes = 512 << 10
	// bulk is the mean length of messages from which on the socket is looked at
	// again before the batch is written: more of the same flow makes larger
	// superpackets. Small packets are better delivered at once.
	bulk = 16 << 10
)

// inbound is the receiving half of a worker.
type inbound struct {
	sockets   []receiving // one, or one of each family; in places
	places    [family.Count]receiving
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
	single    single
	inbox     *inbox
	reply     [family.Count]*sender
	answer    answer
	now       int64 // about, in nanoseconds of Unix time
	tally     tally
	streak    streak
	total     *counters
}

// receiving is a socket to receive from.
type receiving struct {
	fd    int
	limit int // messages of the next batch
}

func newInbound(c *Config, q device.Queue, granted offload.Set, t *peerTable, l *local, memory *arena.Arena, total *counters) *inbound {
	in := &inbound{
		queue: q, table: t, local: l, total: total,
		port: c.Port, vni: c.VNI, mac: c.MAC, anySrc: c.AnySource,
		coalescer: encap.NewCoalescer(c.MTU),
		inbox:     newInbox(memory),
	}
	in.sockets = in.places[:0] // apart from what other workers write
	in.coalescer.SetTCP(granted.Has(offload.TCP))
	in.coalescer.SetUDP(granted.Has(offload.UDP))
	return in
}

// listen has a socket received from, whose peers are answered by reply.
func (in *inbound) listen(f family.Family, fd int, reply *sender) {
	in.sockets = append(in.sockets, receiving{fd, rxBatch})
	in.reply[f] = reply
}

// drain delivers what the sockets have, up to one batch of each. Its error means
// that one of them is of no more use.
func (in *inbound) drain() (load, error) {
	found := none
	for i := range in.sockets {
		l, err := in.drainSocket(&in.sockets[i])
		if err != nil {
			return none, err
		}
		found = max(found, l)
	}
	return found, nil
}

func (in *inbound) drainSocket(from *receiving) (load, error) {
	n, bytes := 0, 0
	in.inbox.reset()
	for n < from.limit && in.inbox.unused > 0 {
		asked := min(from.limit-n, in.inbox.unused)
		got, err := in.inbox.fill(from.fd, n, asked)
		if err != nil && n == 0 {
			return none, err
		}
		peers := in.table.load() // after the call: it has whoever was added before they sent
		for i := range got {
			bytes += in.receive(peers, n+i)
		}
		n += got
		if got == 0 || got < asked && bytes < bulk*n {
			break
		}
	}
	if n == 0 {
		return none, nil
	}
	in.write()
	in.streak.addReceived(in.now)
	in.total.add(&in.total.rx, &in.tally)
	more := n == from.limit || in.inbox.unused == 0
	from.limit = min(max(rxBytes*n/max(bytes, 1), 8), rxBatch)
	return loadOf(n, more), nil
}

// accepted is no reason to drop.
const accepted = dropReasons

// receive takes message i of the batch: a datagram, or several of one sender
// that the kernel put together. It returns the message's length.
func (in *inbound) receive(peers *table, i int) (bytes int) {
	data := in.inbox.message(i)
	bytes = len(data)
	a := parseControl(in.inbox.control(i))
	in.source = source{from: in.inbox.names[i].addrPort().Addr(), ecn: a.ecn}
	in.source.known = in.anySrc || peers.knows(in.source.from)
	in.tally.messages++
	if in.inbox.truncated(i) {
		in.tally.drop(DropTruncated)
		return bytes
	}
	if a.segment == 0 {
		a.segment = len(data)
	}
	for ok := true; ok; ok = len(data) > 0 { // an empty datagram is one too
		n := min(a.segment, len(data))
		if reason := in.take(peers, data[:n:n]); reason != accepted {
			in.tally.drop(reason)
		}
		in.tally.datagrams++
		data = data[n:]
	}
	return bytes
}

// source is what a message's datagrams have in common.
type source struct {
	from  netip.Addr
	known bool // a peer's address
	ecn   uint8
	// inner is the inner source that was last found to belong to the peer, and
	// traffic that peer's.
	inner   netip.Addr
	traffic *traffic
}

// take judges one datagram and passes its packet on.
func (in *inbound) take(peers *table, datagram []byte) DropReason {
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
	to := makeSockaddr(netip.AddrPortFrom(in.source.from, in.port))
	reply := in.reply[family.Of(in.source.from)]
	reply.add(&entry{to: to}, 0, in.answer[:n], nil)
	reply.send(&in.tally)
	in.tally.answers++
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
	if in.anySrc || src == s.inner || src == s.from {
		return true
	}
	peer := peers.lookup(src)
	if peer == nil || peer.Underlay != s.from {
		return false
	}
	s.inner, s.traffic = src, peer.traffic
	return true
}

// gather keeps a packet for the end of the batch.
func (in *inbound) gather(packet []byte) {
	in.streak.received(in.source.traffic, len(packet), in.now)
	if in.coalescer.Add(packet) {
		return
	}
	in.write()
	in.coalescer.Add(packet)
}

// write hands what was gathered to the device.
func (in *inbound) write() {
	for i := range in.coalescer.Len() {
		p := in.coalescer.Packet(i)
		err := in.queue.Write(p.Offload, p.Parts)
		if errors.Is(err, unix.EINVAL) && p.Offload.GSO != encap.GSONone {
			err = in.single.write(in.queue, p.Offload, p.Parts)
			in.tally.fallbacks++
		}
		if err != nil {
			in.tally.dropN(DropDevice, p.Packets)
			continue
		}
		in.tally.packets++
		in.tally.bytes += uint64(p.Len)
	}
	if lost := device.Flush(in.queue); lost > 0 {
		in.tally.dropN(DropDevice, lost)
		in.tally.packets -= uint64(lost)
	}
	in.coalescer.Reset()
}

// single writes superpackets segment by segment, for kernels that refuse some
// of them (Linux 6.6.44 and its neighbours).
type single struct {
	segmenter encap.Segmenter
	packet    []byte
	header    [encap.MaxHeaderLen]byte
	parts     [2][]byte
}

func (s *single) write(q device.Queue, o encap.Offload, parts [][]byte) error {
	s.packet = s.packet[:0]
	for _, p := range parts {
		s.packet = append(s.packet, p...)
	}
	if err := s.segmenter.Start(s.packet, o); err != nil {
		return err
	}
	for {
		n, payload := s.segmenter.Next(s.header[:])
		if n == 0 {
			return nil
		}
		s.parts = [2][]byte{s.header[:n], payload}
		if err := q.Write(encap.Offload{}, s.parts[:]); err != nil {
			return err
		}
	}
}

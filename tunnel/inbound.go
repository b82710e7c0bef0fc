package tunnel

import (
	"errors"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"

	"uvxlan/encap"
)

// A packet's way in, in the order of the functions below:
//
//  1. drain receives as many datagrams as there are, up to a batch, in one call.
//  2. receive checks the frame: our VNI, from a known peer, to our VTEP.
//     Questions about our own address are answered on the spot.
//  3. deliver4 and deliver6 check that the inner source belongs to that peer and
//     carry a congestion mark inward.
//  4. write finds out what the sender's kernel left undone (offload.go) and
//     hands the packet to the device.

const (
	// rxBatch is the number of datagrams received in one call.
	rxBatch = 32
	// rxBuffer takes the longest datagram there is: a kernel on the same
	// machine passes superpackets as one.
	rxBuffer = 64 << 10
	// rxControl holds the control messages we ask for.
	rxControl = 64
)

// inbound is the receiving half of a worker.
type inbound struct {
	fd     int
	queue  Queue
	table  *peerTable
	local  *local
	vni    encap.VNI
	mac    encap.MAC
	mtu    int
	anySrc bool
	frame  encap.Frame
	msgs   [rxBatch]mmsghdr
	iovs   [rxBatch]unix.Iovec
	names  [rxBatch]sockaddr
	ctrl   [rxBatch][rxControl]byte
	bufs   []byte
	parts  [1][]byte
	reply  *sender
	port   uint16
	answer answer
	tally  tally
	total  *counters
}

func newInbound(c *Config, q Queue, t *peerTable, fd int, reply *sender, l *local, total *counters) *inbound {
	in := &inbound{
		fd: fd, queue: q, table: t, local: l, reply: reply, total: total,
		port: c.Port, vni: c.VNI, mac: c.MAC, mtu: int(c.MTU), anySrc: c.AnySource,
		bufs: make([]byte, rxBatch*rxBuffer),
	}
	for i := range in.msgs {
		in.iovs[i].Base = &in.bufs[i*rxBuffer]
		in.iovs[i].SetLen(rxBuffer)
		h := &in.msgs[i].hdr
		h.Iov = &in.iovs[i]
		h.SetIovlen(1)
		h.Name = &in.names[i].raw[0]
		h.Control = &in.ctrl[i][0]
	}
	return in
}

// drain delivers what the socket has, up to one batch, and tells whether there
// may be more. Its error means that the device or the socket is of no more use.
func (in *inbound) drain() (more bool, err error) {
	for i := range in.msgs {
		h := &in.msgs[i].hdr
		h.Namelen = uint32(len(in.names[i].raw))
		h.SetControllen(rxControl)
	}
	n, err := mmsg(unix.SYS_RECVMMSG, in.fd, in.msgs[:])
	if errors.Is(err, unix.EAGAIN) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("receive from underlay: %w", err)
	}
	peers := in.table.load()
	for i := range n {
		if reason := in.receive(peers, i); reason != accepted {
			in.tally.drop(reason)
		}
	}
	in.total.addRx(&in.tally)
	return n == rxBatch, nil
}

// accepted is no reason to drop.
const accepted = dropReasons

// receive takes datagram i of the batch.
func (in *inbound) receive(peers *table, i int) DropReason {
	h, from := &in.msgs[i].hdr, in.names[i].addrPort()
	if h.Flags&unix.MSG_TRUNC != 0 {
		return DropTruncated
	}
	if reason := in.check(peers, in.bufs[i*rxBuffer:][:in.msgs[i].len], from.Addr()); reason != accepted {
		return reason
	}
	switch in.frame.EtherType {
	case encap.EtherTypeIPv4:
		return in.deliver4(peers, from.Addr(), receivedECN(in.ctrl[i][:h.Controllen]))
	case encap.EtherTypeIPv6:
		if n := in.local.advertise(&in.answer, &in.frame); n > 0 {
			return in.resolve(n, from.Addr())
		}
		return in.deliver6(peers, from.Addr(), receivedECN(in.ctrl[i][:h.Controllen]))
	case encap.EtherTypeARP:
		if n := in.local.arpReply(&in.answer, &in.frame); n > 0 {
			return in.resolve(n, from.Addr())
		}
	}
	return DropEtherType
}

// check decodes the frame (RFC 7348, section 5) and judges its outside.
func (in *inbound) check(peers *table, datagram []byte, from netip.Addr) DropReason {
	f := &in.frame
	switch err := f.Decode(datagram); {
	case err != nil:
		return DropShort
	case !f.HasVNI:
		return DropNoVNI
	case f.VNI != in.vni:
		return DropForeignVNI
	case !in.anySrc && !peers.knows(from):
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
func (in *inbound) resolve(n int, to netip.Addr) DropReason {
	peer := makeSockaddr(netip.AddrPortFrom(to, in.port))
	in.reply.add(&peer, (*encap.FrameHeader)(in.answer[:]), in.answer[encap.FrameHeaderLen:n], 0)
	in.reply.send(&in.tally)
	in.tally.answers++
	return accepted
}

// deliver4 judges the inside of an IPv4 frame and writes it.
func (in *inbound) deliver4(peers *table, from netip.Addr, outerECN uint8) DropReason {
	p, err := encap.ParseIPv4(in.frame.Payload)
	if err != nil {
		return DropMalformed
	}
	if !in.owns(peers, from, p.Src()) {
		return DropInnerSource
	}
	ecn, drop := encap.DecapsulateECN(outerECN, p.ECN())
	if drop {
		return DropECN
	}
	if ecn != p.ECN() {
		p.SetECN(ecn)
	}
	return in.write(p)
}

// deliver6 is deliver4 for IPv6. A group MAC is for neighbour discovery only,
// which was answered before.
func (in *inbound) deliver6(peers *table, from netip.Addr, outerECN uint8) DropReason {
	p, err := encap.ParseIPv6(in.frame.Payload)
	if err != nil {
		return DropMalformed
	}
	if in.frame.Dst != in.mac {
		return DropInnerMAC
	}
	if !in.owns(peers, from, p.Src()) {
		return DropInnerSource
	}
	ecn, drop := encap.DecapsulateECN(outerECN, p.ECN())
	if drop {
		return DropECN
	}
	if ecn != p.ECN() {
		p.SetECN(ecn)
	}
	return in.write(p)
}

// owns tells whether the peer at from may send packets of the inner source src:
// its own subnet's or its own address.
func (in *inbound) owns(peers *table, from, src netip.Addr) bool {
	if in.anySrc || src == from {
		return true
	}
	peer := peers.lookup(src)
	return peer != nil && peer.Underlay == from
}

// write hands one packet to the device.
func (in *inbound) write(packet []byte) DropReason {
	in.parts[0] = packet
	if in.queue.Write(received(packet, in.mtu), in.parts[:]) != nil {
		return DropDevice
	}
	in.tally.packets++
	in.tally.bytes += uint64(len(packet))
	return accepted
}

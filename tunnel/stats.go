package tunnel

import (
	"encoding/json"
	"fmt"
	"strings"
	"sync/atomic"

	"uvxlan/tunnel/batch"
	"uvxlan/tunnel/offload"
)

// DropReason says why a packet was dropped.
type DropReason uint8

// The reasons, outbound ones first.
const (
	// DropNoRoute: no peer owns the destination; the sender is told by ICMP.
	DropNoRoute DropReason = iota
	// DropMulticast: to a group or broadcast address, which no peer owns.
	DropMulticast
	// DropMalformedOut: not a whole IP packet of the device.
	DropMalformedOut
	// DropOverflow: a device of wireguard-go's was read faster than the worker
	// could send.
	DropOverflow
	// DropSend: the kernel refused the datagram, or was out of buffers.
	DropSend
	// DropSendBuffer: the send buffers were full, and what may wait for them was
	// full as well: the underlay is slower than what is sent by it.
	DropSendBuffer
	// DropTooBig: longer than the path to the peer takes, and not to be fragmented;
	// the sender is told by ICMP.
	DropTooBig
	// DropTruncated: a datagram longer than [device.MaxPacket] and its headers.
	DropTruncated
	// DropShort: too short for the VXLAN and the inner Ethernet header.
	DropShort
	// DropNoVNI: the VXLAN header's I flag is not set.
	DropNoVNI
	// DropForeignVNI: a frame of another VXLAN segment.
	DropForeignVNI
	// DropUnknownPeer: the outer source is no peer's address.
	DropUnknownPeer
	// DropInnerMAC: the inner destination is not our VTEP's MAC.
	DropInnerMAC
	// DropEtherType: neither IP nor a question about our own address.
	DropEtherType
	// DropMalformed: the inner packet is not a whole IP packet.
	DropMalformed
	// DropInnerSource: the inner source doesn't belong to the peer that sent it.
	DropInnerSource
	// DropECN: congestion was marked outside of a packet that can't carry the
	// mark (RFC 6040, section 4.2).
	DropECN
	// DropDevice: the TUN device refused the packet, as it does while it is down.
	DropDevice
	// DropTUNQueue: the device's queue was full before a worker read it. The kernel
	// counts it, for the whole interface; where [device.Dropped] doesn't know it there
	// is none.
	DropTUNQueue
	// DropSocketBuffer: a datagram found no room in a receiving socket. The number is
	// the kernel's (SO_MEMINFO, socket(7)), which has 32 bits: see [underlay.Conn].
	DropSocketBuffer

	dropReasons
)

var dropNames = [dropReasons]string{
	"no_route", "multicast", "malformed_out", "overflow", "send", "send_buffer", "too_big", "truncated", "short", "no_vni", "foreign_vni",
	"unknown_peer", "inner_mac", "ethertype", "malformed", "inner_source", "ecn", "device",
	"tun_queue", "socket_buffer",
}

// String is the reason in the form of a metric's label, such as "no_route".
func (d DropReason) String() string {
	if d >= dropReasons {
		return "unknown"
	}
	return dropNames[d]
}

// MarshalText implements [encoding.TextMarshaler], with String's name.
func (d DropReason) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// DropReasons lists every reason.
func DropReasons() []DropReason {
	all := make([]DropReason, dropReasons)
	for i := range all {
		all[i] = DropReason(i)
	}
	return all
}

// Stats is what a [Router] has counted since New. Tx is from the device to the
// underlay, Rx the other way.
type Stats struct {
	// Peers is how many there are now.
	Peers int
	// Offloads are those in use.
	Offloads offload.Set
	// Datagrams are VXLAN frames on the wire, that were sent or taken; a superpacket
	// that a kernel on the same machine sends unsplit counts as those of its
	// segments. Bytes are those of the IP packets inside; a superpacket that passes
	// whole, to the device or by a direct path, has its headers counted once.
	TxDatagrams, RxDatagrams uint64
	TxBytes, RxBytes         uint64
	// Packets are what was read from or written to the device in one call, and
	// Messages what was sent or received as one by the sockets: where they are
	// fewer than the datagrams, superpackets were moved.
	TxPackets, RxPackets   uint64
	TxMessages, RxMessages uint64
	// Batches are the rounds that moved something.
	TxBatches, RxBatches uint64
	// TxDirect is how many of TxPackets left without VXLAN, as they were read.
	TxDirect uint64
	// FastPath is how much of all that the fast path has carried, past the workers
	// ([Router.UseFastPath]).
	FastPath FastPathStats
	// Fallbacks counts runs and superpackets that the kernel refused and that
	// were passed on one by one.
	Fallbacks uint64
	// Answers counts ARP replies, neighbour advertisements and ICMP errors.
	Answers uint64
	// Drops counts by DropReason.
	Drops Drops
}

// Drops are numbers of packets, by [DropReason]. They print by name, as they are in
// JSON.
type Drops [dropReasons]uint64

// String names the reasons for which there were any, such as "no_route:3 send:1";
// "none" without any.
func (d Drops) String() string {
	var all []string
	for reason, n := range d {
		if n > 0 {
			all = append(all, fmt.Sprintf("%s:%d", DropReason(reason), n))
		}
	}
	if len(all) == 0 {
		return "none"
	}
	return strings.Join(all, " ")
}

// MarshalJSON implements [json.Marshaler]: an object of every reason's number.
func (d Drops) MarshalJSON() ([]byte, error) {
	all := make(map[string]uint64, len(d))
	for reason, n := range d {
		all[DropReason(reason).String()] = n
	}
	return json.Marshal(all)
}

// Drop is how many packets were dropped for reason d.
func (s Stats) Drop(d DropReason) uint64 { return s.Drops[d] }

// Dropped is how many packets were dropped in all.
func (s Stats) Dropped() (n uint64) {
	for _, v := range s.Drops {
		n += v
	}
	return n
}

// batchCounts are what one worker counts in one batch.
type batchCounts struct {
	packets, datagrams, messages, bytes uint64
	fallbacks, answers, direct          uint64
	dropped                             bool
	drops                               [dropReasons]uint64
}

func (t *batchCounts) drop(d DropReason) { t.dropN(d, 1) }

func (t *batchCounts) dropN(d DropReason, n int) {
	t.dropped = true
	t.drops[d] += uint64(n)
}

// sent adds what has become of a batch.
func (t *batchCounts) sent(r batch.Result) {
	t.packets += r.Packets
	t.messages += r.Messages
	t.datagrams += r.Datagrams
	t.bytes += r.Bytes
	t.fallbacks += r.Fallbacks
	if r.Dropped() > 0 {
		t.dropN(DropSendBuffer, int(r.Full))
		t.dropN(DropSend, int(r.Congested+r.Refused))
	}
}

// sentDirect adds what has become of a batch of the packet socket.
func (t *batchCounts) sentDirect(r batch.Result) {
	t.direct += r.Packets
	t.packets += r.Packets
	t.bytes += r.Bytes
	if r.Dropped() > 0 {
		t.dropN(DropSendBuffer, int(r.Full))
		t.dropN(DropSend, int(r.Congested+r.Refused))
	}
}

// counters are one worker's totals: one writer, any reader. The padding keeps
// two workers' totals out of one cache line.
type counters struct {
	_                  [64]byte
	tx, rx             direction
	fallbacks, answers atomic.Uint64
	direct             atomic.Uint64
	drops              [dropReasons]atomic.Uint64
	_                  [64]byte
}

type direction struct {
	packets, datagrams, messages, bytes, batches atomic.Uint64
}

func (d *direction) add(t *batchCounts) {
	d.packets.Add(t.packets)
	d.datagrams.Add(t.datagrams)
	d.messages.Add(t.messages)
	d.bytes.Add(t.bytes)
	d.batches.Add(1)
}

// add adds a batch of one direction and starts them anew.
func (c *counters) add(d *direction, t *batchCounts) {
	d.add(t)
	if t.answers > 0 {
		c.answers.Add(t.answers)
	}
	if t.fallbacks > 0 {
		c.fallbacks.Add(t.fallbacks)
	}
	if t.direct > 0 {
		c.direct.Add(t.direct)
	}
	if t.dropped {
		for i, n := range t.drops {
			if n > 0 {
				c.drops[i].Add(n)
			}
		}
	}
	*t = batchCounts{}
}

func (c *counters) addTo(s *Stats) {
	s.TxPackets += c.tx.packets.Load()
	s.TxDatagrams += c.tx.datagrams.Load()
	s.TxMessages += c.tx.messages.Load()
	s.TxBytes += c.tx.bytes.Load()
	s.TxBatches += c.tx.batches.Load()
	s.RxPackets += c.rx.packets.Load()
	s.RxDatagrams += c.rx.datagrams.Load()
	s.RxMessages += c.rx.messages.Load()
	s.RxBytes += c.rx.bytes.Load()
	s.RxBatches += c.rx.batches.Load()
	s.Fallbacks += c.fallbacks.Load()
	s.Answers += c.answers.Load()
	s.TxDirect += c.direct.Load()
	for i := range c.drops {
		s.Drops[i] += c.drops[i].Load()
	}
}

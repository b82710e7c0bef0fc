package tunnel

import "sync/atomic"

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
	// DropSend: the underlay refused the datagram.
	DropSend
	// DropTruncated: a datagram longer than [MaxPacket] and its headers.
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

	dropReasons
)

var dropNames = [dropReasons]string{
	"no_route", "multicast", "malformed_out", "send", "truncated", "short", "no_vni", "foreign_vni",
	"unknown_peer", "inner_mac", "ethertype", "malformed", "inner_source", "ecn", "device",
}

// String is the reason in the form of a metric's label, such as "no_route".
func (d DropReason) String() string {
	if d >= dropReasons {
		return "unknown"
	}
	return dropNames[d]
}

// DropReasons lists every reason.
func DropReasons() []DropReason {
	all := make([]DropReason, dropReasons)
	for i := range all {
		all[i] = DropReason(i)
	}
	return all
}

// Stats is what a [Router] has counted since New. Packets and bytes are those
// of the inner IP packets, a superpacket being one packet.
type Stats struct {
	Peers                int
	TxPackets, TxBytes   uint64 // device to underlay
	RxPackets, RxBytes   uint64 // underlay to device
	TxBatches, RxBatches uint64 // rounds that moved something
	Answers              uint64 // ARP replies, neighbour advertisements, ICMP errors
	Drops                [dropReasons]uint64
}

// Drop is how many packets were dropped for reason d.
func (s *Stats) Drop(d DropReason) uint64 { return s.Drops[d] }

// Dropped is how many packets were dropped in all.
func (s *Stats) Dropped() (n uint64) {
	for _, v := range s.Drops {
		n += v
	}
	return n
}

// tally is what one worker counts in one batch.
type tally struct {
	packets, bytes uint64
	answers        uint64
	dropped        bool
	drops          [dropReasons]uint64
}

func (t *tally) drop(d DropReason) { t.dropped = true; t.drops[d]++ }

// counters are one worker's totals: one writer, any reader. The padding keeps
// two workers' totals out of one cache line.
type counters struct {
	_                    [64]byte
	txPackets, txBytes   atomic.Uint64
	rxPackets, rxBytes   atomic.Uint64
	txBatches, rxBatches atomic.Uint64
	answers              atomic.Uint64
	drops                [dropReasons]atomic.Uint64
	_                    [64]byte
}

func (c *counters) addTx(t *tally) {
	c.txBatches.Add(1)
	c.txPackets.Add(t.packets)
	c.txBytes.Add(t.bytes)
	c.addRest(t)
}

func (c *counters) addRx(t *tally) {
	c.rxBatches.Add(1)
	c.rxPackets.Add(t.packets)
	c.rxBytes.Add(t.bytes)
	c.addRest(t)
}

// addRest adds what is rare and starts the tally anew.
func (c *counters) addRest(t *tally) {
	if t.answers > 0 {
		c.answers.Add(t.answers)
	}
	if t.dropped {
		for i, n := range t.drops {
			if n > 0 {
				c.drops[i].Add(n)
			}
		}
	}
	*t = tally{}
}

func (c *counters) addTo(s *Stats) {
	s.TxPackets += c.txPackets.Load()
	s.TxBytes += c.txBytes.Load()
	s.RxPackets += c.rxPackets.Load()
	s.RxBytes += c.rxBytes.Load()
	s.TxBatches += c.txBatches.Load()
	s.RxBatches += c.rxBatches.Load()
	s.Answers += c.answers.Load()
	for i := range c.drops {
		s.Drops[i] += c.drops[i].Load()
	}
}

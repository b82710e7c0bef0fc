// Package flowlimit remembers how long the packets of TCP flows may be: those
// into containers whose MTU is below the device's, or that a link with a smaller
// MTU leads to.
//
// It is asked when an unsplit superpacket of another kernel is to be cut, which
// doesn't tell its segment size. What is remembered was read from the packets that
// go the other way (see [encap.ReadPacketLimit]): a receiver's MSS tells its MTU,
// and where the handshake was missed the kernel answers the first superpacket that
// it can't pass on with an ICMP error, a kind whose rate it doesn't limit.
package flowlimit

import (
	"sync/atomic"

	"uvxlan/encap"
)

// slots is the number of flows that are remembered, a power of two. Flows whose
// packets may be as long as the device's MTU take none.
const slots = 4096

// Table remembers the limits of flows, by their hashes. It may be used by any
// number of goroutines; nobody waits. A flow may push another out, and what is
// learned of one at the same time by two may be lost in part: both are learned
// again from the next ICMP error.
type Table struct {
	mtu   int
	least atomic.Int64         // no limit is less
	flows [slots]atomic.Uint64 // a flow's hash above its limit in bytes, 0 if unused
}

// New returns an empty table for a device of the given MTU.
func New(mtu encap.InnerMTU) *Table {
	t := &Table{mtu: int(mtu)}
	t.least.Store(int64(mtu))
	return t
}

// Learn remembers what an outgoing packet tells of those that are to come in, for
// most packets nothing. It doesn't keep the packet.
func (t *Table) Learn(packet []byte) {
	l, ok := encap.ReadPacketLimit(packet)
	if !ok {
		return
	}
	slot := &t.flows[l.Flow%slots]
	before := slot.Load()
	known := before != 0 && uint32(before>>32) == l.Flow
	switch {
	case known && !l.Handshake && int(uint32(before)) <= l.Length:
	case l.Length < t.mtu:
		t.lower(int64(l.Length))
		slot.Store(uint64(l.Flow)<<32 | uint64(l.Length))
	case known && l.Handshake:
		slot.CompareAndSwap(before, 0)
	}
}

// lower makes sure that least isn't more than n.
func (t *Table) lower(n int64) {
	for least := t.least.Load(); n < least; least = t.least.Load() {
		if t.least.CompareAndSwap(least, n) {
			return
		}
	}
}

// Limit returns the length in bytes of the longest packet of an incoming packet's
// flow, 0 if the device's MTU is all that limits it.
func (t *Table) Limit(packet []byte) int {
	if int64(len(packet)) <= t.least.Load() {
		return 0
	}
	flow := encap.FlowHash(packet)
	if l := t.flows[flow%slots].Load(); l != 0 && uint32(l>>32) == flow {
		return int(uint32(l))
	}
	return 0
}

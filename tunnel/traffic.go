package tunnel

import (
	"net/netip"
	"sync/atomic"
	"time"

	"uvxlan/tunnel/batch"
)

// PeerTraffic is what a [Router] has counted of one peer's subnet, for as long
// as there was a peer of that subnet. What arrives without VXLAN, by the peer's
// own direct route, comes to the kernel and is not in it.
type PeerTraffic struct {
	// Packets are IP packets, each segment of a superpacket one, and Bytes are
	// theirs; a superpacket that travels whole, as by a direct path, has its headers
	// counted once. Tx is what the kernel took for the peer, by either path, Rx what
	// was taken from it.
	TxPackets, TxBytes uint64
	// TxDropped is how many of the packets to the peer were not sent: the kernel
	// didn't take them, or they were too big for the path.
	TxDropped          uint64
	RxPackets, RxBytes uint64
	// LastSeen is when the last of RxPackets came, zero if none has.
	LastSeen time.Time
}

// traffic counts for one peer. All workers share it, so they add what they have
// counted of a run of packets, not each packet. The padding keeps two peers out
// of one cache line.
type traffic struct {
	sent               batch.Counters
	rxPackets, rxBytes atomic.Uint64
	seen               atomic.Int64 // Unix time in nanoseconds, 0 for never
	_                  [16]byte
}

func (t *traffic) load() PeerTraffic {
	p := PeerTraffic{
		TxPackets: t.sent.Packets.Load(), TxBytes: t.sent.Bytes.Load(), TxDropped: t.sent.Dropped.Load(),
		RxPackets: t.rxPackets.Load(), RxBytes: t.rxBytes.Load(),
	}
	if seen := t.seen.Load(); seen != 0 {
		p.LastSeen = time.Unix(0, seen)
	}
	return p
}

// peerRun is packets of a batch that follow each other and came from one peer.
type peerRun struct {
	of             *traffic
	packets, bytes uint64
}

// add counts packets of n bytes in all from a peer at about the time now. Nil is
// a peer that isn't known.
func (s *peerRun) add(from *traffic, packets, n int, now int64) {
	if s.of != from {
		s.flush(now)
		s.of = from
	}
	s.packets += uint64(packets)
	s.bytes += uint64(n)
}

// flush adds to the peer's counters and starts anew.
func (s *peerRun) flush(now int64) {
	if s.of != nil {
		s.of.rxPackets.Add(s.packets)
		s.of.rxBytes.Add(s.bytes)
		s.of.seen.Store(now)
	}
	*s = peerRun{}
}

// Traffic is what was counted of the peer of a subnet, zero if there is none.
func (r *Router) Traffic(subnet netip.Prefix) PeerTraffic {
	if e, ok := r.peers.load().subnets.Get(subnet.Masked()); ok {
		return r.fast.traffic(e)
	}
	return PeerTraffic{}
}

// carryOn lets entries count on from those whose subnets they have.
func (r *Router) carryOn(entries []*entry) {
	now := r.peers.load()
	for _, e := range entries {
		if before, ok := now.subnets.Get(e.Subnet); ok {
			e.traffic = before.traffic
		}
	}
}

package batch

import (
	"encoding/binary"
	"math"
	"net/netip"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// ConfinedFor is how long a destination that met a full send buffer is kept
	// to its few sockets, and a socket that was full is avoided by all others.
	ConfinedFor = time.Second
	// moveAfter is how long a confined destination keeps its sockets if they are
	// always full, and then twice as long after each move. What the old ones hold
	// must go meanwhile.
	moveAfter = 20 * time.Second
	// runsOffMin and runsOffMax are how long a destination gets no runs after one
	// was refused: the former first, twice as long after each further refusal.
	runsOffMin = time.Second
	runsOffMax = time.Minute
)

// Destination is where datagrams or frames go, and what sending them has taught.
// All workers share it, and all peers behind one address should.
type Destination struct {
	name [unix.SizeofSockaddrInet6]byte // in the kernel's form
	len  uint32
	pool uint8
	hash uint32 // of the address
	addr netip.AddrPort

	confined atomic.Int64  // until then; 0 if not
	since    atomic.Int64  // confined to these sockets since then
	shard    atomic.Uint32 // which sockets those are
	moves    atomic.Uint32 // to others, since it is confined
	runsOff  atomic.Int64  // no runs until then; 0 if none was refused
	wait     atomic.Int64  // between the last refusal of a run and runsOff
	tooBig   atomic.Bool
	used     atomic.Bool
	longest  atomic.Int32
}

// NewDestination returns the destination of datagrams to a UDP port, for the
// sockets of the address's family.
func NewDestination(to netip.AddrPort) *Destination {
	d := &Destination{addr: to}
	d.longest.Store(anyLength)
	binary.BigEndian.PutUint16(d.name[2:], to.Port())
	if to.Addr().Is4() {
		binary.NativeEndian.PutUint16(d.name[:], unix.AF_INET)
		ip := to.Addr().As4()
		copy(d.name[4:], ip[:])
		d.len = unix.SizeofSockaddrInet4
	} else {
		binary.NativeEndian.PutUint16(d.name[:], unix.AF_INET6)
		ip := to.Addr().As16()
		copy(d.name[8:], ip[:])
		d.len, d.pool = unix.SizeofSockaddrInet6, 1
	}
	d.hash = hash(d.name[:d.len])
	d.shard.Store(d.hash)
	return d
}

// AddrPort is the address and UDP port, the zero value of a link's destination.
func (d *Destination) AddrPort() netip.AddrPort { return d.addr }

// NewLinkDestination returns the destination of frames that a packet socket
// sends by the interface of an index to a MAC address (packet(7)). The frames'
// protocol is left to the kernel, which reads it from the Ethernet header.
func NewLinkDestination(index int, mac [6]byte) *Destination {
	d := &Destination{len: unix.SizeofSockaddrLinklayer}
	d.longest.Store(anyLength)
	binary.NativeEndian.PutUint16(d.name[:], unix.AF_PACKET)
	binary.NativeEndian.PutUint32(d.name[4:], uint32(index))
	d.name[11] = byte(copy(d.name[12:], mac[:]))
	d.hash = hash(d.name[:d.len])
	d.shard.Store(d.hash)
	return d
}

// hash is FNV-1a, with its bits mixed once more (the finalizer of MurmurHash3):
// neighbouring addresses must differ in all of them.
func hash(b []byte) uint32 {
	h := uint32(2166136261)
	for _, c := range b {
		h = (h ^ uint32(c)) * 16777619
	}
	return mix(h)
}

func mix(h uint32) uint32 {
	h = (h ^ h>>16) * 0x85ebca6b
	h = (h ^ h>>13) * 0xc2b2ae35
	return h ^ h>>16
}

// slot is where a small table has the destination, together with others.
func (d *Destination) slot() uint32 { return d.hash & 63 }

// TooBig tells whether, since it was last asked, the kernel refused datagrams to
// the destination for their size: they are longer than the MTU of the path,
// which is worth looking up again. Runs are refused for it even where single
// datagrams may be fragmented.
func (d *Destination) TooBig() bool { return d.tooBig.Load() && d.tooBig.Swap(false) }

// anyLength is longer than any datagram.
const anyLength = math.MaxInt32

// MaxDatagram is the longest payload, in bytes, with which a datagram travels to the
// destination in one piece; where that isn't known, it is more than any datagram has.
// There are no runs of longer ones: the kernel would refuse them.
func (d *Destination) MaxDatagram() int { return int(d.longest.Load()) }

// SetMaxDatagram changes MaxDatagram to n bytes, 0 if it isn't known. Any goroutine
// may call it.
func (d *Destination) SetMaxDatagram(n int) {
	if n <= 0 || n > anyLength {
		n = anyLength
	}
	if int32(n) == d.longest.Load() {
		return
	}
	d.longest.Store(int32(n))
	d.wait.Store(0) // runs may have been refused for their datagrams' length
	d.runsOff.Store(0)
}

// Used tells whether a packet to the destination was begun since it was last asked.
func (d *Destination) Used() bool { return d.used.Load() && d.used.Swap(false) }

// Use marks the destination as used, for packets that another than a [Batch] sends.
func (d *Destination) Use() { d.used.Store(true) }

// Runs tells whether datagrams to the destination may be sent as runs at the
// time now, in the nanoseconds of [Batch.Flush].
func (d *Destination) Runs(now int64) bool {
	until := d.runsOff.Load()
	return until == 0 || now >= until
}

// refuseRuns turns runs off for a while.
func (d *Destination) refuseRuns(now int64) {
	if !d.Runs(now) {
		return // by another worker, or in this flush
	}
	wait := min(max(2*d.wait.Load(), int64(runsOffMin)), int64(runsOffMax))
	d.wait.Store(wait)
	d.runsOff.Store(now + wait)
}

// acceptRuns ends the trial of runs.
func (d *Destination) acceptRuns(now int64) {
	if d.runsOff.Load() != 0 && d.Runs(now) {
		d.wait.Store(0)
		d.runsOff.Store(0)
	}
}

// confine keeps the destination to its few sockets for a while.
func (d *Destination) confine(now int64) {
	until, before := now+int64(ConfinedFor), d.confined.Load()
	if before == 0 {
		d.since.Store(now)
		d.moves.Store(0)
	}
	if until-before > int64(ConfinedFor)/8 { // workers share the line
		d.confined.Store(until)
	}
}

// move gives a destination whose sockets are all full others, if that has lasted:
// they may be full for another's sake.
func (d *Destination) move(now int64) {
	since := d.since.Load()
	moves := min(d.moves.Load(), 16)
	if now-since > int64(moveAfter)<<moves && d.since.CompareAndSwap(since, now) {
		d.moves.Store(moves + 1)
		d.shard.Store(mix(d.shard.Load() + 1))
	}
}

func (d *Destination) isConfined(now int64) bool {
	until := d.confined.Load()
	if until != 0 && now >= until {
		d.confined.CompareAndSwap(until, 0)
		return false
	}
	return until != 0
}

// Counters count what was sent for one peer. All workers share them. Sent is
// what the kernel took: what a backlog holds counts once it goes.
type Counters struct {
	// Packets are those on the wire, each segment of a superpacket one; Bytes are
	// theirs, without what encapsulates them.
	Packets, Bytes atomic.Uint64
	// Dropped are packets that were not sent, for whatever reason.
	Dropped atomic.Uint64
}

// Result is what has become of packets since the last Result.
type Result struct {
	// Messages, Datagrams and Bytes are what the kernel took: entries of
	// sendmmsg(2), datagrams of runs one by one, and the bytes of the packets
	// inside, without what encapsulates them. Packets are those that were begun and
	// of which the kernel took the first datagram.
	Packets, Messages, Datagrams, Bytes uint64
	// Datagrams that were dropped. Full: the send buffer and the backlog were
	// full. Congested: the kernel was out of buffers, or the interface's queue
	// dropped the frame (packet sockets only: UDP isn't told). Refused: the
	// kernel refused it for another reason.
	Full, Congested, Refused uint64
	// Fallbacks are runs that were refused and then taken as single datagrams.
	Fallbacks uint64
	// Returned is the number of messages for [Batch.Returned].
	Returned int
}

// Dropped is how many datagrams were dropped for any reason.
func (r *Result) Dropped() uint64 { return r.Full + r.Congested + r.Refused }

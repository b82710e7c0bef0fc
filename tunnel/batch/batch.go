package batch

import (
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"

	"uvxlan/tunnel/internal/mmsg"
)

const (
	// MaxRun is the most datagrams of a run: UDP_MAX_SEGMENTS until Linux 6.9.
	MaxRun = 64
	// MaxRunBytes is the longest UDP payload over IPv4.
	MaxRunBytes = 65507
	// maxMessages and maxPieces bound a batch: 64 superpackets of 64 KiB are fewer
	// messages than that, and at an ordinary MTU their segments half the pieces.
	maxMessages = 256
	maxPieces   = 2048
	// none ends a list.
	none = -1
)

// Batch gathers messages for several sockets and sends them. All memory that
// Append and Part are given is borrowed until Flush returns; it may lie outside
// Go's heap.
type Batch struct {
	sockets  []socket
	pools    [2]pool
	overhead int  // bytes of a datagram that encapsulate the packet
	segment  bool // UDP_SEGMENT may be used
	returns  bool // refused messages are for Returned
	now      int64

	current begun
	pending []int16 // sockets with messages
	holding uint64  // slots of the destinations of what is in the batch or a backlog, as bits
	blocked int     // sockets
	avoided int     // sockets

	used     int // of messages
	pieces   int // of iovs
	messages [maxMessages]message
	iovs     [maxPieces]unix.Iovec
	next     [maxPieces]int16 // of the same message

	// What follows is of the messages that are being sent by one socket.
	sending  [maxMessages]*message
	headers  [maxMessages]mmsg.Header
	controls [maxMessages]runControl
	gathered [maxPieces]unix.Iovec // of messages whose pieces don't lie together
	datagram [4]unix.Iovec
	alone    [1]mmsg.Header

	backlog  backlog
	polls    []unix.PollFd
	polled   []int16
	returned []returned
	result   Result
	counted  sent
	sendmmsg func(fd int, msgs []mmsg.Header) (int, unix.Errno)
	poll     func(fds []unix.PollFd)
	resize   func(fd, size int) int
}

// pool is the sockets that a destination's flows are spread over.
type pool struct {
	first, n int
	shard    int // how many of them a confined destination has
}

// socket is one sending socket.
type socket struct {
	fd      int
	index   int16
	ecn     *[4][]byte
	blocked bool
	// avoid keeps destinations that aren't confined off a socket that is blocked,
	// or was until a while ago.
	avoid      bool
	avoidUntil int64
	since      int64 // when it was blocked
	size       int   // of the send buffer

	first, last int16 // its messages of the batch
	reserved    int   // bytes of the batch that the backlog is to take
	kept        queue
}

// begun is the packet that datagrams are appended of.
type begun struct {
	socket  *socket
	home    int16 // the flow's socket while none is full
	to      *Destination
	of      *Counters
	ecn     uint8
	packets uint16 // 1 until its first datagram
}

// message is an entry of sendmmsg, in the batch or in a backlog.
type message struct {
	to    *Destination
	of    *Counters
	bytes uint32
	inner uint32 // of bytes, without encapsulation
	// at is where a backlog has the message, which is then in one piece.
	at      uint32
	size    uint16 // of each datagram but the last
	count   uint16 // datagrams
	packets uint16 // begun
	pieces  uint16
	// first and last of its pieces
	first, last int16
	next        int16 // of the same socket
	home        int16 // the flow's socket while none is full
	ecn         uint8
	full        bool // nothing may follow
	whole       bool // not to be segmented
	kept        bool // in a backlog
	done        bool // sent, dropped or returned
}

// UDPConfig describes the batch of [NewUDP].
type UDPConfig struct {
	// IPv4 and IPv6 are the sockets by family, none for a family without peers.
	// The Batch uses but doesn't own them; it sizes their send buffers.
	IPv4, IPv6 []int
	// Segment says that the sockets take runs.
	Segment bool
	// Overhead is the bytes of each datagram that encapsulate its packet; they
	// don't count as bytes sent.
	Overhead int
}

// NewUDP returns a batch for UDP sockets.
func NewUDP(c UDPConfig) (*Batch, error) {
	b := &Batch{segment: c.Segment, overhead: c.Overhead}
	b.pools[0] = b.open(c.IPv4, ecnControls(unix.IPPROTO_IP, unix.IP_TOS))
	b.pools[1] = b.open(c.IPv6, ecnControls(unix.IPPROTO_IPV6, unix.IPV6_TCLASS))
	return b.init()
}

// NewPacket returns a batch for packet sockets, over which the destinations are
// spread: all messages to one leave by the same socket. A message that is refused,
// other than for want of room, isn't dropped: it is returned, with all later ones to
// the same destination, so that they can go another way. See [Batch.Returned].
func NewPacket(fds ...int) (*Batch, error) {
	b := &Batch{returns: true}
	b.pools[0] = b.open(fds, [4][]byte{})
	return b.init()
}

func (b *Batch) open(fds []int, ecn [4][]byte) pool {
	p := pool{len(b.sockets), len(fds), (len(fds) + shards - 1) / shards}
	for _, fd := range fds {
		b.sockets = append(b.sockets, socket{
			fd: fd, index: int16(len(b.sockets)), ecn: &ecn, size: sendBuffer(fd),
			first: none, last: none, kept: queue{block: none, first: none, last: none},
		})
	}
	return p
}

func (b *Batch) init() (*Batch, error) {
	n := len(b.sockets)
	b.sendmmsg, b.poll, b.resize = mmsg.Send, pollNow, resizeSendBuffer
	b.pending, b.polled = make([]int16, 0, n), make([]int16, 0, n)
	b.polls = make([]unix.PollFd, 0, n)
	for i := range b.controls {
		copy(b.controls[i][:], segmentControl)
	}
	if b.returns {
		b.returned = make([]returned, 0, maxMessages+maxKept)
	}
	if err := b.backlog.open(); err != nil {
		return nil, fmt.Errorf("make backlog: %w", err)
	}
	return b, nil
}

// Close gives the backlog's memory back, with what is in it. The sockets stay
// open.
func (b *Batch) Close() error { return b.backlog.arena.Close() }

// Fits tells whether a message of so many pieces has room. A datagram takes two
// at most. If it hasn't, Flush makes room, also in the middle of a packet.
func (b *Batch) Fits(pieces int) bool { return b.used < maxMessages && b.pieces+pieces <= maxPieces }

// Begin starts a packet to a destination, whose datagrams are then given to
// Append. Its flow chooses the socket, ecn is the outer ECN field, and the packet
// is going to make so many datagrams and bytes. False means that the packet is
// dropped, and counted: neither the socket nor its backlog has room for it.
// Counters may be nil.
func (b *Batch) Begin(to *Destination, of *Counters, flow uint32, ecn uint8, datagrams, bytes int) bool {
	p := &b.pools[to.pool]
	if p.n == 0 {
		b.drop(&b.result.Refused, of, datagrams)
		return false
	}
	if !to.used.Load() { // workers share the line
		to.used.Store(true)
	}
	home := &b.sockets[p.first+int(flow%uint32(p.n))]
	s := home
	if s.avoid || to.confined.Load() != 0 {
		s = b.choose(to, home)
		if s.blocked && !b.reserve(s, bytes+datagrams*segmentOverhead) {
			b.drop(&b.result.Full, of, datagrams)
			return false
		}
	}
	b.current = begun{s, home.index, to, of, ecn, 1}
	return true
}

// segmentOverhead is about what a datagram is longer than its part of a packet.
const segmentOverhead = 96

// Append adds a datagram, the concatenation of head and tail, either of which
// may be empty, to the packet that was begun. It joins the run before it if it
// can. The caller has asked Fits.
func (b *Batch) Append(head, tail []byte) {
	size := len(head) + len(tail)
	m := b.extend(size)
	if m == nil {
		m = b.add(size)
		m.full = !b.segment || size > m.to.MaxDatagram() || !m.to.Runs(b.now)
	}
	m.count++
	m.packets += b.current.packets
	b.current.packets = 0
	m.bytes += uint32(size)
	m.inner += uint32(max(size-b.overhead, 0))
	m.full = m.full || size < int(m.size)
	b.put(m, head)
	b.put(m, tail)
}

// extend returns the socket's last run if the datagram may join it.
func (b *Batch) extend(size int) *message {
	c := &b.current
	if c.socket.last == none {
		return nil
	}
	m := &b.messages[c.socket.last]
	if m.full || m.to != c.to || m.of != c.of || m.home != c.home || m.ecn != c.ecn || size > int(m.size) ||
		m.count == MaxRun || int(m.bytes)+size > MaxRunBytes {
		return nil
	}
	return m
}

// add appends an empty message to the socket's.
func (b *Batch) add(size int) *message {
	c := &b.current
	m := &b.messages[b.used]
	*m = message{to: c.to, of: c.of, home: c.home, ecn: c.ecn, size: uint16(size)}
	b.link(c.socket, m, int16(b.used))
	b.holding |= 1 << c.to.slot()
	b.used++
	return m
}

// link puts message i behind those of a socket.
func (b *Batch) link(s *socket, m *message, i int16) {
	m.next = none
	if s.last == none {
		s.first = i
		b.pending = append(b.pending, s.index)
	} else {
		b.messages[s.last].next = i
	}
	s.last = i
}

// put appends one piece; one that lies behind the last in memory makes that one
// longer, so that a run of small packets read one after the other is one piece.
func (b *Batch) put(m *message, p []byte) {
	if len(p) == 0 {
		return
	}
	base, i := unsafe.SliceData(p), int16(b.pieces)
	if m.pieces == 0 {
		m.first = i
	} else {
		last := &b.iovs[m.last]
		if uintptr(unsafe.Pointer(last.Base))+uintptr(last.Len) == uintptr(unsafe.Pointer(base)) {
			last.SetLen(int(last.Len) + len(p))
			return
		}
		b.next[m.last] = i
	}
	b.iovs[i].Base = base
	b.iovs[i].SetLen(len(p))
	m.last = i
	m.pieces++
	b.pieces++
}

// Whole starts a packet that leaves as one message, whose parts are then given to
// Part: with a packet socket the vnet header, the Ethernet header and the packet.
// The packet has so many bytes, and the kernel makes so many segments of it. False
// means what Begin's does. The caller has asked Fits.
func (b *Batch) Whole(to *Destination, of *Counters, segments, bytes int) bool {
	if !b.Begin(to, of, to.hash, 0, segments, bytes) {
		return false
	}
	m := b.add(0)
	m.count, m.packets, m.inner = uint16(segments), 1, uint32(bytes)
	m.full, m.whole = true, true
	return true
}

// Part appends a part to the message that Whole has started.
func (b *Batch) Part(p []byte) {
	m := &b.messages[b.used-1]
	m.bytes += uint32(len(p))
	b.put(m, p)
}

// Holds tells whether messages to a destination are in the batch or in a
// backlog. It may say so of one without any.
func (b *Batch) Holds(to *Destination) bool { return b.holding>>to.slot()&1 != 0 }

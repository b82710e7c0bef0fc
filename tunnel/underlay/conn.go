// Package underlay carries VXLAN datagrams between hosts: by [UDP] sockets, opened
// by [Listen] or adopted by [Adopt], or in [Memory]. A router has one [Conn] a worker.
package underlay

import (
	"errors"
	"fmt"
	"io"
	"net/netip"

	"uvxlan/encap"
	"uvxlan/tunnel/batch"
	"uvxlan/tunnel/internal/arena"
	"uvxlan/tunnel/internal/family"
	"uvxlan/tunnel/offload"

	"golang.org/x/sys/unix"
)

// ErrGone says that a receiving socket is of no more use, as when it was
// destroyed from outside (ss -K).
var ErrGone = errors.New("the underlay's socket is gone")

// Underlay is what VXLAN datagrams come and go by: [UDP] sockets, or a [Memory]
// network.
type Underlay interface {
	// Locals are the addresses that datagrams come to, at most one a family, all
	// with the VXLAN port, which is ours and every peer's.
	Locals() []netip.AddrPort
	// Workers is how many of them Open may be called for.
	Workers() int
	// Open readies one worker's share of the underlay, which nobody else has open.
	// With hugePages what it receives lies on huge pages where the kernel has them.
	Open(worker int, hugePages bool) (Conn, error)
	// Offloads are those in use, of [offload.GSO] and [offload.GRO].
	Offloads() offload.Set
	// PathMTU is the longest IP packet that the path to a host takes in one piece, 0
	// if that isn't known. Any goroutine may ask.
	PathMTU(to netip.Addr) encap.OuterMTU
	// Close closes everything. Each Conn was closed before.
	io.Closer
}

// Conn is one worker's share of an [Underlay]. One goroutine uses it at a time.
type Conn interface {
	// FDs are descriptors that poll readable when Receive has something to give.
	// They don't change.
	FDs() []int
	// Receive returns messages that have arrived, and never waits: with nothing to
	// receive there are none. They hold until Receive is called without keep. With
	// keep it goes on with the batch of the messages before, at the same socket. full
	// says that the batch is full, so that there may be more.
	// After an error, which is ErrGone or of the kernel, nothing more will come.
	Receive(keep bool) (messages []Message, full bool, err error)
	// Lost is how many datagrams have found no room in the receive buffers since Open.
	// It never falls. The kernel's number (SK_MEMINFO_DROPS of SO_MEMINFO, socket(7))
	// has 32 bits for each socket and includes what had a wrong checksum; it may wrap,
	// but Lost is asked at least once in 2^32 losses, or as many are missing. Any
	// goroutine may ask.
	Lost() uint64

	Sender

	// Close gives back what Open took. The sockets stay.
	io.Closer
}

// Sender is the sending side of a [Conn]; see [batch.Batch], which it is.
type Sender interface {
	Fits(pieces int) bool
	Begin(to *batch.Destination, of *batch.Counters, flow uint32, ecn uint8, datagrams, bytes int) bool
	Append(head, tail []byte)
	Flush(now int64) batch.Result
	Blocked() bool
	AppendBlocked(fds []int) []int
	Retry(now int64) batch.Result
}

// Message is what came in one piece: a datagram, or several of one sender that the
// kernel has put together (UDP_GRO, udp(7)).
type Message struct {
	// From is the sender.
	From netip.AddrPort
	// Data are the bytes, which belong to the Conn and may be changed until its
	// next batch.
	Data []byte
	// SegmentSize is the length in bytes of each datagram but the last; that of
	// Data if there is one datagram. Where a kernel on this machine sends a tunnel's
	// superpacket of UDP unsplit, Data is one datagram and SegmentSize the payload
	// of each datagram inside.
	SegmentSize int
	// ECN is the outer ECN field.
	ECN uint8
	// Truncated says that the message was longer than any may be.
	Truncated bool
}

const (
	// rxBytes is what the messages of a batch may have together, judged by those
	// before: it should stay in the cache until it is written.
	rxBytes = 512 << 10
	// rxFew is the least that a batch may have of messages.
	rxFew = 8
)

// conn is a worker's UDP sockets.
type conn struct {
	*batch.Batch
	memory   *arena.Arena
	inbox    *inbox
	sockets  []receiver // one, or one of each family
	fds      []int
	current  int // the socket of the batch
	n, bytes int // of the batch
	failures int // calls that failed, one after the other
	lost     lost
	messages [rxBatch]Message
}

// receiver is a socket to receive from.
type receiver struct {
	fd    int
	limit int // messages of its next batch
}

// Open makes worker's share of the sockets.
func (u *UDP) Open(worker int, hugePages bool) (Conn, error) {
	c := &conn{}
	send := batch.UDPConfig{Segment: u.offloads.Has(offload.GSO), Overhead: encap.FrameHeaderLen}
	for f, s := range u.sockets {
		if s == nil {
			continue
		}
		c.sockets = append(c.sockets, receiver{s.rx[worker], rxBatch})
		c.fds = append(c.fds, s.rx[worker])
		if family.Family(f) == family.IPv6 {
			send.IPv6 = s.tx[worker]
		} else {
			send.IPv4 = s.tx[worker]
		}
	}
	var err error
	if c.memory, err = arena.Map(inboxMemory, hugePages); err != nil {
		return nil, err
	}
	if c.Batch, err = batch.NewUDP(send); err != nil {
		return nil, errors.Join(err, c.memory.Close())
	}
	c.inbox = newInbox(c.memory)
	c.lost.start(c.fds)
	return c, nil
}

func (c *conn) Close() error { return errors.Join(c.Batch.Close(), c.memory.Close()) }

func (c *conn) FDs() []int { return c.fds }

func (c *conn) Receive(keep bool) (messages []Message, full bool, err error) {
	if keep {
		return c.receive()
	}
	c.end()
	for range c.sockets {
		c.current = (c.current + 1) % len(c.sockets)
		if messages, full, err = c.receive(); err != nil || len(messages) > 0 {
			break
		}
	}
	return messages, full, err
}

// end ends a batch. What the last one came to says how many messages the next may
// have.
func (c *conn) end() {
	if c.n > 0 {
		c.sockets[c.current].limit = min(max(rxBytes*c.n/max(c.bytes, 1), rxFew), rxBatch)
	}
	c.n, c.bytes = 0, 0
	c.inbox.reset()
}

// receive adds to the batch what the current socket has.
func (c *conn) receive() (messages []Message, full bool, err error) {
	s, first := &c.sockets[c.current], c.n
	for more := true; more && c.n < s.limit && c.inbox.unused > 0; {
		asked := min(s.limit-c.n, c.inbox.unused)
		got, err := c.inbox.fill(s.fd, c.n, asked)
		if err != nil {
			return c.messages[first:c.n], false, c.judge(s.fd, err)
		}
		c.failures = 0
		for i := c.n; i < c.n+got; i++ {
			c.read(i)
		}
		c.n += got
		more = got == asked
	}
	return c.messages[first:c.n], c.n >= s.limit || c.inbox.unused == 0, nil
}

// read fills in message i.
func (c *conn) read(i int) {
	a := parseControl(c.inbox.control(i))
	m := &c.messages[i]
	m.From, m.Data = c.inbox.names[i].addrPort(), c.inbox.message(i)
	m.ECN, m.SegmentSize = a.ecn, a.segment
	if a.segment == 0 {
		m.SegmentSize = len(m.Data)
	}
	m.Truncated = c.inbox.truncated(i)
	c.bytes += len(m.Data)
}

// maxFailures is how many calls in a row may fail.
const maxFailures = 1000

// judge tells what a failed call means. What ICMP says of a datagram that was sent
// comes back as the error of a later call (ip(7), IP_RECVERR) and is no end. A socket
// that was destroyed (ss -K) says ECONNABORTED, or has no port any more.
func (c *conn) judge(fd int, err error) error {
	c.failures++
	local, lookup := boundTo(fd)
	if errors.Is(err, unix.ECONNABORTED) || lookup != nil || local.Port() == 0 || c.failures > maxFailures {
		return fmt.Errorf("%w: %w", ErrGone, err)
	}
	return nil
}

// Lost is what didn't fit into the receive buffers.
func (c *conn) Lost() uint64 { return c.lost.count(c.fds) }

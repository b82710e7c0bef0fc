// Package probe sends ICMP echo requests to many hosts at once and tells what
// becomes of each: the round-trip time, or the ICMP error that came instead.
//
// A [Prober] is one socket for any number of destinations. A filter in the kernel
// passes on only answers to its own requests, so that other programs' pings cost
// nothing.
//
// golang.org/x/net/icmp doesn't do here: its connections give no access to the
// socket, which the DF bit and the filter need, and its messages don't have the MTU
// of a "fragmentation needed".
package probe

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync"
	"time"
)

var (
	// ErrNoAnswer is the result of a request for whose time nothing came.
	ErrNoAnswer = errors.New("no answer")
	// ErrDamaged is the result of a request whose reply came with other bytes than
	// were sent, or with a wrong checksum.
	ErrDamaged = errors.New("the reply is damaged")
	// ErrBusy refuses a request while as many wait as there are sequence numbers.
	ErrBusy = errors.New("65536 requests wait for their answers")
)

// Config is what a Prober must know.
type Config struct {
	// Source is the address to send from, which must be one of the host's. An
	// unspecified one (0.0.0.0 or ::) has the kernel choose, for each destination. Its
	// family is that of all destinations.
	Source netip.Addr
	// KernelTime has round-trip times end when the reply has reached the host's
	// network stack, not when this process runs next. As long as the Prober is open,
	// the kernel then notes the time of each packet that the host receives, at some
	// tens of nanoseconds each.
	KernelTime bool
}

// Request is an echo request.
type Request struct {
	To netip.Addr
	// Size is the length of the IP packet in bytes, at least MinSize of To; 0 means
	// that.
	Size int
	// DontFragment forbids everyone on the way to fragment the packet, this host
	// included: one that is longer than the outgoing interface's MTU is refused with
	// EMSGSIZE. What the kernel has learnt of the path is passed over.
	DontFragment bool
	// Timeout is how long to wait for an answer; 0 means until the context ends.
	Timeout time.Duration
}

// Reply is the answer to a Request.
type Reply struct {
	// From is who has sent it: whom the request was for, by this or another of its
	// addresses.
	From netip.Addr
	// RTT is the round-trip time.
	RTT time.Duration
}

// MinSize is the least length of a packet to an address, in bytes: an IP header
// without options, an echo header and a mark by which the reply is known.
func MinSize(to netip.Addr) int { return formatOf(to).headerLen + echoHeaderLen + markLen }

// maxSize is the longest IPv4 packet (RFC 791, section 3.1).
const maxSize = 1<<16 - 1

// Prober sends echo requests. Its methods may be called from any goroutine.
type Prober struct {
	// immutable
	format *format
	socket *socket
	marks  uint64 // random; a request's mark is this plus its number

	reading sync.WaitGroup
	done    chan struct{} // closed when reading ends

	sending sync.Mutex // guards what follows, and the order of requests
	packet  []byte
	number  uint64 // of the last request

	mu      sync.Mutex
	waiting map[uint16]*waiter // by sequence number; guarded by mu
	closed  bool               // guarded by mu
}

// waiter is a request that is owed an answer.
type waiter struct {
	// immutable
	to     netip.Addr
	size   int // of the echo's payload
	mark   uint64
	sent   time.Time
	answer chan answer // holds one
}

type answer struct {
	reply Reply
	err   error
}

// Open opens a socket: a raw one, which needs CAP_NET_RAW, or else a ping socket,
// which net.ipv4.ping_group_range may allow to the process's group.
func Open(c Config) (*Prober, error) {
	c.Source = c.Source.Unmap()
	if !c.Source.IsValid() || c.Source.Zone() != "" {
		return nil, fmt.Errorf("open prober: %q is no address to send from", c.Source)
	}
	s, err := openSocket(c)
	if err != nil {
		return nil, fmt.Errorf("open prober from %s: %w", c.Source, err)
	}
	return start(s), nil
}

func start(s *socket) *Prober {
	p := &Prober{
		format: s.format, socket: s, marks: rand.Uint64(), done: make(chan struct{}), waiting: map[uint16]*waiter{},
	}
	p.reading.Go(func() {
		p.read()
		close(p.done)
	})
	return p
}

// Close ends all requests with [net.ErrClosed]. Further calls do nothing.
func (p *Prober) Close() error {
	p.mu.Lock()
	closed := p.closed
	p.closed = true
	p.mu.Unlock()
	if closed {
		p.reading.Wait()
		return nil
	}
	err := p.socket.close()
	p.reading.Wait()
	return err
}

// Echo sends a request and waits for its answer. It may be called by many goroutines
// at once, each of which gets its own answer. The error is
//   - [*ICMPError] if a router, the host asked or this host says why the request was
//     not delivered,
//   - [ErrNoAnswer] after r.Timeout, and the context's error when that ends,
//   - [ErrDamaged] if the reply isn't what was sent,
//   - the socket's if it doesn't take the packet, such as EMSGSIZE for one that may not
//     be fragmented, EPERM where the host's firewall drops it (an IPv6 ping socket isn't
//     told), or ENETUNREACH,
//   - [net.ErrClosed] after Close.
func (p *Prober) Echo(ctx context.Context, r Request) (Reply, error) {
	r.To = r.To.Unmap()
	if r.Size == 0 {
		r.Size = p.format.headerLen + echoHeaderLen + markLen
	}
	if err := p.check(r); err != nil {
		return Reply{}, fmt.Errorf("probe %s: %w", r.To, err)
	}
	w := &waiter{to: r.To, size: r.Size - p.format.headerLen - echoHeaderLen, answer: make(chan answer, 1)}
	seq, err := p.send(w, r.DontFragment)
	if err != nil {
		return Reply{}, fmt.Errorf("probe %s: %w", r.To, err)
	}
	defer p.forget(seq, w)
	reply, err := p.await(ctx, w, r.Timeout)
	if err != nil {
		return Reply{}, fmt.Errorf("probe %s: %w", r.To, err)
	}
	return reply, nil
}

func (p *Prober) check(r Request) error {
	switch least := p.format.headerLen + echoHeaderLen + markLen; {
	case !r.To.IsValid() || formatOf(r.To) != p.format || r.To.Zone() != "":
		return errors.New("it is no address that this socket sends to")
	case r.Size < least || r.Size > maxSize:
		return fmt.Errorf("a packet has from %d to %d bytes, not %d", least, maxSize, r.Size)
	}
	return nil
}

// send makes w's packet, and waits for its answer from before it is on its way.
func (p *Prober) send(w *waiter, dontFragment bool) (seq uint16, err error) {
	p.sending.Lock()
	defer p.sending.Unlock()
	p.number++
	seq, w.mark = uint16(p.number), p.marks+p.number
	p.packet = p.format.appendRequest(p.packet[:0], p.socket.id, seq, w.mark, w.size)
	if err := p.socket.setDontFragment(dontFragment); err != nil {
		return 0, err
	}
	w.sent = time.Now()
	if err := p.remember(seq, w); err != nil {
		return 0, err
	}
	if err := p.socket.send(p.packet, w.to); err != nil {
		p.forget(seq, w)
		return 0, err
	}
	return seq, nil
}

func (p *Prober) remember(seq uint16, w *waiter) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return net.ErrClosed
	}
	if p.waiting[seq] != nil {
		return ErrBusy
	}
	p.waiting[seq] = w
	return nil
}

// forget has answers to w ignored from here on.
func (p *Prober) forget(seq uint16, w *waiter) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.waiting[seq] == w {
		delete(p.waiting, seq)
	}
}

func (p *Prober) await(ctx context.Context, w *waiter, timeout time.Duration) (Reply, error) {
	var late <-chan time.Time // never, if there is no time-out
	if timeout > 0 {
		t := time.NewTimer(timeout)
		defer t.Stop()
		late = t.C
	}
	select {
	case a := <-w.answer:
		return a.reply, a.err
	case <-late:
		return Reply{}, ErrNoAnswer
	case <-ctx.Done():
		return Reply{}, context.Cause(ctx)
	case <-p.done:
		return Reply{}, net.ErrClosed
	}
}

// read passes answers on until the socket is closed.
func (p *Prober) read() {
	buf := make([]byte, maxSize)
	for {
		m, err := p.socket.receive(buf)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err == nil {
			p.take(m)
		}
	}
}

// take passes an answer on to whom it is for. One that comes late, or that answers
// another program's request of the same number, is for nobody.
func (p *Prober) take(m message) {
	p.mu.Lock()
	w := p.waiting[m.seq]
	p.mu.Unlock()
	if w == nil {
		return
	}
	var a answer
	switch {
	case m.failure != nil:
		if m.to != w.to {
			return
		}
		a.err = m.failure
	case !hasMark(m.payload, w.mark) && (m.from != w.to || !m.damaged):
		return // another program's
	case m.damaged || !isEcho(m.payload, w.mark, w.size):
		a.err = ErrDamaged
	default:
		a.reply = Reply{From: m.from, RTT: m.since(w.sent)}
	}
	select {
	case w.answer <- a:
	default: // it has one already
	}
}

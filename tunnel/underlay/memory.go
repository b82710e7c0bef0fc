package underlay

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"

	"uvxlan/encap"
	"uvxlan/tunnel/batch"
	"uvxlan/tunnel/internal/wake"
	"uvxlan/tunnel/offload"
)

// memoryQueue is how many datagrams wait for a worker of a [Memory] network.
const memoryQueue = 4096

// Memory is a network in memory, which joins the underlays of one process without
// sockets or privileges. Datagrams to an address that nobody has are lost, as are
// those beyond a few thousand that nobody receives. Its methods may be called from
// any goroutine.
type Memory struct {
	mu    sync.Mutex
	hosts map[netip.AddrPort]*memoryUnderlay
}

// NewMemory makes a network without hosts.
func NewMemory() *Memory { return &Memory{hosts: map[netip.AddrPort]*memoryUnderlay{}} }

// Listen joins a host of so many workers to the network, with an address of each
// family at most and one port. An address that another has is [ErrPortInUse].
func (m *Memory) Listen(workers int, locals ...netip.AddrPort) (Underlay, error) {
	u := &memoryUnderlay{network: m, locals: locals}
	for range max(workers, 1) {
		w, err := wake.Open()
		if err != nil {
			return nil, errors.Join(err, u.closeWakers())
		}
		c := &memoryConn{network: m, local: locals, waker: w, fds: []int{w.FD}}
		u.conns = append(u.conns, c)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, l := range locals {
		if m.hosts[l] != nil {
			return nil, errors.Join(fmt.Errorf("listen at %s: %w", l, ErrPortInUse), u.closeWakers())
		}
	}
	for _, l := range locals {
		m.hosts[l] = u
	}
	return u, nil
}

// deliver passes a datagram on to the worker that its flow chooses.
func (m *Memory) deliver(from netip.AddrPort, d memoryDatagram) (taken bool) {
	m.mu.Lock()
	u := m.hosts[d.to]
	m.mu.Unlock()
	if u == nil {
		return false
	}
	c := u.conns[d.flow%uint32(len(u.conns))]
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.arrived) >= memoryQueue {
		c.lost.Add(1)
		return true
	}
	c.arrived = append(c.arrived, Message{From: from, Data: d.data, SegmentSize: len(d.data), ECN: d.ecn})
	if len(c.arrived) == 1 {
		c.waker.Wake()
	}
	return true
}

// memoryUnderlay is a host of a Memory network.
type memoryUnderlay struct {
	network *Memory
	locals  []netip.AddrPort
	conns   []*memoryConn
}

func (u *memoryUnderlay) Locals() []netip.AddrPort { return slices.Clone(u.locals) }
func (u *memoryUnderlay) Workers() int             { return len(u.conns) }
func (u *memoryUnderlay) Offloads() offload.Set    { return 0 }

// PathMTU isn't known: whatever is sent arrives in one piece.
func (u *memoryUnderlay) PathMTU(netip.Addr) encap.OuterMTU { return 0 }

func (u *memoryUnderlay) Open(worker int, _ bool) (Conn, error) {
	c := u.conns[worker]
	c.lost.Store(0)
	return c, nil
}

func (u *memoryUnderlay) Close() error {
	u.network.mu.Lock()
	for _, l := range u.locals {
		if u.network.hosts[l] == u { // and not whoever came after an earlier Close
			delete(u.network.hosts, l)
		}
	}
	u.network.mu.Unlock()
	return u.closeWakers()
}

func (u *memoryUnderlay) closeWakers() error {
	var errs []error
	for _, c := range u.conns {
		c.mu.Lock() // nobody wakes it any more
		errs = append(errs, c.waker.Close())
		c.waker.FD = -1
		c.mu.Unlock()
	}
	return errors.Join(errs...)
}

// memoryDatagram is one on its way.
type memoryDatagram struct {
	to   netip.AddrPort
	of   *batch.Counters
	data []byte
	flow uint32
	ecn  uint8
	head bool // the first of its packet
}

// memoryConn is a worker's share of a host.
type memoryConn struct {
	network *Memory
	local   []netip.AddrPort
	fds     []int
	sending []memoryDatagram
	current memoryDatagram

	lost     atomic.Uint64
	messages []Message

	mu      sync.Mutex // guards what follows
	waker   wake.Waker
	arrived []Message
}

func (c *memoryConn) FDs() []int   { return c.fds }
func (c *memoryConn) Lost() uint64 { return c.lost.Load() }
func (c *memoryConn) Close() error { return nil }

func (c *memoryConn) Receive(keep bool) (messages []Message, full bool, err error) {
	if !keep {
		c.messages = nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.arrived) == 0 {
		return nil, false, nil
	}
	n := min(len(c.arrived), rxBatch)
	first := len(c.messages)
	c.messages = append(c.messages, c.arrived[:n]...)
	c.arrived = slices.Delete(c.arrived, 0, n)
	if len(c.arrived) == 0 {
		c.waker.Reset()
	}
	return c.messages[first:], len(c.arrived) > 0, nil
}

func (c *memoryConn) Fits(int) bool { return len(c.sending) < rxBatch }

func (c *memoryConn) Begin(to *batch.Destination, of *batch.Counters, flow uint32, ecn uint8, _, _ int) bool {
	c.current = memoryDatagram{to: to.AddrPort(), of: of, flow: flow, ecn: ecn, head: true}
	return true
}

func (c *memoryConn) Append(head, tail []byte) {
	d := c.current
	d.data = slices.Concat(head, tail)
	c.sending = append(c.sending, d)
	c.current.head = false
}

func (c *memoryConn) Flush(int64) (r batch.Result) {
	for _, d := range c.sending {
		from := c.local[0]
		for _, l := range c.local {
			if l.Addr().Is4() == d.to.Addr().Is4() {
				from = l
			}
		}
		if !c.network.deliver(from, d) {
			r.Refused++
			if d.of != nil {
				d.of.Dropped.Add(1)
			}
			continue
		}
		inner := uint64(max(len(d.data)-encap.FrameHeaderLen, 0))
		r.Messages++
		r.Datagrams++
		r.Bytes += inner
		if d.head {
			r.Packets++
		}
		if d.of != nil {
			d.of.Packets.Add(1)
			d.of.Bytes.Add(inner)
		}
	}
	c.sending = c.sending[:0]
	return r
}

func (c *memoryConn) Blocked() bool                 { return false }
func (c *memoryConn) AppendBlocked(fds []int) []int { return fds }
func (c *memoryConn) Retry(int64) batch.Result      { return batch.Result{} }

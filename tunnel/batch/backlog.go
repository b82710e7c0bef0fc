package batch

import (
	"unsafe"

	"uvxlan/tunnel/internal/arena"
)

const (
	// BacklogPerSocket is the most bytes that wait for one socket: two
	// superpackets, or some milliseconds of a link of 300 Mbit/s.
	BacklogPerSocket = 128 << 10
	// Backlog is the most bytes that wait in a Batch.
	Backlog = blocks * BacklogPerSocket
	blocks  = 16
	// maxKept is the most messages that wait in a Batch.
	maxKept = 512
)

// backlog is what waits for blocked sockets, copied. Its memory is touched only
// when needed, and given back when no socket has been full for a while.
type backlog struct {
	arena  *arena.Arena
	memory []byte // all of it
	dirty  bool
	free   [blocks]int16 // blocks
	blocks int           // that are free
	unused int16         // list of messages
	kept   [maxKept]message
}

// queue is the part of a backlog that waits for one socket, in order.
type queue struct {
	block       int16
	first, last int16
	head, tail  int        // of the block's bytes
	to          [64]uint16 // messages by their destinations' slots
}

func (q *queue) holds(to *Destination) bool { return q.to[to.slot()] != 0 }
func (q *queue) empty() bool                { return q.first == none }

func (k *backlog) open() (err error) {
	if k.arena, err = arena.Map(Backlog, false); err != nil {
		return err
	}
	k.memory = k.arena.Alloc(Backlog)
	for i := range k.free {
		k.free[i] = int16(blocks - 1 - i)
	}
	k.blocks = blocks
	for i := range k.kept {
		k.kept[i].next = int16(i + 1)
	}
	k.kept[maxKept-1].next = none
	return nil
}

// release gives memory back to the host.
func (k *backlog) release() {
	if k.dirty && k.blocks == blocks {
		k.dirty = k.arena.Trim(k.memory) != nil
	}
}

// data is a message that waits.
func (k *backlog) data(m *message) []byte { return k.memory[m.at:][:m.bytes:m.bytes] }

// reserve tells whether a packet of the batch will have room in a socket's
// backlog.
func (b *Batch) reserve(s *socket, bytes int) bool {
	k, q := &b.backlog, &s.kept
	if k.unused == none || q.block == none && k.blocks == 0 ||
		q.tail-q.head+s.reserved+bytes > BacklogPerSocket {
		return false
	}
	s.reserved += bytes
	return true
}

// keep moves a message of the batch to a socket's backlog and tells whether
// there was room. It joins a run that waits there if it can.
func (k *backlog) keep(b *Batch, s *socket, m *message) bool {
	q := &s.kept
	if !k.fit(q, int(m.bytes)) {
		return false
	}
	to := k.join(q, m)
	if to == nil {
		i := k.unused
		if i == none {
			k.removeDone(q)
			return false
		}
		to = &k.kept[i]
		k.unused = to.next
		*to = *m
		to.kept, to.next, to.at = true, none, uint32(int(q.block)*BacklogPerSocket+q.tail)
		if q.empty() {
			q.first = i
		} else {
			k.kept[q.last].next = i
		}
		q.last = i
		q.to[m.to.slot()]++
	}
	dst := k.memory[int(q.block)*BacklogPerSocket+q.tail:]
	at := 0
	for p := m.first; at < int(m.bytes); p = b.next[p] {
		at += copy(dst, unsafe.Slice(b.iovs[p].Base, b.iovs[p].Len))
		dst = k.memory[int(q.block)*BacklogPerSocket+q.tail+at:]
	}
	q.tail += at
	k.dirty = true
	return true
}

// join returns the last message that waits, made longer by m, if both are one
// run together.
func (k *backlog) join(q *queue, m *message) *message {
	if q.empty() {
		return nil
	}
	last := &k.kept[q.last]
	if last.full || last.to != m.to || last.of != m.of || last.ecn != m.ecn || m.size > last.size ||
		m.count > 1 && m.size < last.size || last.count+m.count > MaxRun || last.bytes+m.bytes > MaxRunBytes {
		return nil
	}
	last.bytes += m.bytes
	last.inner += m.inner
	last.count += m.count
	last.packets += m.packets
	last.full = m.full || m.size < last.size
	return last
}

// fit makes room for so many bytes at the queue's tail.
func (k *backlog) fit(q *queue, bytes int) bool {
	if q.block == none {
		if k.blocks == 0 || bytes > BacklogPerSocket {
			return false
		}
		k.blocks--
		q.block, q.head, q.tail = k.free[k.blocks], 0, 0
	}
	if q.tail+bytes <= BacklogPerSocket {
		return true
	}
	if q.tail-q.head+bytes > BacklogPerSocket {
		return false
	}
	block := k.memory[int(q.block)*BacklogPerSocket:][:BacklogPerSocket]
	q.tail = copy(block, block[q.head:q.tail])
	for i := q.first; i != none; i = k.kept[i].next {
		k.kept[i].at -= uint32(q.head)
	}
	q.head = 0
	return true
}

// removeDone takes the messages that are done with off the queue, and gives its
// block back if there are none left.
func (k *backlog) removeDone(q *queue) {
	first, last := int16(none), int16(none)
	for i := q.first; i != none; {
		m := &k.kept[i]
		next := m.next
		if m.done {
			q.to[m.to.slot()]--
			m.next = k.unused
			k.unused = i
		} else {
			if first == none {
				first = i
				q.head = int(m.at) - int(q.block)*BacklogPerSocket
			} else {
				k.kept[last].next = i
			}
			last = i
			m.next = none
		}
		i = next
	}
	q.first, q.last = first, last
	if first == none && q.block != none {
		k.free[k.blocks] = q.block
		k.blocks++
		*q = queue{block: none, first: none, last: none}
	}
}

package batch

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// Flush passes each socket's messages to the kernel, in one call unless
// something is refused, and forgets them. What a full buffer doesn't take goes
// by another socket or into a backlog. now is any clock of nanoseconds that
// doesn't run backwards and isn't 0, the same for all batches that share
// destinations; it may be coarse.
func (b *Batch) Flush(now int64) Result {
	b.now = now
	if b.avoided > b.blocked {
		b.stopAvoiding()
	}
	b.returned = b.returned[:0]
	for len(b.pending) > 0 { // what is diverted is pending again
		last := len(b.pending) - 1
		s := &b.sockets[b.pending[last]]
		b.pending = b.pending[:last]
		b.flush(s)
	}
	b.used, b.pieces, b.holding = 0, 0, 0
	if b.blocked > 0 {
		b.waiting()
	}
	return b.finish()
}

// flush sends or diverts the messages of one socket.
func (b *Batch) flush(s *socket) {
	n := b.takeMessages(s)
	s.first, s.last, s.reserved = none, none, 0
	if !s.blocked {
		b.layOut(s, n)
		if !b.transmit(s, n) {
			return
		}
		b.block(s)
		b.met(n)
	}
	for _, m := range b.sending[:n] {
		if !m.done {
			b.divert(m)
		}
	}
}

// met confines the destination of the message that there was no room for, of n.
func (b *Batch) met(n int) {
	for _, m := range b.sending[:n] {
		if !m.done {
			m.to.confine(b.now)
			return
		}
	}
}

// takeMessages lists the messages of a socket that are in the batch.
func (b *Batch) takeMessages(s *socket) (n int) {
	for i := s.first; i != none; i = b.messages[i].next {
		b.sending[n] = &b.messages[i]
		n++
	}
	return n
}

// divert finds another socket for a message that a blocked one didn't take, or
// has it wait.
func (b *Batch) divert(m *message) {
	s := b.choose(m.to, &b.sockets[m.home])
	switch {
	case !s.blocked:
		i := int16((uintptr(unsafe.Pointer(m)) - uintptr(unsafe.Pointer(&b.messages))) / unsafe.Sizeof(*m))
		b.link(s, m, i)
	case b.backlog.keep(b, s, m):
	default:
		b.drop(&b.result.Full, m.of, int(m.count))
	}
}

// layOut fills in the headers of the first n messages that are to be sent.
func (b *Batch) layOut(s *socket, n int) {
	gathered := 0
	for i, m := range b.sending[:n] {
		h := &b.headers[i].Hdr
		h.Name, h.Namelen = &m.to.name[0], m.to.len
		switch {
		case m.kept:
			v := &b.gathered[gathered]
			v.Base = unsafe.SliceData(b.backlog.memory[m.at:])
			v.SetLen(int(m.bytes))
			h.Iov = v
			h.SetIovlen(1)
			gathered++
		case m.pieces == 0 || int(m.last-m.first) == int(m.pieces)-1:
			h.Iov = &b.iovs[m.first]
			h.SetIovlen(int(m.pieces))
		default: // those of another socket came in between
			h.Iov = &b.gathered[gathered]
			h.SetIovlen(int(m.pieces))
			for p, k := m.first, 0; k < int(m.pieces); p, k = b.next[p], k+1 {
				b.gathered[gathered] = b.iovs[p]
				gathered++
			}
		}
		control := b.controls[i].set(m, s.ecn)
		h.Control = unsafe.SliceData(control)
		h.SetControllen(len(control))
	}
}

// transmit sends the first n messages as they were laid out. It returns true if
// the buffer is full; then some of them are not done.
//
// An error may be left over from another message, for which ICMP came in later
// (IP_RECVERR, ip(7)): it is cleared by being told. So only an error that is told
// twice is the message's own.
func (b *Batch) transmit(s *socket, n int) (full bool) {
	next, tried := 0, none
	for next < n {
		sent, errno := b.sendmmsg(s.fd, b.headers[next:n])
		for range sent {
			b.taken(b.sending[next])
			next++
		}
		switch {
		case errno == 0:
			tried = next // what ended the call is an error of this one
		case errno == unix.EAGAIN:
			return true
		case tried != next:
			tried = next
		default:
			if b.refused(s, b.sending[next], errno) {
				return true
			}
			next++
			if len(b.returned) > 0 {
				n = b.skipReturned(next, n)
			}
		}
	}
	return false
}

// taken counts a message that the kernel took.
func (b *Batch) taken(m *message) {
	m.done = true
	b.result.Messages++
	b.result.Packets += uint64(m.packets)
	b.result.Datagrams += uint64(m.count)
	b.result.Bytes += uint64(m.inner)
	b.counted.add(m.of, uint64(m.count), uint64(m.inner))
	if m.count > 1 && !m.whole {
		m.to.acceptRuns(b.now)
	}
}

// refused deals with a message that the kernel didn't take. A run is sent again
// as single datagrams: EIO means that the interface can't fill in checksums,
// EINVAL and EMSGSIZE that a datagram is longer than the path's MTU. If they
// pass, the destination gets no runs for a while; if they fail as well, it wasn't
// the run that was refused. It returns true if the buffer is full.
func (b *Batch) refused(s *socket, m *message, errno unix.Errno) (full bool) {
	size := errno == unix.EMSGSIZE || errno == unix.EINVAL
	switch {
	case congested(errno):
		m.done = true
		b.drop(&b.result.Congested, m.of, int(m.count))
	case b.returns:
		m.done = true
		b.returned = append(b.returned, returned{m, errno})
	case m.count > 1 && (size || errno == unix.EIO):
		taken, full := b.singly(s, m)
		if taken {
			m.to.refuseRuns(b.now)
			b.result.Fallbacks++
			if size {
				m.to.tooBig.Store(true)
			}
		}
		return full
	default:
		m.done = true
		if errno == unix.EMSGSIZE {
			m.to.tooBig.Store(true)
		}
		b.drop(&b.result.Refused, m.of, int(m.count))
	}
	return false
}

// congested tells whether errno is what would drop the message on any path. A
// packet socket has ENOBUFS from the interface's queue.
func congested(errno unix.Errno) bool { return errno == unix.ENOBUFS || errno == unix.ENOMEM }

// singly sends a run's datagrams one by one. It tells whether any was taken, and
// whether the buffer is full; then m is what is left of the run.
func (b *Batch) singly(s *socket, m *message) (taken, full bool) {
	h := &b.alone[0].Hdr
	h.Name, h.Namelen = &m.to.name[0], m.to.len
	control := s.ecn[m.ecn]
	h.Control = unsafe.SliceData(control)
	h.SetControllen(len(control))
	h.Iov = &b.datagram[0]
	for m.count > 0 {
		size := min(int(m.size), int(m.bytes))
		h.SetIovlen(b.first(m, size))
		n, errno := b.sendmmsg(s.fd, b.alone[:])
		if errno != 0 && errno != unix.EAGAIN { // see transmit
			n, errno = b.sendmmsg(s.fd, b.alone[:])
		}
		inner := max(size-b.overhead, 0)
		switch {
		case n > 0:
			taken = true
			b.result.Messages++
			b.result.Packets += uint64(m.packets)
			b.result.Datagrams++
			b.result.Bytes += uint64(inner)
			b.counted.add(m.of, 1, uint64(inner))
			m.packets = 0
		case errno == unix.EAGAIN:
			return taken, true
		case congested(errno):
			b.drop(&b.result.Congested, m.of, 1)
		default:
			b.drop(&b.result.Refused, m.of, 1)
		}
		m.count--
		m.inner -= uint32(inner)
		b.advance(m, size)
	}
	m.done = true
	return taken, false
}

// first points the parts of a datagram at the first size bytes of m, and returns
// how many parts there are.
func (b *Batch) first(m *message, size int) (n int) {
	if m.kept {
		b.datagram[0].Base = unsafe.SliceData(b.backlog.memory[m.at:])
		b.datagram[0].SetLen(size)
		return 1
	}
	for p := m.first; size > 0 && n < len(b.datagram); p = b.next[p] {
		v := b.iovs[p]
		v.SetLen(min(size, int(v.Len)))
		b.datagram[n] = v
		size -= int(v.Len)
		n++
	}
	return n
}

// advance takes the first size bytes off m.
func (b *Batch) advance(m *message, size int) {
	m.bytes -= uint32(size)
	if m.kept {
		m.at += uint32(size)
		return
	}
	for size > 0 {
		v := &b.iovs[m.first]
		if int(v.Len) > size {
			v.Base = (*byte)(unsafe.Add(unsafe.Pointer(v.Base), size))
			v.SetLen(int(v.Len) - size)
			return
		}
		size -= int(v.Len)
		m.first = b.next[m.first]
		m.pieces--
	}
}

// drop counts dropped datagrams, by reason and for their peer.
func (b *Batch) drop(reason *uint64, of *Counters, datagrams int) {
	*reason += uint64(datagrams)
	if of != nil {
		of.Dropped.Add(uint64(datagrams))
	}
}

// sent is what was sent, one message after the other, for one peer.
type sent struct {
	of             *Counters
	packets, bytes uint64
}

func (t *sent) add(of *Counters, packets, bytes uint64) {
	if t.of != of {
		t.count()
		t.of = of
	}
	t.packets += packets
	t.bytes += bytes
}

func (t *sent) count() {
	if t.of != nil {
		t.of.Packets.Add(t.packets)
		t.of.Bytes.Add(t.bytes)
	}
	*t = sent{}
}

// finish returns what was counted and starts anew.
func (b *Batch) finish() Result {
	b.counted.count()
	r := b.result
	r.Returned = len(b.returned)
	b.result = Result{}
	return r
}

// returned is a message that a packet socket refused, or that followed one to
// the same destination.
type returned struct {
	m     *message
	errno unix.Errno
}

// skipReturned returns the messages to the destination of the last one that was
// returned, and closes the gaps they leave among those that are to be sent. It
// returns how many there are.
func (b *Batch) skipReturned(next, n int) int {
	last := b.returned[len(b.returned)-1]
	left := next
	for i := next; i < n; i++ {
		m := b.sending[i]
		if m.to == last.m.to {
			m.done = true
			b.returned = append(b.returned, returned{m, last.errno})
			continue
		}
		b.sending[left], b.headers[left] = m, b.headers[i]
		left++
	}
	return left
}

// Returned appends to buf, in one piece, the message with number i of those that
// the last Flush or Retry has returned, in order, and names its destination and
// the kernel's reason. It must be called before the next Begin, Whole, Flush or
// Retry, while the memory given for the message is still borrowed.
func (b *Batch) Returned(i int, buf []byte) (message []byte, to *Destination, reason error) {
	r := &b.returned[i]
	if r.m.kept {
		return append(buf, b.backlog.data(r.m)...), r.m.to, r.errno
	}
	for p, n := r.m.first, r.m.pieces; n > 0; p, n = b.next[p], n-1 {
		buf = append(buf, unsafe.Slice(b.iovs[p].Base, b.iovs[p].Len)...)
	}
	return buf, r.m.to, r.errno
}

// Blocked tells whether a socket's buffer is full, so that Retry is to be called.
func (b *Batch) Blocked() bool { return b.blocked > 0 }

// AppendBlocked appends the sockets whose buffers are full. They poll writable once
// they have room, for which a worker that sleeps must wait.
func (b *Batch) AppendBlocked(fds []int) []int {
	if b.blocked == 0 {
		return fds
	}
	for i := range b.sockets {
		if s := &b.sockets[i]; s.blocked {
			fds = append(fds, s.fd)
		}
	}
	return fds
}

// Retry sends what waits for sockets that have room again. It takes one system
// call to find them, and waits for none. now is Flush's.
func (b *Batch) Retry(now int64) Result {
	b.now = now
	b.returned = b.returned[:0]
	b.polls, b.polled = b.polls[:0], b.polled[:0]
	if b.blocked == 0 {
		return b.finish()
	}
	for i := range b.sockets {
		if s := &b.sockets[i]; s.blocked {
			b.polls = append(b.polls, unix.PollFd{Fd: int32(s.fd), Events: unix.POLLOUT})
			b.polled = append(b.polled, int16(i))
		}
	}
	b.poll(b.polls)
	for i, p := range b.polls {
		if p.Revents != 0 {
			b.resume(&b.sockets[b.polled[i]])
		}
	}
	return b.finish()
}

// resume sends what waits for a socket.
func (b *Batch) resume(s *socket) {
	for !s.kept.empty() {
		n := b.takeKept(s)
		b.layOut(s, n)
		full := b.transmit(s, n)
		b.backlog.removeDone(&s.kept)
		if full {
			return
		}
	}
	b.unblock(s)
}

// takeKept lists the messages that wait for a socket.
func (b *Batch) takeKept(s *socket) (n int) {
	for i := s.kept.first; i != none && n < maxMessages; i = b.backlog.kept[i].next {
		b.sending[n] = &b.backlog.kept[i]
		n++
	}
	return n
}

// waiting notes the destinations of what waits.
func (b *Batch) waiting() {
	for i := range b.sockets {
		s := &b.sockets[i]
		s.reserved = 0
		for slot, n := range s.kept.to {
			if n > 0 {
				b.holding |= 1 << slot
			}
		}
	}
}

// pollNow fills in which of fds are ready, without waiting for any.
func pollNow(fds []unix.PollFd) {
	var none unix.Timespec
	_, _, errno := unix.RawSyscall6(unix.SYS_PPOLL, uintptr(unsafe.Pointer(unsafe.SliceData(fds))),
		uintptr(len(fds)), uintptr(unsafe.Pointer(&none)), 0, 0, 0)
	if errno != 0 {
		for i := range fds {
			fds[i].Revents = 0
		}
	}
}

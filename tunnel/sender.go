package tunnel

import (
	"encoding/binary"
	"errors"
	"time"
	"unsafe"

	"uvxlan/tunnel/internal/descriptor"

	"uvxlan/tunnel/internal/mmsg"

	"golang.org/x/sys/unix"
)

// The words of this file: a datagram is what arrives at the peer; a run is the
// datagrams of one size to one peer that the kernel takes as one message and
// segments itself (UDP_SEGMENT, udp(7)), the last of them possibly shorter; a
// message is one entry of sendmmsg(2).

const (
	// maxRun is the most datagrams of a run: UDP_MAX_SEGMENTS until Linux 6.9.
	maxRun = 64
	// maxRunBytes is the longest UDP payload over IPv4.
	maxRunBytes = 65507
	// maxMessages and maxPieces bound a batch: 64 superpackets of 64 KiB are
	// fewer messages than that.
	maxMessages = 256
	maxPieces   = 2048
	// sendPatience is how long a full socket buffer may hold up a worker in one
	// batch; then what doesn't fit is dropped, as a full interface queue would.
	sendPatience = 5 * time.Millisecond
)

// sender is one sending socket and its part of a batch. All memory that add is
// given is borrowed until send.
type sender struct {
	fd       int
	segment  bool // UDP_SEGMENT may be used
	controls *controls
	patient  bool // this batch may still wait for room
	messages int
	pieces   int
	runs     [maxMessages]run
	headers  [maxMessages]mmsg.Header
	iovs     [maxPieces]unix.Iovec
}

// run is what add must know of a message.
type run struct {
	to    *entry
	ecn   uint8
	full  bool // nothing may follow
	size  int  // of each datagram but the last
	count int
	bytes int
	first int // its first piece
}

func newSender(fd int, v6, segment bool) *sender {
	return &sender{fd: fd, segment: segment, controls: newControls(v6)}
}

// fits tells whether one more datagram of two parts has room.
func (s *sender) fits() bool { return s.messages < maxMessages && s.pieces+2 <= maxPieces }

// add appends a datagram, the concatenation of head and tail, either of which
// may be empty. It joins the run before it if it can. The caller has asked fits.
func (s *sender) add(to *entry, ecn uint8, head, tail []byte) {
	size := len(head) + len(tail)
	r := s.extend(to, ecn, size)
	if r == nil {
		r = &s.runs[s.messages]
		*r = run{to: to, ecn: ecn, size: size, first: s.pieces, full: !s.segment || to.plain.Load()}
		s.messages++
	}
	r.count++
	r.bytes += size
	r.full = r.full || size < r.size
	s.put(r, head)
	s.put(r, tail)
}

// extend returns the last run if the datagram may join it.
func (s *sender) extend(to *entry, ecn uint8, size int) *run {
	if s.messages == 0 {
		return nil
	}
	r := &s.runs[s.messages-1]
	if r.full || r.to != to || r.ecn != ecn || size > r.size || r.count == maxRun || r.bytes+size > maxRunBytes {
		return nil
	}
	return r
}

// put appends one piece; one that lies behind the last in memory makes that one
// longer, so that a run of small packets read one after the other is one piece.
func (s *sender) put(r *run, b []byte) {
	if len(b) == 0 {
		return
	}
	base := unsafe.SliceData(b)
	if s.pieces > r.first {
		last := &s.iovs[s.pieces-1]
		if unsafe.Add(unsafe.Pointer(last.Base), last.Len) == unsafe.Pointer(base) {
			last.Len += uint64(len(b))
			return
		}
	}
	s.iovs[s.pieces].Base = base
	s.iovs[s.pieces].SetLen(len(b))
	s.pieces++
}

// send passes the batch to the kernel, in one call unless something is refused,
// and forgets it.
func (s *sender) send(t *tally) {
	if s.messages == 0 {
		return
	}
	for i := range s.messages {
		s.finish(i)
	}
	s.patient = true
	for next := 0; next < s.messages; {
		n, err := mmsg.Do(unix.SYS_SENDMMSG, s.fd, s.headers[next:s.messages])
		next += n
		if err == nil || s.waited(err) {
			continue
		}
		s.refused(&s.runs[next], s.headers[next].Hdr, err, t)
		next++
	}
	t.messages += uint64(s.messages)
	s.messages, s.pieces = 0, 0
}

// waited tells whether err was a full buffer that has room again.
func (s *sender) waited(err error) bool {
	if !s.patient || !errors.Is(err, unix.EAGAIN) {
		return false
	}
	s.patient = descriptor.Writable(s.fd, sendPatience)
	return s.patient
}

// finish fills in message i's header.
func (s *sender) finish(i int) {
	r, h := &s.runs[i], &s.headers[i].Hdr
	end := s.pieces
	if i+1 < s.messages {
		end = s.runs[i+1].first
	}
	h.Name, h.Namelen = &r.to.to.raw[0], r.to.to.len
	h.Iov = &s.iovs[r.first]
	h.SetIovlen(end - r.first)
	control := s.controls.of(i, r)
	h.Control = unsafe.SliceData(control)
	h.SetControllen(len(control))
}

// refused deals with a message that the kernel didn't take. A run is sent again
// as single datagrams: EIO means that the interface can't fill in checksums,
// EINVAL and EMSGSIZE that a datagram is longer than the path's MTU. If they
// pass, the peer gets no runs from then on; if they fail as well, it wasn't the
// run that was refused. Anything else is dropped.
func (s *sender) refused(r *run, h unix.Msghdr, err error, t *tally) {
	again := errors.Is(err, unix.EIO) || errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EMSGSIZE)
	if r.count == 1 || !again {
		t.dropN(DropSend, r.count)
		return
	}
	if s.single(r, h, t) {
		r.to.plain.Store(true)
		t.fallbacks++
	}
}

// single sends a run's datagrams one by one and tells whether any was taken.
func (s *sender) single(r *run, h unix.Msghdr, t *tally) (taken bool) {
	control := s.controls.ecn[r.ecn]
	h.Control = unsafe.SliceData(control)
	h.SetControllen(len(control))
	pieces := unsafe.Slice(h.Iov, h.Iovlen)
	at := 0 // bytes of pieces[0] that are sent
	var iovs [8]unix.Iovec
	for range r.count {
		n := 0
		for left := r.size; left > 0 && len(pieces) > 0 && n < len(iovs); n++ {
			piece := &pieces[0]
			take := min(left, int(piece.Len)-at)
			iovs[n].Base = (*byte)(unsafe.Add(unsafe.Pointer(piece.Base), at))
			iovs[n].SetLen(take)
			left, at = left-take, at+take
			if at == int(piece.Len) {
				pieces, at = pieces[1:], 0
			}
		}
		h.Iov = &iovs[0]
		h.SetIovlen(n)
		if s.one(h) {
			taken = true
		} else {
			t.drop(DropSend)
		}
	}
	return taken
}

// one sends one datagram and tells whether it was taken.
func (s *sender) one(h unix.Msghdr) bool {
	msg := [1]mmsg.Header{{Hdr: h}}
	_, err := mmsg.Do(unix.SYS_SENDMMSG, s.fd, msg[:])
	if err != nil && s.waited(err) {
		_, err = mmsg.Do(unix.SYS_SENDMMSG, s.fd, msg[:])
	}
	return err == nil
}

// controls are the control messages of a sender: the outer ECN field and, for a
// run, its datagrams' size.
type controls struct {
	ecn  [4][]byte
	runs [maxMessages]runControl
}

var segmentControlLen = unix.CmsgSpace(2)

// runControl holds a run's size and room for the ECN field behind it.
type runControl [48]byte

func newControls(v6 bool) *controls {
	c := &controls{ecn: ecnControls(v6)}
	for i := range c.runs {
		copy(c.runs[i][:], controlSegment(0))
	}
	return c
}

// of is the control message of message i.
func (c *controls) of(i int, r *run) []byte {
	if r.count == 1 {
		return c.ecn[r.ecn]
	}
	b := &c.runs[i]
	binary.NativeEndian.PutUint16(b[unix.CmsgLen(0):], uint16(r.size))
	return b[:segmentControlLen+copy(b[segmentControlLen:], c.ecn[r.ecn])]
}

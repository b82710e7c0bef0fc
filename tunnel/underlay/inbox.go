package underlay

import (
	"errors"

	"golang.org/x/sys/unix"

	"uvxlan/tunnel/internal/arena"
	"uvxlan/tunnel/internal/mmsg"
)

const (
	// rxBatch is the most messages of a batch.
	rxBatch = 160
	// rxLong is how many of them may be longer than rxHead, and so the most that
	// are received in one call.
	rxLong = 32
	// rxHead is the length of the buffers that messages begin in: enough for a
	// datagram of an ordinary MTU.
	rxHead = 2 << 10
	// rxBuffer takes the longest datagram there is: a kernel on the same
	// machine passes superpackets as one.
	rxBuffer = 64 << 10
	// rxHeadStride and rxStride are the distances of two buffers: at a power of
	// two their first lines would contend for the same few places of the cache.
	rxHeadStride = rxHead + 64
	rxStride     = rxBuffer + 2048 + 64
	// rxControl holds the control messages we ask for.
	rxControl = 64
	// inboxMemory is what an inbox takes of the worker's arena.
	inboxMemory = rxBatch*rxHeadStride + rxLong*rxStride
)

// inbox is the messages of a receive batch.
//
// Any message may have 64 KiB, and most have a small part of that. So the kernel
// puts the first bytes of each into a head buffer, which lie close together, and
// what is longer into a long buffer, of which there are few. One that its message
// left alone serves in the batch's next call. Small packets touch no long buffer,
// and large ones no more than rxLong of them, however many come at once.
type inbox struct {
	msgs  [rxBatch]mmsg.Header
	iovs  [rxBatch][2]unix.Iovec
	names [rxBatch]sockaddr
	ctrl  [rxBatch][rxControl]byte
	heads []byte
	longs []byte
	lent  [rxBatch]uint8 // the long buffer that a message was last received with
	free  [rxLong]uint8  // the first unused: long buffers that no message of the batch is in
	// unused is the most messages that the next call may ask for.
	unused int
}

func newInbox(memory *arena.Arena) *inbox {
	b := &inbox{heads: memory.Alloc(rxBatch * rxHeadStride), longs: memory.Alloc(rxLong * rxStride)}
	for i := range b.msgs {
		b.iovs[i][0].Base = &b.heads[i*rxHeadStride]
		b.iovs[i][0].SetLen(rxHead)
		b.iovs[i][1].SetLen(rxBuffer - rxHead)
		b.lend(i, uint8(i%rxLong))
		h := &b.msgs[i].Hdr
		h.Iov = &b.iovs[i][0]
		h.SetIovlen(len(b.iovs[i]))
		h.Name = &b.names[i].Raw[0]
		h.Control = &b.ctrl[i][0]
	}
	b.reset()
	return b
}

// lend has message i use a long buffer. What it is received into there follows
// room for the head.
func (b *inbox) lend(i int, long uint8) {
	b.lent[i] = long
	b.iovs[i][1].Base = &b.longs[int(long)*rxStride+rxHead]
}

// reset begins a batch. Whatever message returned is overwritten from here on.
func (b *inbox) reset() {
	for i := range b.free {
		b.free[i] = uint8(i)
	}
	b.unused = len(b.free)
}

// fill receives up to n messages, and up to unused, from the batch's first on, as
// many as there are; none is no error.
func (b *inbox) fill(fd, first, n int) (int, error) {
	batch := b.msgs[first:][:min(n, b.unused)]
	for i := range batch {
		if long := b.free[i]; b.lent[first+i] != long {
			b.lend(first+i, long)
		}
		h := &batch[i].Hdr
		h.Namelen = uint32(len(b.names[first+i].Raw))
		h.SetControllen(rxControl)
	}
	got, err := mmsg.Do(unix.SYS_RECVMMSG, fd, batch)
	if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.ENOMEM) || errors.Is(err, unix.ENOBUFS) {
		return 0, nil
	}
	b.keep(batch[:got])
	return got, err
}

// keep takes the long buffers of a call's messages out of free.
func (b *inbox) keep(got []mmsg.Header) {
	left := 0
	for i, long := range b.free[:b.unused] {
		if i >= len(got) || got[i].Len <= rxHead {
			b.free[left] = long
			left++
		}
	}
	b.unused = left
}

// message is the bytes of message i, in one piece until reset.
func (b *inbox) message(i int) []byte {
	n := int(b.msgs[i].Len)
	head := b.heads[i*rxHeadStride:][:rxHead]
	if n <= rxHead {
		return head[:n:n]
	}
	long := b.longs[int(b.lent[i])*rxStride:][:n:n]
	copy(long, head)
	return long
}

// truncated tells whether message i was longer than any may be.
func (b *inbox) truncated(i int) bool { return b.msgs[i].Hdr.Flags&unix.MSG_TRUNC != 0 }

// control is the control messages that came with message i.
func (b *inbox) control(i int) []byte { return b.ctrl[i][:b.msgs[i].Hdr.Controllen] }

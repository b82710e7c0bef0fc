package batch

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"uvxlan/tunnel/internal/mmsg"
)

// kernel takes the place of the system calls.
type kernel struct {
	room   map[int]int // bytes that a socket takes before it is full
	ready  map[int]bool
	refuse func(fd int, m wire) unix.Errno
	calls  int
	sizes  map[int]int // send buffers
	sent   []wire
}

// wire is a message as the kernel sees it.
type wire struct {
	fd      int
	to      string
	data    []byte
	segment int // 0 if it isn't a run
	ecn     uint8
}

// datagrams are those that the kernel makes of a message.
func (m wire) datagrams() [][]byte {
	if m.segment == 0 {
		return [][]byte{m.data}
	}
	return slices.Collect(slices.Chunk(m.data, m.segment))
}

func newKernel(b *Batch) *kernel {
	k := &kernel{room: map[int]int{}, ready: map[int]bool{}, sizes: map[int]int{}}
	b.sendmmsg, b.poll = k.send, k.poll
	b.resize = func(fd, size int) int {
		k.sizes[fd] = size
		return size
	}
	for i := range b.sockets {
		b.sockets[i].size = SendBuffer
	}
	return k
}

func (k *kernel) poll(fds []unix.PollFd) {
	for i := range fds {
		if k.ready[int(fds[i].Fd)] {
			fds[i].Revents = fds[i].Events
		}
	}
}

// fill leaves sockets no room.
func (k *kernel) fill(fds ...int) {
	for _, fd := range fds {
		k.room[fd], k.ready[fd] = 0, false
	}
}

// drain gives sockets so much room.
func (k *kernel) drain(room int, fds ...int) {
	for _, fd := range fds {
		k.room[fd], k.ready[fd] = room, true
	}
}

func (k *kernel) send(fd int, msgs []mmsg.Header) (int, unix.Errno) {
	k.calls++
	for i := range msgs {
		m := decode(fd, &msgs[i].Hdr)
		errno := unix.Errno(0)
		room, limited := k.room[fd]
		if limited && room <= 0 {
			errno = unix.EAGAIN
		} else if k.refuse != nil {
			errno = k.refuse(fd, m)
		}
		if limited && errno == 0 {
			k.room[fd] = room - len(m.data)
		}
		if errno != 0 && i == 0 {
			return 0, errno
		}
		if errno != 0 {
			return i, 0
		}
		k.sent = append(k.sent, m)
	}
	return len(msgs), 0
}

func decode(fd int, h *unix.Msghdr) wire {
	m := wire{fd: fd, to: string(unsafe.Slice(h.Name, h.Namelen))}
	for _, v := range unsafe.Slice(h.Iov, h.Iovlen) {
		m.data = append(m.data, unsafe.Slice(v.Base, v.Len)...)
	}
	for control := unsafe.Slice(h.Control, h.Controllen); len(control) > 0; {
		c := (*unix.Cmsghdr)(unsafe.Pointer(&control[0]))
		data := control[unix.SizeofCmsghdr:c.Len]
		switch c.Level {
		case unix.IPPROTO_UDP:
			m.segment = int(binary.NativeEndian.Uint16(data))
		default:
			m.ecn = uint8(binary.NativeEndian.Uint32(data))
		}
		control = control[unix.CmsgSpace(len(data)):]
	}
	return m
}

// take returns the datagrams that were sent, and forgets them.
func (k *kernel) take() (all [][]byte) {
	for _, m := range k.sent {
		all = append(all, m.datagrams()...)
	}
	k.sent = nil
	return all
}

// of returns what was sent by a socket, or by any if it is negative, to a
// destination, or to any if it is nil.
func (k *kernel) of(fd int, to *Destination) (all [][]byte) {
	for _, m := range k.sent {
		if (fd < 0 || m.fd == fd) && (to == nil || m.to == string(to.name[:to.len])) {
			all = append(all, m.datagrams()...)
		}
	}
	return all
}

// sockets are the descriptors of a pool of 16, for a kernel.
var sockets = []int{100, 101, 102, 103, 104, 105, 106, 107, 108, 109, 110, 111, 112, 113, 114, 115}

func newBatch(tb testing.TB, c UDPConfig) *Batch {
	tb.Helper()
	b, err := NewUDP(c)
	return owned(tb, b, err)
}

func owned(tb testing.TB, b *Batch, err error) *Batch {
	tb.Helper()
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := b.Close(); err != nil {
			tb.Error(err)
		}
	})
	return b
}

// pooled is a batch over a pool of 16 sockets of a kernel.
func pooled(tb testing.TB) (*Batch, *kernel) {
	b := newBatch(tb, UDPConfig{IPv4: sockets, Segment: true})
	return b, newKernel(b)
}

// host is the destination with number i.
func host(i int) *Destination {
	return NewDestination(netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 2, byte(i)}), 4789))
}

// put adds a packet of one datagram and tells whether it was accepted.
func put(b *Batch, to *Destination, flow int, datagram []byte) bool {
	if !b.Begin(to, nil, uint32(flow), 0, 1, len(datagram)) {
		return false
	}
	b.Append(datagram[:len(datagram)/3], datagram[len(datagram)/3:])
	return true
}

// numbered are datagrams that tell their number.
func numbered(from, n, size int) (all [][]byte) {
	for i := range n {
		d := bytes.Repeat([]byte{'.'}, size)
		copy(d, fmt.Sprintf("%06d", from+i))
		all = append(all, d)
	}
	return all
}

func same(t *testing.T, what string, got, want [][]byte) {
	t.Helper()
	if !slices.EqualFunc(got, want, bytes.Equal) {
		t.Errorf("%s: got %d datagrams %.7q, want %d %.7q", what, len(got), got, len(want), want)
	}
}

// addUp adds up results.
func addUp(sum *Result, r Result) {
	sum.Packets += r.Packets
	sum.Messages += r.Messages
	sum.Datagrams += r.Datagrams
	sum.Bytes += r.Bytes
	sum.Full += r.Full
	sum.Congested += r.Congested
	sum.Refused += r.Refused
	sum.Fallbacks += r.Fallbacks
}

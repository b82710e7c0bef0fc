package testhost

import (
	"encoding/binary"
	"errors"
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"uvxlan/encap"
	"uvxlan/tunnel/device"
	"uvxlan/tunnel/offload"
)

// MemoryDevice is a device whose far end is the test instead of a kernel: each
// queue is one end of a socket pair that keeps packets apart.
type MemoryDevice struct {
	queues []device.Queue
	Far    []*MemoryQueue

	offloads offload.Set
}

// NewMemoryDevice makes a device that says it takes part in o.
func NewMemoryDevice(t testing.TB, queues int, o offload.Set) *MemoryDevice {
	t.Helper()
	d := &MemoryDevice{offloads: o}
	for range queues {
		fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		d.queues = append(d.queues, &MemoryQueue{fd: fds[0]})
		d.Far = append(d.Far, &MemoryQueue{fd: fds[1]})
	}
	t.Cleanup(func() {
		for _, q := range d.Far {
			unix.Close(q.fd)
		}
	})
	return d
}

// Name is "memory".
func (d *MemoryDevice) Name() string { return "memory" }

// Queues are the device's ends.
func (d *MemoryDevice) Queues() []device.Queue { return d.queues }

// Offloads are those that NewMemoryDevice was told.
func (d *MemoryDevice) Offloads() offload.Set { return d.offloads }

// Plain has the device take packets only as they are to be, as one without vnet
// headers does.
func (d *MemoryDevice) Plain() *MemoryDevice {
	for _, q := range d.queues {
		if q, ok := q.(*MemoryQueue); ok {
			q.plain = true
		}
	}
	return d
}

// Close closes the device's ends.
func (d *MemoryDevice) Close() error {
	var errs []error
	for _, q := range d.queues {
		errs = append(errs, unix.Close(q.FD()))
	}
	return errors.Join(errs...)
}

// MemoryQueue puts the offload before each packet, as a TUN queue does.
type MemoryQueue struct {
	fd    int
	plain bool // takes packets only as they are to be
	msg   [memoryHeader + device.MaxPacket]byte
}

const memoryHeader = 10

// FD polls readable when Read has a packet.
func (q *MemoryQueue) FD() int { return q.fd }

// Read reads a packet and what its sender left undone.
func (q *MemoryQueue) Read(buf []byte) (int, encap.Offload, error) {
	msg := q.msg[:]
	n, err := unix.Read(q.fd, msg)
	if err != nil {
		return 0, encap.Offload{}, err
	}
	if n == 0 {
		return 0, encap.Offload{}, unix.EBADFD
	}
	e := binary.BigEndian
	o := encap.Offload{
		NeedsChecksum: msg[0] != 0, GSO: encap.GSOType(msg[1]), HeaderLen: e.Uint16(msg[2:]),
		SegmentSize: e.Uint16(msg[4:]), ChecksumStart: e.Uint16(msg[6:]), ChecksumOffset: e.Uint16(msg[8:]),
	}
	return copy(buf, msg[memoryHeader:n]), o, nil
}

// Write writes a packet and what is left undone of it.
func (q *MemoryQueue) Write(o encap.Offload, parts [][]byte) error {
	if q.plain && o != (encap.Offload{}) {
		return unix.EINVAL
	}
	e := binary.BigEndian
	msg := make([]byte, memoryHeader)
	if o.NeedsChecksum {
		msg[0] = 1
	}
	msg[1] = byte(o.GSO)
	e.PutUint16(msg[2:], o.HeaderLen)
	e.PutUint16(msg[4:], o.SegmentSize)
	e.PutUint16(msg[6:], o.ChecksumStart)
	e.PutUint16(msg[8:], o.ChecksumOffset)
	for _, p := range parts {
		msg = append(msg, p...)
	}
	_, err := unix.Write(q.fd, msg)
	return err
}

// Send gives the device a packet to forward.
func (q *MemoryQueue) Send(t testing.TB, packet []byte) {
	t.Helper()
	if err := q.Write(encap.Offload{}, [][]byte{packet}); err != nil {
		t.Fatal(err)
	}
}

// Receive waits for a packet from the device.
func (q *MemoryQueue) Receive(t testing.TB) ([]byte, encap.Offload) {
	t.Helper()
	wait := unix.NsecToTimespec(int64(Patience))
	n, err := unix.Ppoll([]unix.PollFd{{Fd: int32(q.fd), Events: unix.POLLIN}}, &wait, nil)
	if err != nil || n == 0 {
		t.Fatalf("no packet from the device: %v", errors.Join(err, os.ErrDeadlineExceeded))
	}
	buf := make([]byte, device.MaxPacket)
	n, o, err := q.Read(buf)
	if err != nil {
		t.Fatal(err)
	}
	return buf[:n], o
}

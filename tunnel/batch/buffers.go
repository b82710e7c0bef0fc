package batch

import (
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

// Buffer sizes in bytes, as SO_SNDBUF and SO_RCVBUF take them; the kernel grants
// twice as much (socket(7)) and charges memory, not payload: about 70 KiB for a
// message of 64 KiB, 768 bytes and more for a packet of 64.
//
// A message is taken while less than the send buffer is queued, and a blocked
// socket polls writable once half of it is free. So half of it is what is left to
// send while the worker is told, and all of it what may stand in the queue of a
// slow link. A Batch gives each socket what its link takes: it halves or doubles
// the buffer, within these limits, until half of it goes in 2 to 20 ms. Where
// messages go without waiting, as between hosts of one machine, no more than 100
// KiB are queued by a socket at 12 Gbit/s.
const (
	// SendBuffer is what a sending socket begins with: 512 KiB in the kernel. At 10
	// Gbit/s half of it goes in 0.2 ms, several times what passes between a send
	// and the interrupt that completes it.
	SendBuffer = 256 << 10
	// sendBufferMin takes a superpacket, and one more: at 50 Mbit/s half of that
	// goes in 10 ms.
	sendBufferMin = 64 << 10
	// sendBufferMax takes all that a worker reads of its device at a time, twice.
	sendBufferMax = 1 << 20
	// ReceiveBuffer is for each receiving socket: 8 MiB in the kernel. That is 6
	// ms at 10 Gbit/s, and at a million small packets a second 10 ms: as long as a
	// busy machine may keep the worker's thread from its CPU. Two workers that
	// take 12 Gbit/s on two CPUs, which they share with all else, have used 4.6 MiB.
	ReceiveBuffer = 4 << 20

	// fastDrain and slowDrain are how long a socket is blocked at least and at most
	// if its buffer is right.
	fastDrain = 2 * time.Millisecond
	slowDrain = 20 * time.Millisecond
)

// tune gives a socket another send buffer, if it was blocked for too short or too
// long a time.
func (b *Batch) tune(s *socket) {
	took, size := b.now-s.since, s.size
	switch {
	case took < int64(fastDrain):
		size = min(2*size, max(sendBufferMax, size))
	case took > int64(slowDrain):
		size = max(size/2, min(sendBufferMin, size))
	}
	if size != s.size {
		s.size = b.resize(s.fd, size)
	}
}

// sendBuffer is a socket's send buffer as SO_SNDBUF takes it, 0 if it has none.
func sendBuffer(fd int) int {
	size, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUF)
	if err != nil {
		return 0
	}
	return size / 2
}

// resizeSendBuffer returns the size that the kernel grants.
func resizeSendBuffer(fd, size int) int {
	_ = setBuffer(fd, unix.SO_SNDBUFFORCE, unix.SO_SNDBUF, size)
	return sendBuffer(fd)
}

// SetSendBuffer and SetReceiveBuffer give a socket its buffer: beyond the host's
// limit, which takes CAP_NET_ADMIN, or else what the limit (net.core.wmem_max,
// net.core.rmem_max) allows.
func SetSendBuffer(fd int) error {
	if err := setBuffer(fd, unix.SO_SNDBUFFORCE, unix.SO_SNDBUF, SendBuffer); err != nil {
		return fmt.Errorf("set SO_SNDBUF: %w", err)
	}
	return nil
}

// SetReceiveBuffer is described with SetSendBuffer.
func SetReceiveBuffer(fd int) error {
	if err := setBuffer(fd, unix.SO_RCVBUFFORCE, unix.SO_RCVBUF, ReceiveBuffer); err != nil {
		return fmt.Errorf("set SO_RCVBUF: %w", err)
	}
	return nil
}

func setBuffer(fd, force, plain, size int) error {
	if unix.SetsockoptInt(fd, unix.SOL_SOCKET, force, size) == nil {
		return nil
	}
	return unix.SetsockoptInt(fd, unix.SOL_SOCKET, plain, size)
}

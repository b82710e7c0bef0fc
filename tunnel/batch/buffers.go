package batch

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// Buffer sizes in bytes, as SO_SNDBUF and SO_RCVBUF take them; the kernel grants
// twice as much (socket(7)) and charges memory, not payload: about 70 KiB for a
// message of 64 KiB, 768 bytes and more for a packet of 64.
const (
	// SendBuffer is for each sending socket: 1 MiB in the kernel. A message is
	// taken while less than that is queued, and a blocked socket polls writable
	// from half of it, so that 512 KiB, 0.4 ms at 10 Gbit/s, are there to send while
	// the worker is told. It takes a whole batch of the device's (512 KiB) at once,
	// and several times what an interface has between a send and the interrupt
	// that completes it. More would only stand in the queue of a slow link: with
	// it a destination has at most 4 MiB there, of each worker.
	SendBuffer = 512 << 10
	// ReceiveBuffer is for each receiving socket: 8 MiB in the kernel. That is 6
	// ms at 10 Gbit/s, and at a million small packets a second 10 ms: as long as a
	// busy machine may keep the worker's thread from its CPU.
	ReceiveBuffer = 4 << 20
)

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

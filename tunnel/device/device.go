// Package device opens, adopts and wraps TUN devices: whatever hands over the
// packets that go into the overlay and takes those that come out of it.
//
// [Open] makes one of the kernel's by one of several drivers, [Adopt] takes queues
// that somebody else has opened, and [WrapWireGuard] makes a device of any of
// wireguard-go's, such as a TCP/IP stack in the process.
package device

import (
	"io"

	"uvxlan/encap"
	"uvxlan/tunnel/offload"
)

// MaxPacket is the length in bytes of the longest packet a [Queue] hands over
// or takes: an IP packet or superpacket of 16-bit length.
const MaxPacket = 1<<16 - 1

// Device is a TUN device: a network interface whose outgoing packets this
// process reads and whose incoming packets it writes.
type Device interface {
	// Name is the interface's name, such as "flannel.1".
	Name() string
	// Queues are the device's queues, at least one. The kernel keeps each flow
	// to one queue. The slice and the queues belong to the device.
	Queues() []Queue
	// Offloads are those that the device takes part in: offload.TSO and
	// offload.USO for what it hands over, offload.TCP and offload.UDP for what it
	// takes.
	Offloads() offload.Set
	// Close closes every queue; the interface goes with the last one unless it
	// was made persistent. No queue may be in use by then.
	io.Closer
}

// Queue is one queue of a [Device]. One goroutine uses it at a time.
type Queue interface {
	// FD is a descriptor that polls readable when Read has something to give.
	FD() int
	// Read reads one packet into buf, which must hold [MaxPacket] bytes, and
	// returns its length and what its sender left undone. It never blocks: with
	// nothing to read it returns unix.EAGAIN, unwrapped. After unix.EINVAL,
	// unix.EBADMSG or unix.ENOMEM, a packet that could not be read, and
	// unix.ENOBUFS, one that was lost for want of room, it can be read on; after
	// unix.EBADFD the interface is gone.
	Read(buf []byte) (int, encap.Offload, error)
	// Write writes one packet, the concatenation of at most [MaxParts] parts,
	// and never blocks. It keeps no part.
	Write(o encap.Offload, parts [][]byte) error
}

// Flusher is a [Queue] that may keep copies of what is written until Flush, to
// pass many packets on in one call.
type Flusher interface {
	// Flush passes on what was written since the Flush before, and returns how
	// many packets of that the device refused.
	Flush() (lost int)
}

// Flush ends a batch of writes to a queue.
func Flush(q Queue) (lost int) {
	if f, ok := q.(Flusher); ok {
		return f.Flush()
	}
	return 0
}

// MaxParts is the greatest number of parts [Queue.Write] takes.
const MaxParts = 1023

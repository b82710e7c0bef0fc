package device

import (
	"errors"
	"io"
	"os"
	"sync"

	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/tun"

	"uvxlan/encap"
	"uvxlan/tunnel/internal/arena"
	"uvxlan/tunnel/internal/wake"
)

// intakePackets is how many packets wait between a device's reader and the
// worker, beside the batch that the worker has taken.
const intakePackets = 256

// intake hands over what a goroutine reads from a device whose Read blocks: a
// worker polls its descriptor and reads without waiting.
type intake struct {
	waker wake.Waker // immutable

	mu     sync.Mutex // guards what follows
	room   sync.Cond  // buffers are free, or the reader must not wait for them
	free   [][]byte   // buffers of MaxPacket bytes
	ready  []handed   // oldest first
	lost   int        // packets that the worker is to be told of
	woken  bool       // waker polls readable
	urgent bool       // the device's Write runs
	closed bool
	end    error // why there is nothing to come

	reading [][]byte // the reader's buffers
	sizes   []int

	taken []handed // the worker's
	next  int      // the first of them that is still to be read
}

// intakeSlots is how many buffers an intake has.
func intakeSlots(batchSize int) int { return batchSize + 2*intakePackets }

// handed is a packet, in a buffer of the intake's, or why there is none.
type handed struct {
	packet []byte
	err    error
}

func newIntake(batchSize int, memory *arena.Arena) (*intake, error) {
	waker, err := wake.Open()
	if err != nil {
		return nil, err
	}
	slots := packetSlots(memory, intakeSlots(batchSize), MaxPacket)
	in := &intake{waker: waker, reading: slots[:batchSize:batchSize], free: slots[batchSize:], sizes: make([]int, batchSize)}
	in.room.L = &in.mu
	return in, nil
}

// run reads the device until it is closed.
func (in *intake) run(dev tun.Device) {
	for more := true; more; {
		n, err := dev.Read(in.reading, in.sizes, 0)
		more = in.put(n, err)
	}
}

// put hands over what one Read of the device gave: n packets and then, perhaps,
// an error. Where the worker is behind it waits, or must throw packets away. It
// tells whether there may be more to come.
func (in *intake) put(n int, err error) bool {
	in.mu.Lock()
	defer in.mu.Unlock()
	for i := range n {
		if in.await() {
			in.deliver(i)
		} else {
			in.lost++
		}
	}
	over := ended(err) || err != nil && in.closed
	switch {
	case over:
		in.end = unix.EBADFD
	case err != nil && in.await():
		in.ready = append(in.ready, handed{err: unix.EBADMSG})
	case err != nil:
		in.lost++
	}
	if n > 0 || err != nil {
		in.wake()
	}
	return !over
}

// await waits for room, and tells whether there is any.
func (in *intake) await() bool {
	for len(in.ready) >= intakePackets && !in.urgent && !in.closed {
		in.wake()
		in.room.Wait()
	}
	return len(in.ready) < intakePackets
}

// deliver puts packet i of the reader's among those that are ready, and a free
// buffer in its place.
func (in *intake) deliver(i int) {
	if in.sizes[i] == 0 {
		return
	}
	in.ready = append(in.ready, handed{packet: in.reading[i][:in.sizes[i]]})
	last := len(in.free) - 1
	in.reading[i], in.free = in.free[last], in.free[:last]
}

func (in *intake) wake() {
	if !in.woken {
		in.woken = true
		in.waker.Wake()
	}
}

// ended tells whether a device's error is its last. Any other is about the
// packets that were to be read.
func ended(err error) bool {
	return errors.Is(err, os.ErrClosed) || errors.Is(err, unix.EBADFD) || errors.Is(err, io.EOF)
}

// hurry keeps the reader from waiting for the worker while it is itself waited
// for.
func (in *intake) hurry(on bool) {
	in.mu.Lock()
	in.urgent = on
	in.mu.Unlock()
	if on {
		in.room.Signal()
	}
}

// close lets the reader run until the device's end, whoever reads.
func (in *intake) close() {
	in.mu.Lock()
	in.closed = true
	in.mu.Unlock()
	in.room.Signal()
}

// FD is the descriptor for the worker to poll.
func (in *intake) FD() int { return in.waker.FD }

// Read is [Queue]'s. A packet that was thrown away is unix.ENOBUFS, one that the
// device could not read unix.EBADMSG, and its end unix.EBADFD.
func (in *intake) Read(buf []byte) (int, encap.Offload, error) {
	for in.next == len(in.taken) {
		if err := in.refill(); err != nil {
			return 0, encap.Offload{}, err
		}
	}
	a := in.taken[in.next]
	in.next++
	return copy(buf, a.packet), encap.Offload{}, a.err
}

// refill exchanges what the worker has read for all that is ready, or returns what
// there is instead.
func (in *intake) refill() error {
	in.mu.Lock()
	defer in.mu.Unlock()
	for _, a := range in.taken {
		if a.err == nil {
			in.free = append(in.free, a.packet[:MaxPacket])
		}
	}
	in.taken, in.ready, in.next = in.ready, in.taken[:0], 0
	in.room.Signal()
	switch {
	case len(in.taken) > 0:
		return nil
	case in.lost > 0:
		in.lost--
		return unix.ENOBUFS
	case in.end != nil:
		return in.end
	}
	if in.woken {
		in.woken = false
		in.waker.Reset()
	}
	return unix.EAGAIN
}

package tunnel

import (
	"errors"
	"fmt"
	"runtime"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"uvxlan/tunnel/device"
	"uvxlan/tunnel/internal/arena"
	"uvxlan/tunnel/internal/wake"
	"uvxlan/tunnel/offload"
	"uvxlan/tunnel/onlink"
	"uvxlan/tunnel/underlay"
)

// worker moves packets between one queue of the device and its sockets,
// in both directions, on a thread of its own. One thread for both saves half
// the wake-ups: an answer is often there by the time a packet was delivered.
type worker struct {
	in     *inbound
	out    *outbound
	conn   underlay.Conn
	memory *arena.Arena // of the packets that are sent
	waker  wake.Waker
	stop   atomic.Bool
	total  counters
}

func newWorker(c *Config, dev device.Device, u underlay.Underlay, i int, t *peerTable) (w *worker, err error) {
	w = &worker{waker: wake.Waker{FD: -1}}
	defer func() {
		if err != nil {
			err = errors.Join(err, w.close())
			w = nil
		}
	}()
	if w.memory, err = arena.Map(outboundMemory, c.HugePages); err != nil {
		return w, err
	}
	if w.conn, err = u.Open(i, c.HugePages); err != nil {
		return w, fmt.Errorf("open underlay: %w", err)
	}
	if w.waker, err = wake.Open(); err != nil {
		return w, err
	}
	q, l := dev.Queues()[i], newLocal(c)
	var d *onlink.Sender
	if packet := c.OnLink.Sockets(); packet != nil {
		d = onlink.NewSender(packet[i], dev.Offloads().Has(offload.UDP), c.Link.MTU)
	}
	w.out = newOutbound(q, t, w.conn, d, l, w.memory, &w.total)
	w.in = newInbound(c, w.conn, u.Locals()[0].Port(), q, dev.Offloads(), t, l, &w.total)
	return w, nil
}

// linger is how long after its last packet a worker only gives way to other
// threads before it sleeps. Under load the next packets come within that time,
// and neither their sender nor the worker pays for a wake-up; whoever runs
// meanwhile makes the next batch larger. A thread that doesn't sleep is also
// seldom moved to another CPU, where it would overtake its own packets that are
// still queued on the one before.
const linger = 60 * time.Microsecond

// ownTurn is what no call of yield takes in which no other thread ran.
const ownTurn = 2 * time.Microsecond

// run drains both ends until neither has had anything for a while, then sleeps
// until one has. It returns after halt, or with what made the device or socket
// useless.
func (w *worker) run() error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	fds := []unix.PollFd{{Fd: int32(w.waker.FD), Events: unix.POLLIN}}
	for _, fd := range w.conn.FDs() {
		fds = append(fds, unix.PollFd{Fd: int32(fd), Events: unix.POLLIN})
	}
	fds = append(fds, unix.PollFd{Fd: int32(w.out.queue.FD()), Events: unix.POLLIN})
	var blocked []int
	quiet := len(fds)
	busy := 0
	for last := time.Now(); !w.stop.Load(); {
		w.in.now, w.out.now = last.UnixNano(), monotonic()
		if w.conn.Blocked() {
			w.out.retry()
		}
		received, err := w.in.drain()
		if err != nil {
			return fmt.Errorf("receive from underlay: %w", err)
		}
		sent, err := w.out.drain()
		if err != nil {
			return deviceError(err)
		}
		found := max(received, sent)
		if found != none {
			last, busy = time.Now(), busyAfter(busy, found)
		}
		switch {
		case found == full:
		case time.Since(last) < linger:
			if yield() > ownTurn && busy > 0 {
				// The CPU is wanted. Whoever waits for it stays on it, even if
				// another one is free; whoever is woken may get that.
				last = last.Add(-linger)
			}
		default:
			fds, blocked = fds[:quiet], w.conn.AppendBlocked(blocked[:0])
			for _, fd := range blocked {
				fds = append(fds, unix.PollFd{Fd: int32(fd), Events: unix.POLLOUT})
			}
			if err := poll(fds); err != nil {
				return fmt.Errorf("poll device and underlay: %w", err)
			}
			last = time.Now()
		}
	}
	return nil
}

// busyFor is how many packets that come alone make a worker one that isn't busy:
// then it had rather wait for the next than be woken, which takes longer.
const busyFor = 8

func busyAfter(busy int, found load) int {
	if found > one {
		return busyFor
	}
	return max(busy-1, 0)
}

// load is what a batch found.
type load uint8

const (
	none load = iota // nothing
	one              // all there was, a single packet or message
	some             // all there was, more than that
	full             // a batch, and there may be more
)

// loadOf classifies a batch of n packets or messages.
func loadOf(n int, more bool) load {
	switch {
	case n == 0:
		return none
	case more:
		return full
	case n == 1:
		return one
	}
	return some
}

func deviceError(err error) error {
	if errors.Is(err, unix.EBADFD) || errors.Is(err, unix.EIO) {
		return fmt.Errorf("read device: %w: %w", device.ErrGone, err)
	}
	return fmt.Errorf("read device: %w", err)
}

// halt makes run return soon; it may be called at any time before close.
func (w *worker) halt() {
	w.stop.Store(true)
	w.waker.Wake()
}

// close releases what newWorker acquired. run must have returned.
func (w *worker) close() error {
	errs := []error{w.waker.Close()}
	if w.conn != nil {
		errs = append(errs, w.conn.Close())
	}
	if w.memory != nil {
		errs = append(errs, w.memory.Close())
	}
	return errors.Join(errs...)
}

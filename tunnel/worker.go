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
	"uvxlan/tunnel/internal/family"
	"uvxlan/tunnel/internal/wake"
	"uvxlan/tunnel/offload"
	"uvxlan/tunnel/onlink"
)

// worker moves packets between one queue of the device and its sockets,
// in both directions, on a thread of its own. One thread for both saves half
// the wake-ups: an answer is often there by the time a packet was delivered.
type worker struct {
	in     *inbound
	out    *outbound
	memory *arena.Arena // both ways' packets
	waker  wake.Waker
	stop   atomic.Bool
	total  counters
}

func newWorker(c *Config, dev device.Device, u *Underlay, i int, t *peerTable) (*worker, error) {
	memory, err := arena.Map(inboxMemory+outboundMemory, c.HugePages)
	if err != nil {
		return nil, err
	}
	waker, err := wake.Open()
	if err != nil {
		return nil, errors.Join(err, memory.Close())
	}
	w := &worker{memory: memory, waker: waker}
	q, l := dev.Queues()[i], newLocal(c)
	var d *onlink.Sender
	if packet := c.OnLink.Sockets(); packet != nil {
		d = onlink.NewSender(packet[i], dev.Offloads().Has(offload.UDP), c.MTU)
	}
	w.out = newOutbound(q, t, newSenders(u, i), d, l, memory, &w.total)
	w.in = newInbound(c, q, dev.Offloads(), t, l, memory, &w.total)
	for f, s := range u.sockets {
		if s != nil {
			w.in.listen(family.Family(f), s.rx[i], newSender(s.tx[i][0], family.Family(f) == family.IPv6, false))
		}
	}
	return w, nil
}

// newSenders makes worker i's pools of the families that there are.
func newSenders(u *Underlay, i int) (pools [family.Count][]*sender) {
	for f, s := range u.sockets {
		if s == nil {
			continue
		}
		for _, fd := range s.tx[i] {
			pools[f] = append(pools[f], newSender(fd, family.Family(f) == family.IPv6, u.offloads.Has(offload.GSO)))
		}
	}
	return pools
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
	fds := []unix.PollFd{
		{Fd: int32(w.waker.FD), Events: unix.POLLIN},
	}
	for _, s := range w.in.sockets {
		fds = append(fds, unix.PollFd{Fd: int32(s.fd), Events: unix.POLLIN})
	}
	fds = append(fds, unix.PollFd{Fd: int32(w.out.queue.FD()), Events: unix.POLLIN})
	busy := 0
	for last := time.Now(); !w.stop.Load(); {
		w.in.now = last.UnixNano()
		received, err := w.in.drain()
		if err != nil {
			return fmt.Errorf("receive from underlay: %w: %w", ErrUnderlayGone, err)
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
func (w *worker) close() error { return errors.Join(w.waker.Close(), w.memory.Close()) }

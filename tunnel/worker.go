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
	"uvxlan/tunnel/internal/flowlimit"
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
	direct *onlink.Sender // nil unless on-link peers are sent to by it
	memory *arena.Arena   // of the packets that are sent
	waker  wake.Waker
	stop   atomic.Bool
	total  counters

	// The number of the last question whether all that had come by then was passed on,
	// and of the last that was answered, which is told by passed.
	questions, answers atomic.Uint64
	passed             chan<- struct{}
}

func newWorker(c *Config, dev device.Device, u underlay.Underlay, i int, t *peerTable, limits *flowlimit.Table, passed chan<- struct{}) (w *worker, err error) {
	w = &worker{waker: wake.Waker{FD: -1}, passed: passed}
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
	if packet := c.OnLink.Sockets(); packet != nil {
		if w.direct, err = onlink.NewSender(packet[i], dev.Offloads().Has(offload.UDP), c.Link.MTU); err != nil {
			return w, err
		}
	}
	w.out = newOutbound(q, t, w.conn, w.direct, limits, l, w.memory, &w.total)
	w.in = newInbound(c, w.conn, u.Locals()[0].Port(), q, dev.Offloads(), t, limits, l, &w.total)
	return w, nil
}

// run drains both ends until neither has anything, spins or sleeps until one
// has, and starts again. It returns after halt, or with what made the device or
// socket useless.
func (w *worker) run() error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	p := newPoller(w.waker.FD, w.conn.FDs(), w.out.queue.FD())
	defer p.close()
	now := time.Now()
	s := newSpin(now)
	for at := anywhere; ; {
		question := w.question()
		if w.stop.Load() {
			return nil
		}
		if question != 0 {
			at = anywhere
		}
		w.in.now, w.out.now = now.UnixNano(), monotonic()
		if w.out.blocked() {
			w.out.retry()
		}
		found, err := w.drain(at)
		if err != nil {
			return err
		}
		if found != none {
			end := time.Now()
			s.moved(now, end, found)
			now = end
		}
		if question != 0 && found != full && !w.out.blocked() {
			w.answer(question)
		}
		switch {
		case found == full:
			at = anywhere
		case s.on(now):
			took := yield()
			now, at = time.Now(), anywhere
			s.yielded(now, took)
		default:
			p.blocked = w.out.appendBlocked(p.blocked[:0])
			if at, err = p.wait(now.Sub(s.since)); err != nil {
				return fmt.Errorf("poll device and underlay: %w", err)
			}
			now = time.Now()
		}
	}
}

// ask has the worker tell once all is passed on that has come to it by now; any goroutine
// may.
func (w *worker) ask() {
	w.questions.Add(1)
	w.waker.Wake()
}

// answered tells whether the worker has passed on all that had come when it was last
// asked.
func (w *worker) answered() bool { return w.answers.Load() == w.questions.Load() }

// question is the number of one that isn't answered yet, 0 if there is none. It takes
// the wake that came with it: a later one's, or halt's, belongs to what the
// caller looks at after it.
func (w *worker) question() uint64 {
	if w.answered() {
		return 0
	}
	w.waker.Reset()
	return w.questions.Load()
}

func (w *worker) answer(question uint64) {
	w.answers.Store(question)
	notify(w.passed)
}

// drain moves a batch of each end that may have something.
func (w *worker) drain(at readiness) (amount, error) {
	received, sent := none, none
	var err error
	if at.underlay {
		if received, err = w.in.drain(); err != nil {
			return none, fmt.Errorf("receive from underlay: %w", err)
		}
	}
	if at.device {
		if sent, err = w.out.drain(); err != nil {
			return none, deviceError(err)
		}
	}
	return max(received, sent), nil
}

// amount is what a batch found.
type amount uint8

const (
	none amount = iota // nothing
	one                // all there was, a single packet or message
	some               // all there was, more than that
	full               // a batch, and there may be more
)

// amountOf classifies a batch of n packets or messages.
func amountOf(n int, more bool) amount {
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
	if w.direct != nil {
		errs = append(errs, w.direct.Close())
	}
	if w.memory != nil {
		errs = append(errs, w.memory.Close())
	}
	return errors.Join(errs...)
}

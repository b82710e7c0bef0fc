package scenario

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"runtime"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"uvxlan/bench/lab"
)

const (
	// numberedSize is the payload of a numbered datagram: its number, the time at
	// which it was sent, and zeros.
	numberedSize = 64
	// numberedBuffer holds more than a receiver can be late for.
	numberedBuffer = 8 << 20
	// quiet is for how long nothing may come at the end before what is missing is
	// taken for lost. It is longer than any queue takes that isn't full.
	quiet = time.Second
)

// numbered is a stream of numbered datagrams, evenly spaced, from one container to
// another, or to it and back.
type numbered struct {
	from, to *lab.Container
	rate     int // datagrams a second
	echo     bool
}

// arrival is one datagram of those that came.
type arrival struct {
	number uint64
	// sent is the sender's clock, came the kernel's when the packet reached the
	// container: a receiver that must wait for a CPU doesn't change it.
	sent, came time.Time
}

// stream is what became of a numbered stream.
type stream struct {
	sent     int
	arrivals []arrival // in their order
}

// lost is how many never came.
func (s stream) lost() int {
	seen := map[uint64]bool{}
	for _, a := range s.arrivals {
		seen[a.number] = true
	}
	return s.sent - len(seen)
}

// gaps are the times between an arrival and the next.
func (s stream) gaps() []time.Duration {
	var gaps []time.Duration
	for i := 1; i < len(s.arrivals); i++ {
		gaps = append(gaps, s.arrivals[i].came.Sub(s.arrivals[i-1].came))
	}
	return gaps
}

// delays are the times from sending to arrival. All hosts have the same clock.
func (s stream) delays() []time.Duration {
	var delays []time.Duration
	for _, a := range s.arrivals {
		delays = append(delays, a.came.Sub(a.sent))
	}
	return delays
}

// quantile sorts the durations, of which there must be one, and returns that
// at q, 0 being the least and 1 the most.
func quantile(d []time.Duration, q float64) time.Duration {
	slices.Sort(d)
	return d[int(q*float64(len(d)-1)+0.5)]
}

// run sends for a time and waits for what is on its way. An error, and ctx's end,
// end it early.
func (n numbered) run(ctx context.Context, d time.Duration) (stream, error) {
	fail := func(err error) (stream, error) {
		return stream{}, fmt.Errorf("numbered datagrams from %s to %s: %w", n.from.Name, n.to.Name, err)
	}
	far, err := openNumbered(n.to)
	if err != nil {
		return fail(err)
	}
	defer far.close()
	near, err := openNumbered(n.from)
	if err != nil {
		return fail(err)
	}
	defer near.close()
	if err := near.connect(far); err != nil {
		return fail(err)
	}
	receiver := far
	if n.echo {
		receiver = near
	}
	var s stream
	var sendErr, receiveErr, echoErr error
	sent := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		defer close(sent)
		s.sent, sendErr = near.send(ctx, n.rate, d)
	})
	received := make(chan struct{})
	if n.echo {
		wg.Go(func() { echoErr = far.reflect(received) })
	}
	wg.Go(func() {
		defer close(received)
		s.arrivals, receiveErr = receiver.receive(sent, inAll(n.rate, d))
	})
	wg.Wait()
	if err := errors.Join(sendErr, echoErr, receiveErr, ctx.Err()); err != nil {
		return fail(err)
	}
	if len(s.arrivals) == 0 {
		return fail(errors.New("nothing arrived"))
	}
	return s, nil
}

// numberedSocket is a UDP socket whose calls block in the kernel: the runtime's
// poller would add its own delay.
type numberedSocket struct{ fd int }

func openNumbered(c *lab.Container) (*numberedSocket, error) {
	s := &numberedSocket{-1}
	err := c.Do(func() (err error) {
		s.fd, err = unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		return os.NewSyscallError("socket", err)
	})
	if err != nil {
		return nil, err
	}
	// How long a receive waits before it looks whether it is to end.
	timeout := unix.NsecToTimeval((20 * time.Millisecond).Nanoseconds())
	for _, err := range []error{
		os.NewSyscallError("bind", unix.Bind(s.fd, &unix.SockaddrInet4{Addr: c.Address.As4()})),
		os.NewSyscallError("setsockopt", unix.SetsockoptTimeval(s.fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &timeout)),
		os.NewSyscallError("setsockopt", unix.SetsockoptInt(s.fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, numberedBuffer)),
		os.NewSyscallError("setsockopt", unix.SetsockoptInt(s.fd, unix.SOL_SOCKET, unix.SO_TIMESTAMPNS, 1)),
	} {
		if err != nil {
			s.close()
			return nil, err
		}
	}
	return s, nil
}

func (s *numberedSocket) close() { _ = unix.Close(s.fd) }

func (s *numberedSocket) connect(to *numberedSocket) error {
	name, err := unix.Getsockname(to.fd)
	if err != nil {
		return os.NewSyscallError("getsockname", err)
	}
	return os.NewSyscallError("connect", unix.Connect(s.fd, name))
}

// send sends rate datagrams a second for a time, each at its own moment; one that is
// late is sent at once. It returns how many were sent.
func (s *numberedSocket) send(ctx context.Context, rate int, d time.Duration) (number int, err error) {
	// Timers of a usual thread may be 50 us late, which is as long as a packet's way.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if err := unix.Prctl(unix.PR_SET_TIMERSLACK, 1, 0, 0, 0); err != nil {
		return 0, os.NewSyscallError("prctl", err)
	}
	defer func() { _ = unix.Prctl(unix.PR_SET_TIMERSLACK, 0, 0, 0, 0) }() // 0 is the default
	b := make([]byte, numberedSize)
	total, begin := inAll(rate, d), time.Now()
	for number < total && ctx.Err() == nil {
		wait := time.Duration(number)*time.Second/time.Duration(rate) - time.Since(begin)
		if wait > 0 {
			t := unix.NsecToTimespec(wait.Nanoseconds())
			_ = unix.Nanosleep(&t, nil)
			continue // a signal may have ended it
		}
		binary.BigEndian.PutUint64(b, uint64(number))
		binary.BigEndian.PutUint64(b[8:], uint64(time.Now().UnixNano()))
		switch err := unix.Send(s.fd, b, 0); {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return number, os.NewSyscallError("send", err)
		default:
			number++
		}
	}
	return number, nil
}

// inAll is how many datagrams are sent in a time.
func inAll(rate int, d time.Duration) int { return int(float64(rate) * d.Seconds()) }

// receive returns what came, until all have, or nothing has for a while after
// the last one was sent.
func (s *numberedSocket) receive(sent <-chan struct{}, total int) ([]arrival, error) {
	arrivals := make([]arrival, 0, total)
	buf, control := make([]byte, numberedSize+1), make([]byte, 128)
	for last := time.Now(); len(arrivals) < total; {
		n, size, _, _, err := unix.Recvmsg(s.fd, buf, control, 0)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case errors.Is(err, unix.EAGAIN):
			if ended(sent) && time.Since(last) > quiet {
				return arrivals, nil
			}
			continue
		case err != nil:
			return nil, os.NewSyscallError("recvmsg", err)
		}
		a, err := parseArrival(buf[:n], control[:size])
		if err != nil {
			return nil, err
		}
		last = time.Now()
		arrivals = append(arrivals, a)
	}
	return arrivals, nil
}

func ended(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

// reflect sends back what comes until the end.
func (s *numberedSocket) reflect(end <-chan struct{}) error {
	buf := make([]byte, numberedSize)
	for !ended(end) {
		n, from, err := unix.Recvfrom(s.fd, buf, 0)
		switch {
		case errors.Is(err, unix.EINTR), errors.Is(err, unix.EAGAIN):
			continue
		case err != nil:
			return os.NewSyscallError("recvfrom", err)
		}
		if err := unix.Sendto(s.fd, buf[:n], 0, from); err != nil && !errors.Is(err, unix.EINTR) {
			return os.NewSyscallError("sendto", err)
		}
	}
	return nil
}

var errNumbered = errors.New("a datagram isn't one of this stream's, or has no timestamp")

// parseArrival reads a datagram and the timestamp in its control messages.
func parseArrival(b, control []byte) (a arrival, err error) {
	messages, err := unix.ParseSocketControlMessage(control)
	if err != nil {
		return a, os.NewSyscallError("recvmsg", err)
	}
	for _, m := range messages {
		const timespec = 16 // two numbers of 64 bits
		if m.Header.Level == unix.SOL_SOCKET && m.Header.Type == unix.SO_TIMESTAMPNS && len(m.Data) >= timespec {
			a.came = time.Unix(int64(binary.NativeEndian.Uint64(m.Data)), int64(binary.NativeEndian.Uint64(m.Data[8:])))
		}
	}
	if len(b) != numberedSize || a.came.IsZero() {
		return a, errNumbered
	}
	a.number = binary.BigEndian.Uint64(b)
	a.sent = time.Unix(0, int64(binary.BigEndian.Uint64(b[8:])))
	return a, nil
}

package kube

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"uvxlan/bench/lab"
)

const (
	// pingInterval is the time between two pings.
	pingInterval = 10 * time.Millisecond
	// quiet is how long after the last ping its answer is waited for.
	quiet = 2 * time.Second

	echoRequest, echoReply = 8, 0 // RFC 792
	echoLength             = 64   // bytes of an echo message
)

// Pings are numbered ICMP echoes from a pod to another, one each 10 ms, until they are
// ended.
type Pings struct {
	conn *net.IPConn
	to   netip.Addr
	id   uint16
	stop chan struct{}
	done sync.WaitGroup

	mu   sync.Mutex // guards what follows
	sent []time.Time
	came []bool // by number
	err  error  // why one couldn't be sent
}

// Loss is what came of pings.
type Loss struct {
	Sent, Lost int
	// Gap is the longest time without an answer to what was sent in it.
	Gap time.Duration
}

// String gives the loss in words.
func (l Loss) String() string {
	return fmt.Sprintf("%d of %d pings lost, longest gap %d ms", l.Lost, l.Sent, l.Gap.Milliseconds())
}

// Ping begins to ping another pod.
func (p *Pod) Ping(to *Pod) (*Pings, error) {
	g := &Pings{to: to.Address, id: uint16(rand.Uint32()), stop: make(chan struct{})}
	err := lab.Inside(p.Namespace(), func() (err error) {
		g.conn, err = net.ListenIP("ip4:icmp", nil)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("ping from pod %s: %w", p.Name, err)
	}
	g.done.Go(g.receive)
	g.done.Go(g.send)
	return g, nil
}

func (g *Pings) send() {
	tick := time.NewTicker(pingInterval)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-g.stop:
			// What is on its way is waited for.
			_ = g.conn.SetReadDeadline(time.Now().Add(quiet))
			return
		}
		g.mu.Lock()
		n := len(g.sent)
		g.sent, g.came = append(g.sent, time.Now()), append(g.came, false)
		g.mu.Unlock()
		// A packet that the pod has no route or room for is one that is lost.
		_, err := g.conn.WriteTo(echo(g.id, uint64(n)), &net.IPAddr{IP: g.to.AsSlice()})
		if errors.Is(err, net.ErrClosed) || errors.Is(err, unix.EPERM) {
			g.mu.Lock()
			g.err = err
			g.mu.Unlock()
			return
		}
	}
}

func (g *Pings) receive() {
	buf := make([]byte, 2048)
	for {
		n, _, err := g.conn.ReadFromIP(buf) // without the IP header, unlike Read
		if err != nil {
			return // the deadline
		}
		number, ok := g.answer(buf[:n])
		g.mu.Lock()
		if ok && number < uint64(len(g.came)) {
			g.came[number] = true
		}
		g.mu.Unlock()
	}
}

// answer is the number of the ping that a message answers.
func (g *Pings) answer(b []byte) (number uint64, ok bool) {
	if len(b) != echoLength || b[0] != echoReply || binary.BigEndian.Uint16(b[4:]) != g.id {
		return 0, false
	}
	return binary.BigEndian.Uint64(b[8:]), true
}

// echo is an echo request that carries a number.
func echo(id uint16, number uint64) []byte {
	b := make([]byte, echoLength)
	b[0] = echoRequest
	binary.BigEndian.PutUint16(b[4:], id)
	binary.BigEndian.PutUint16(b[6:], uint16(number))
	binary.BigEndian.PutUint64(b[8:], number)
	var sum uint32 // RFC 1071
	for i := 0; i < len(b); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	binary.BigEndian.PutUint16(b[2:], ^uint16(sum))
	return b
}

// Loss is what came of the pings so far; the last ones may be on their way.
func (g *Pings) Loss() Loss {
	g.mu.Lock()
	defer g.mu.Unlock()
	l := Loss{Sent: len(g.sent)}
	var last time.Time
	for i, at := range g.sent {
		switch {
		case !g.came[i]:
			l.Lost++
			if last.IsZero() {
				last = at
			}
			l.Gap = max(l.Gap, at.Sub(last)+pingInterval)
		default:
			last = time.Time{}
		}
	}
	return l
}

// Lost are the times at which pings were sent that have no answer.
func (g *Pings) Lost() (at []time.Time) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for i, sent := range g.sent {
		if !g.came[i] {
			at = append(at, sent)
		}
	}
	return at
}

// AwaitAnswers waits until so many more of the pings are answered.
func (g *Pings) AwaitAnswers(ctx context.Context, more int) error {
	answered := func() int { l := g.Loss(); return l.Sent - l.Lost }
	want := answered() + more
	return Await(ctx, func() error {
		if now := answered(); now < want {
			return fmt.Errorf("%d pings to %s are answered, want %d", now, g.to, want)
		}
		return nil
	})
}

// End ends the pings and says what came of them.
func (g *Pings) End() (Loss, error) {
	close(g.stop)
	g.done.Wait()
	err := g.conn.Close()
	if errors.Is(err, os.ErrClosed) {
		err = nil
	}
	return g.Loss(), errors.Join(g.err, err)
}

package e2e

import (
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// Stream is a TCP connection from kb21's container to kb22's that never pauses.
type Stream struct {
	t        *testing.T
	received atomic.Int64 // bytes
	failed   chan error
}

// StartStream connects the containers, until the test ends.
func StartStream(t *testing.T, w *World) *Stream {
	t.Helper()
	to := w.Container("kb22")
	var listener net.Listener
	err := to.Do(func() (err error) {
		listener, err = net.Listen("tcp4", netip.AddrPortFrom(to.Address, 0).String())
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	var out net.Conn
	err = w.Container("kb21").Do(func() (err error) {
		out, err = net.DialTimeout("tcp4", listener.Addr().String(), Patience)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	in, err := listener.Accept()
	if err != nil {
		t.Fatal(err)
	}
	s := &Stream{t: t, failed: make(chan error, 2)}
	var wg sync.WaitGroup
	wg.Go(func() {
		for block := make([]byte, 256<<10); ; {
			if _, err := out.Write(block); err != nil {
				s.failed <- err
				return
			}
		}
	})
	wg.Go(func() {
		for block := make([]byte, 256<<10); ; {
			n, err := in.Read(block)
			s.received.Add(int64(n))
			if err != nil {
				s.failed <- err
				return
			}
		}
	})
	t.Cleanup(func() {
		out.Close()
		in.Close()
		listener.Close()
		wg.Wait()
	})
	return s
}

// GoesOn waits until the stream has brought more than could be on its way when
// the underlay changed.
func (s *Stream) GoesOn() {
	s.t.Helper()
	const inFlight = 64 << 20
	begin := s.received.Load()
	s.await(func() bool { return s.received.Load() > begin+inFlight })
}

// Stalls waits until nothing has come for a while.
func (s *Stream) Stalls() {
	s.t.Helper()
	last, since := s.received.Load(), time.Now()
	s.await(func() bool {
		if now := s.received.Load(); now != last {
			last, since = now, time.Now()
		}
		return time.Since(since) > 300*time.Millisecond
	})
}

func (s *Stream) await(done func() bool) {
	s.t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(Patience); !done(); <-tick.C {
		select {
		case err := <-s.failed:
			s.t.Fatalf("the stream broke: %v", err)
		default:
		}
		if time.Now().After(end) {
			s.t.Fatalf("the stream stands at %d bytes", s.received.Load())
		}
	}
}

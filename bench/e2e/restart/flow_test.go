package restart_test

import (
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"uvxlan/bench/e2e"

	"uvxlan/bench/lab"
)

// flow is a TCP connection between two containers that carries checked bytes,
// at a pace that leaves the machine room, until it is ended.
type flow struct {
	from, to *lab.Container
	received atomic.Int64 // bytes
	at       atomic.Int64 // when the newest came, in Unix nanoseconds
	failed   chan error
	end      func()
}

func (f *flow) name() string { return f.from.Name + " -> " + f.to.Name }

// last is when something came.
func (f *flow) last() time.Time { return time.Unix(0, f.at.Load()) }

func startFlow(t *testing.T, from, to *lab.Container) *flow {
	t.Helper()
	var listener net.Listener
	err := to.Do(func() (err error) {
		listener, err = net.Listen("tcp4", netip.AddrPortFrom(to.Address, 0).String())
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	var out net.Conn
	err = from.Do(func() (err error) {
		out, err = net.DialTimeout("tcp4", listener.Addr().String(), e2e.Patience)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	in, err := listener.Accept()
	if err != nil {
		t.Fatal(err)
	}
	f := &flow{from: from, to: to, failed: make(chan error, 2)}
	var wg sync.WaitGroup
	f.end = sync.OnceFunc(func() {
		out.Close()
		in.Close()
		wg.Wait()
	})
	t.Cleanup(f.end)
	wg.Go(func() { f.failed <- f.send(out) })
	wg.Go(func() { f.failed <- f.receive(in) })
	return f
}

// send writes a block every few milliseconds.
func (f *flow) send(out io.Writer) error {
	const pace = 5 * time.Millisecond
	source, block := rand.NewChaCha8([32]byte{}), make([]byte, 16<<10)
	for {
		_, _ = source.Read(block) // never fails
		if _, err := out.Write(block); err != nil {
			return fmt.Errorf("send: %w", err)
		}
		time.Sleep(pace)
	}
}

func (f *flow) receive(in io.Reader) error {
	source, got := rand.NewChaCha8([32]byte{}), make([]byte, 64<<10)
	want := make([]byte, len(got))
	for {
		n, err := in.Read(got)
		_, _ = source.Read(want[:n])
		if !bytes.Equal(got[:n], want[:n]) {
			return fmt.Errorf("what comes after %d bytes isn't what was sent", f.received.Load())
		}
		f.received.Add(int64(n))
		f.at.Store(time.Now().UnixNano())
		if err != nil {
			return fmt.Errorf("receive: %w", err)
		}
	}
}

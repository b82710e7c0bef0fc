package scenario

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// clients open connections at the same time, each to a port of its own, since
	// the client's ports stay taken for a minute after a connection.
	clients     = 16
	requestSize = 64
	// unanswered is after which a connection has failed.
	unanswered = 2 * time.Second
)

func connScenarios() []Scenario {
	return []Scenario{{
		Name: "connections", About: "TCP connections, short, 64 bytes each way, 16 at a time", Main: Connections, Run: connections,
	}}
}

func connections(ctx context.Context, p Path, d time.Duration) (Sample, error) {
	s, err := answer(p)
	if err != nil {
		return nil, err
	}
	defer s.close()
	ctx, cancel := context.WithTimeout(ctx, d)
	defer cancel()
	var count atomic.Int64
	errs := make([]error, clients)
	start := time.Now()
	var wg sync.WaitGroup
	for i, address := range s.addresses() {
		wg.Go(func() {
			errs[i] = p.Client.Do(func() error { return ask(ctx, address, &count) })
		})
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		return nil, fmt.Errorf("connect to %s: %w", p.Server.Name, err)
	}
	return Sample{Connections: float64(count.Load()) / time.Since(start).Seconds()}, nil
}

// ask opens one connection after the other until ctx ends and counts those that
// were answered. It runs on a thread in the client's namespace.
func ask(ctx context.Context, address string, count *atomic.Int64) error {
	d := net.Dialer{Timeout: unanswered}
	buf := make([]byte, requestSize)
	for ctx.Err() == nil {
		if err := exchange(d, address, buf); err != nil {
			return err
		}
		count.Add(1)
	}
	return nil
}

func exchange(d net.Dialer, address string, buf []byte) error {
	conn, err := d.Dial("tcp4", address)
	if err != nil {
		return err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(unanswered)); err != nil {
		return err
	}
	if _, err := conn.Write(buf); err != nil {
		return err
	}
	_, err = io.ReadFull(conn, buf)
	return err
}

// echoServer sends back what each connection sends first.
type echoServer struct {
	listeners []net.Listener
	wg        sync.WaitGroup
}

// answer starts a server in the server's namespace.
func answer(p Path) (*echoServer, error) {
	s := &echoServer{}
	err := p.Server.Do(func() error {
		for range clients {
			l, err := net.Listen("tcp4", netip.AddrPortFrom(p.Server.Address, 0).String())
			if err != nil {
				return err
			}
			s.listeners = append(s.listeners, l)
		}
		return nil
	})
	if err != nil {
		s.close()
		return nil, fmt.Errorf("listen in %s: %w", p.Server.Name, err)
	}
	for _, l := range s.listeners {
		s.wg.Go(func() { s.serve(l) })
	}
	return s, nil
}

func (s *echoServer) addresses() []string {
	var all []string
	for _, l := range s.listeners {
		all = append(all, l.Addr().String())
	}
	return all
}

// serve takes one connection at a time: there is one client to a port.
func (s *echoServer) serve(l net.Listener) {
	buf := make([]byte, requestSize)
	for {
		conn, err := l.Accept()
		if err != nil {
			return // closed
		}
		_ = conn.SetDeadline(time.Now().Add(unanswered))
		if _, err := io.ReadFull(conn, buf); err == nil {
			_, _ = conn.Write(buf) // the client notices
		}
		conn.Close()
	}
}

func (s *echoServer) close() {
	for _, l := range s.listeners {
		l.Close()
	}
	s.wg.Wait()
}

package control

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Bounds of what one client may keep the daemon busy with.
const (
	requestTimeout = 10 * time.Second
	idleTimeout    = time.Minute
	headerBytes    = 16 << 10
	// closeTimeout is how long Close lets answers be finished.
	closeTimeout = time.Second
)

// Server answers HTTP requests on one listener until Close.
type Server struct {
	listener net.Listener
	http     *http.Server
	serving  sync.WaitGroup

	mu   sync.Mutex
	busy map[net.Conn]struct{} // those that are owed an answer; guarded by mu
}

// Serve starts answering on l, which is the server's from here on.
func Serve(l net.Listener, h http.Handler, log *slog.Logger) *Server {
	s := &Server{listener: l, busy: map[net.Conn]struct{}{}}
	s.http = &http.Server{
		Handler: h, ConnState: s.note,
		ReadHeaderTimeout: requestTimeout, ReadTimeout: requestTimeout, WriteTimeout: requestTimeout,
		IdleTimeout: idleTimeout, MaxHeaderBytes: headerBytes,
		ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelDebug),
	}
	s.serving.Go(func() {
		if err := s.http.Serve(gate{l}); !errors.Is(err, http.ErrServerClosed) {
			log.Error("serve HTTP", "address", l.Addr(), "error", err)
		}
	})
	return s
}

// HandOver returns another descriptor of the listening socket, which is the
// caller's. It stays open when the server is closed, and so does a socket's file
// stay in its place: who comes meanwhile waits for whoever adopts it.
func (s *Server) HandOver() (int, error) {
	if socket, ok := s.listener.(*Socket); ok {
		socket.kept.Store(true)
	}
	return s.Descriptor()
}

// Descriptor returns another descriptor of the listening socket, which is the
// caller's. Another process may adopt it.
func (s *Server) Descriptor() (int, error) {
	listener := s.listener
	if socket, ok := listener.(*Socket); ok {
		listener = socket.Listener
	}
	conn, ok := listener.(syscall.Conn)
	if !ok {
		return -1, fmt.Errorf("hand over %s: it has no descriptor", listener.Addr())
	}
	raw, err := conn.SyscallConn()
	if err != nil {
		return -1, fmt.Errorf("hand over %s: %w", listener.Addr(), err)
	}
	other := -1
	ctlErr := raw.Control(func(fd uintptr) { other, err = unix.FcntlInt(fd, unix.F_DUPFD_CLOEXEC, 0) })
	if err := errors.Join(ctlErr, err); err != nil {
		return -1, fmt.Errorf("hand over %s: %w", listener.Addr(), err)
	}
	return other, nil
}

// AdoptListener makes a listener of a descriptor that HandOver returned. It is used
// up, whether or not there is an error.
func AdoptListener(fd int) (net.Listener, error) {
	f := os.NewFile(uintptr(fd), "listener")
	defer f.Close()
	l, err := net.FileListener(f) // has one of its own
	if err != nil {
		return nil, fmt.Errorf("adopt listener: %w", err)
	}
	return l, nil
}

// gate is a listener that is used up once a deadline passes.
type gate struct{ net.Listener }

func (g gate) Accept() (net.Conn, error) {
	conn, err := g.Listener.Accept()
	if errors.Is(err, os.ErrDeadlineExceeded) {
		err = http.ErrServerClosed
	}
	return conn, err
}

// note follows the connections' states.
func (s *Server) note(c net.Conn, state http.ConnState) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if state == http.StateNew || state == http.StateActive {
		s.busy[c] = struct{}{}
	} else {
		delete(s.busy, c)
	}
}

// awaitIdle waits until every connection that was accepted has its answer, or ctx
// ends. The library's own Shutdown ends those without one whose question it hasn't
// read.
func (s *Server) awaitIdle(ctx context.Context) {
	const interval = time.Millisecond
	for tick := time.NewTicker(interval); ; {
		s.mu.Lock()
		busy := len(s.busy)
		s.mu.Unlock()
		if busy == 0 {
			tick.Stop()
			return
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			tick.Stop()
			return
		}
	}
}

// stopAccepting ends the accept loop, and with it the listener.
func (s *Server) stopAccepting() {
	l := s.listener
	if socket, ok := l.(*Socket); ok {
		l = socket.Listener
	}
	if d, ok := l.(interface{ SetDeadline(time.Time) error }); !ok || d.SetDeadline(time.Unix(1, 0)) != nil {
		l.Close()
	}
	s.serving.Wait()
}

// Close stops answering and closes the listener. It waits a moment for answers
// that are still owed, and for every goroutine.
func (s *Server) Close() error {
	ctx, cancel := context.WithTimeout(context.Background(), closeTimeout)
	defer cancel()
	s.stopAccepting()
	s.awaitIdle(ctx)
	err := s.http.Shutdown(ctx)
	if err != nil {
		err = s.http.Close()
	}
	return errors.Join(err, ignoreClosed(s.listener.Close()))
}

// ignoreClosed passes over a listener that the server has closed already.
func ignoreClosed(err error) error {
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

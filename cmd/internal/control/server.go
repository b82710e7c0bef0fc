package control

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"
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
}

// Serve starts answering on l, which is the server's from here on.
func Serve(l net.Listener, h http.Handler, log *slog.Logger) *Server {
	s := &Server{listener: l, http: &http.Server{
		Handler:           h,
		ReadHeaderTimeout: requestTimeout, ReadTimeout: requestTimeout, WriteTimeout: requestTimeout,
		IdleTimeout: idleTimeout, MaxHeaderBytes: headerBytes,
		ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelDebug),
	}}
	s.serving.Go(func() {
		if err := s.http.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			log.Error("serve HTTP", "address", l.Addr(), "error", err)
		}
	})
	return s
}

// Close stops answering and closes the listener. It waits a moment for answers
// that are being written, and for every goroutine.
func (s *Server) Close() error {
	ctx, cancel := context.WithTimeout(context.Background(), closeTimeout)
	defer cancel()
	err := s.http.Shutdown(ctx)
	if err != nil {
		err = s.http.Close()
	}
	s.serving.Wait()
	return errors.Join(err, ignoreClosed(s.listener.Close()))
}

// ignoreClosed passes over a listener that the server has closed already.
func ignoreClosed(err error) error {
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

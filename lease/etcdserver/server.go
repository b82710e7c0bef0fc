package etcdserver

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"

	"google.golang.org/grpc"

	"go.etcd.io/etcd/server/v3/embed"
)

// Options configure a [Server]. Dir is required.
type Options struct {
	// Dir holds the data; it is made, readable by its owner only, if missing.
	Dir string
	// ListenClient is the URLs that clients connect to, separated by commas;
	// empty means http://127.0.0.1:2379. Port 0 takes a free one.
	ListenClient string
	// AdvertiseClient is the URLs that the member list names; empty means
	// ListenClient.
	AdvertiseClient string
	// Logger gets etcd's warnings and errors; it defaults to one that discards.
	Logger *slog.Logger
}

// Server is a running etcd.
type Server struct {
	etcd      *embed.Etcd // immutable, as all below
	endpoints []string
	close     func()
}

// Start returns when etcd takes requests, or with an error that says what to
// do. ctx bounds the start only.
func Start(ctx context.Context, o Options) (*Server, error) {
	if o.Dir == "" {
		return nil, errors.New("embedded etcd: no data directory")
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if err := os.MkdirAll(o.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("embedded etcd: make data directory: %w", err)
	}
	var mute atomic.Bool
	cfg, err := config(o, &mute)
	if err != nil {
		return nil, err
	}
	closing, endStreams := context.WithCancel(context.WithoutCancel(ctx))
	cfg.GRPCAdditionalServerOptions = []grpc.ServerOption{grpc.ChainStreamInterceptor(endWith(closing))}
	e, err := embed.StartEtcd(cfg)
	if err != nil {
		endStreams()
		return nil, explain(err)
	}
	s := &Server{etcd: e, endpoints: endpoints(cfg, e.Clients)}
	s.close = sync.OnceFunc(func() {
		mute.Store(true)
		endStreams()
		e.Close()
	})
	if err := s.ready(ctx); err != nil {
		s.Close()
		return nil, err
	}
	return s, nil
}

func (s *Server) ready(ctx context.Context) error {
	select {
	case <-s.etcd.Server.ReadyNotify():
		return nil
	case <-ctx.Done():
		return fmt.Errorf("embedded etcd: start: %w", ctx.Err())
	case err := <-s.etcd.Err():
		return fmt.Errorf("embedded etcd: start: %w", err)
	case <-s.etcd.Server.StopNotify():
		return errors.New("embedded etcd: stopped while starting; its log has the reason")
	}
}

// Endpoint returns the first URL that clients can connect to.
func (s *Server) Endpoint() string { return s.endpoints[0] }

// Endpoints returns all URLs that clients can connect to, in the order of
// Options.ListenClient.
func (s *Server) Endpoints() []string { return slices.Clone(s.endpoints) }

// Close stops etcd and waits for its end. Open watches end at once. It is
// idempotent.
func (s *Server) Close() { s.close() }

// explain adds the remedy to the errors that people meet.
func explain(err error) error {
	op, ok := errors.AsType[*net.OpError](err)
	switch {
	case ok && errors.Is(err, syscall.EADDRINUSE):
		return fmt.Errorf("embedded etcd: address %s is in use, perhaps by another etcd: use that one as the etcd endpoint, or choose another listen address: %w", op.Addr, syscall.EADDRINUSE)
	case ok && errors.Is(err, syscall.EADDRNOTAVAIL):
		return fmt.Errorf("embedded etcd: address %s is not on this host: choose another listen address: %w", op.Addr, syscall.EADDRNOTAVAIL)
	}
	return fmt.Errorf("embedded etcd: start: %w", err)
}

// Package etcdtest gives tests a real etcd and a registry in it.
//
// The etcd is the embedded one, or with [ServerVariable] in the environment the
// binary that it names, so that tests can be run against another version.
package etcdtest

import (
	"os"
	"path/filepath"
	"testing"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"uvxlan/lease/etcd"
	"uvxlan/lease/etcdserver"
)

// Prefix is the key prefix that the registries of [Open] use.
const Prefix = etcd.DefaultPrefix

// ServerVariable is the variable that names an etcd to run instead of the embedded
// one, a path or a name in PATH.
const ServerVariable = "UVXLAN_TEST_ETCD"

// Server is a running etcd.
type Server struct {
	endpoint string
	close    func()
}

// Endpoint is its URL.
func (s *Server) Endpoint() string { return s.endpoint }

// Close ends it. It is idempotent.
func (s *Server) Close() { s.close() }

// Start runs an etcd on a free port until the test ends.
func Start(tb testing.TB) *Server {
	tb.Helper()
	return StartAt(tb, filepath.Join(tb.TempDir(), "etcd"), "http://127.0.0.1:0")
}

// StartAt runs an etcd with the given data and address until the test ends.
func StartAt(tb testing.TB, dir, listen string) *Server {
	tb.Helper()
	if path := os.Getenv(ServerVariable); path != "" {
		return startInstalled(tb, path, dir, listen)
	}
	s, err := etcdserver.Start(tb.Context(), etcdserver.Options{Dir: dir, ListenClient: listen})
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(s.Close)
	return &Server{s.Endpoint(), s.Close}
}

// Open returns a registry at the endpoint, closed when the test ends.
func Open(tb testing.TB, endpoint string) *etcd.Registry {
	tb.Helper()
	r, err := etcd.Open(etcd.Options{Endpoints: []string{endpoint}})
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = r.Close() })
	return r
}

// Client returns etcd's own client, for what an operator would do by hand.
func Client(tb testing.TB, endpoint string) *clientv3.Client {
	tb.Helper()
	c := dial(tb, endpoint)
	tb.Cleanup(func() { _ = c.Close() })
	return c
}

func dial(tb testing.TB, endpoint string) *clientv3.Client {
	tb.Helper()
	c, err := clientv3.New(clientv3.Config{Endpoints: []string{endpoint}, Logger: zap.NewNop()})
	if err != nil {
		tb.Fatal(err)
	}
	return c
}

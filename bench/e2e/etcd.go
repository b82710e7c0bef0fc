package e2e

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"

	"golang.org/x/sys/unix"

	"uvxlan/lease/etcdserver"
)

// etcdDir, in the environment, makes the test binary an etcd server.
const etcdDir, etcdListen = "UVXLAN_TEST_ETCD_DIR", "UVXLAN_TEST_ETCD_LISTEN"

// serveEtcd is an etcd in a process of its own, so that it can be stopped
// without a daemon.
func serveEtcd(dir string) int {
	server, err := etcdserver.Start(context.Background(), etcdserver.Options{
		Dir: dir, ListenClient: os.Getenv(etcdListen), Logger: slog.New(slog.NewTextHandler(os.Stderr, nil)),
	})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGTERM)
	defer stop()
	<-ctx.Done()
	server.Close()
	return 0
}

// StartEtcd starts the etcd, with the data that it has.
func (w *World) StartEtcd() {
	w.T.Helper()
	if w.Installed {
		w.StartInstalledEtcd(w.Cluster.Endpoint)
		return
	}
	w.Etcd = w.Cluster.Etcd.Command(w.T.Context(), os.Args[0])
	w.Etcd.Env = append(os.Environ(), etcdDir+"="+filepath.Join(w.Dir, "etcd"), etcdListen+"="+w.Cluster.Endpoint)
	w.Etcd.Stderr = os.Stderr
	if err := w.Etcd.Start(); err != nil {
		w.T.Fatal(err)
	}
}

// StopEtcd stops the etcd in order.
func (w *World) StopEtcd() {
	w.T.Helper()
	if err := w.Etcd.Stop(w.Context()); err != nil {
		w.T.Fatal(err)
	}
}

// StartInstalledEtcd starts the machine's etcd at one address alone.
func (w *World) StartInstalledEtcd(endpoint string) {
	w.T.Helper()
	const peer = "http://127.0.0.1:2380"
	w.Etcd = w.Cluster.Etcd.Command(w.T.Context(), "etcd", "--name", "test", "--data-dir", filepath.Join(w.Dir, "etcd-installed"),
		"--listen-client-urls", endpoint, "--advertise-client-urls", endpoint,
		"--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer, "--initial-cluster", "test="+peer,
		"--heartbeat-interval", "10", "--election-timeout", "100", "--logger", "zap", "--log-level", "error")
	if err := w.Etcd.Start(); err != nil {
		w.T.Fatal(err)
	}
}

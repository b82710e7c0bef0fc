package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/signal"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"uvxlan/bench/lab"
	"uvxlan/lease/etcdserver"
)

// etcdDir, in the environment, makes this program an etcd: in a process of its
// own, so that it costs the measured daemons nothing.
const etcdDir = "UVXLAN_BENCH_ETCD_DIR"

const etcdPort = "2379"

// helper runs this program's other roles; it returns false if it has none.
func helper() bool {
	dir := os.Getenv(etcdDir)
	if dir == "" {
		return false
	}
	if err := serveEtcd(dir); err != nil {
		fmt.Fprintln(os.Stderr, "etcd:", err)
		os.Exit(1)
	}
	return true
}

func serveEtcd(dir string) error {
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGTERM, unix.SIGINT)
	defer stop()
	server, err := etcdserver.Start(ctx, etcdserver.Options{
		Dir: dir, ListenClient: "http://0.0.0.0:" + etcdPort, Logger: slog.New(slog.NewTextHandler(os.Stderr, nil)),
	})
	if err != nil {
		return err
	}
	fmt.Println("ready")
	<-ctx.Done()
	server.Close()
	return nil
}

// etcdAt is the URL of startEtcd's etcd by one of the router's addresses.
func etcdAt(gateway netip.Addr) string {
	return "http://" + net.JoinHostPort(gateway.String(), etcdPort)
}

// startEtcd runs an etcd on the lab's router, which every host reaches by its
// gateway's address.
func startEtcd(ctx context.Context, l *lab.Lab, dir string) error {
	self, err := os.Executable()
	if err != nil {
		return fmt.Errorf("start etcd: %w", err)
	}
	log, err := os.Create(filepath.Join(dir, "etcd.log"))
	if err != nil {
		return fmt.Errorf("start etcd: %w", err)
	}
	defer log.Close()
	cmd := l.Router().Command(ctx, self)
	cmd.Env = append(os.Environ(), etcdDir+"="+filepath.Join(dir, "etcd"))
	cmd.Stderr = log
	out, err := cmd.StdoutPipe()
	if err != nil {
		return fmt.Errorf("start etcd: %w", err)
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	limit := time.AfterFunc(readiness, func() { _ = cmd.Process.Kill() })
	defer limit.Stop()
	if _, err := io.ReadFull(out, make([]byte, len("ready\n"))); err != nil {
		return fmt.Errorf("start etcd: it ended, see %s: %w", log.Name(), cmd.Wait())
	}
	go func() { _ = cmd.Wait() }() // ends with the lab
	return nil
}

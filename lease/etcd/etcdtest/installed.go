package etcdtest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

const startTimeout = 20 * time.Second

// startInstalled runs the etcd binary at path and waits until it takes requests.
func startInstalled(tb testing.TB, path, dir, listen string) *Server {
	tb.Helper()
	client, peer := freeURL(tb, listen), freeURL(tb, "http://127.0.0.1:0")
	// The test's context ends before its cleanup functions run.
	cmd := exec.CommandContext(context.WithoutCancel(tb.Context()), path, "--name", "test", "--data-dir", dir,
		"--listen-client-urls", client, "--advertise-client-urls", client,
		"--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer, "--initial-cluster", "test="+peer,
		"--heartbeat-interval", "10", "--election-timeout", "100", "--logger", "zap", "--log-level", "error")
	cmd.SysProcAttr = &unix.SysProcAttr{Pdeathsig: unix.SIGKILL}
	var log bytes.Buffer
	cmd.Stdout, cmd.Stderr = &log, &log
	if err := cmd.Start(); err != nil {
		tb.Fatalf("start %s: %v", path, err)
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = cmd.Wait() // it is killed
	}()
	s := &Server{endpoint: client, close: sync.OnceFunc(func() {
		_ = cmd.Process.Kill()
		<-ended
	})}
	tb.Cleanup(s.Close)
	if err := answers(tb, client, ended); err != nil {
		s.Close()
		tb.Fatalf("%s: %v\n%s", path, err, &log)
	}
	return s
}

// freeURL puts a free port in the place of port 0. Until the server listens there, another
// process may take it: so of 127.0.0.1 it is one of this process's own loopback address.
func freeURL(tb testing.TB, raw string) string {
	tb.Helper()
	u, err := url.Parse(raw)
	if err != nil {
		tb.Fatal(err)
	}
	if u.Port() != "0" {
		return raw
	}
	var c net.ListenConfig
	l, err := c.Listen(tb.Context(), "tcp", strings.Replace(u.Host, "127.0.0.1:", OwnLoopback()+":", 1))
	if err != nil {
		tb.Fatal(err)
	}
	defer l.Close()
	return "http://" + l.Addr().String()
}

// OwnLoopback is a loopback address that other processes leave to this one.
func OwnLoopback() string {
	pid := os.Getpid()
	return fmt.Sprintf("127.%d.%d.%d", 1+pid>>16&0x7f, pid>>8&0xff, pid&0xff)
}

// answers waits until the server has a leader.
func answers(tb testing.TB, endpoint string, ended <-chan struct{}) error {
	tb.Helper()
	ctx, cancel := context.WithTimeout(tb.Context(), startTimeout)
	defer cancel()
	err := errors.New("not asked")
	for err != nil {
		select {
		case <-ended:
			return fmt.Errorf("it ended: %w", err)
		case <-ctx.Done():
			return fmt.Errorf("no answer: %w", err)
		case <-time.After(10 * time.Millisecond):
			err = ask(ctx, tb, endpoint)
		}
	}
	return nil
}

// ask connects by hand first, since the client would wait between attempts.
func ask(ctx context.Context, tb testing.TB, endpoint string) error {
	tb.Helper()
	var d net.Dialer
	conn, err := d.DialContext(ctx, "tcp", strings.TrimPrefix(endpoint, "http://"))
	if err != nil {
		return err
	}
	conn.Close()
	c := dial(tb, endpoint)
	defer c.Close()
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	_, err = c.Get(ctx, "/")
	return err
}

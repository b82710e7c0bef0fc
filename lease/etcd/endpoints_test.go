package etcd_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"uvxlan/lease"
	"uvxlan/lease/etcd"
	"uvxlan/lease/etcd/etcdtest"
)

// listening waits until the first member at host takes connections.
func listening(t *testing.T, host string) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		conn, err := net.Dial("tcp", host+":2379")
		if err == nil {
			conn.Close()
			return
		}
		if time.Now().After(end) {
			t.Fatal(err)
		}
	}
}

// blackHole is an address whose packets are lost: the kernel drops what asks
// for a connection while the queue of a listener is full.
func blackHole(t *testing.T) string {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	if err := errors.Join(unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}), unix.Listen(fd, 0)); err != nil {
		t.Fatal(err)
	}
	at, err := unix.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	address := fmt.Sprintf("127.0.0.1:%d", at.(*unix.SockaddrInet4).Port)
	for {
		conn, err := net.DialTimeout("tcp", address, 200*time.Millisecond)
		if os.IsTimeout(err) {
			return address
		}
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
	}
}

// A dead endpoint, whether it refuses or says nothing, doesn't delay the start,
// wherever it stands in the list: that would take 5 s.
func TestDeadEndpoints(t *testing.T) {
	c := etcdtest.StartCluster(t, etcdtest.RandomHost(), etcdtest.Options{Build: etcdtest.Embedded()})
	etcdtest.EnableAuth(t, c.Admin(t, nil, ""))
	well := c.Endpoints()[0]
	hole := "http://" + blackHole(t)
	for _, endpoints := range [][]string{{"http://127.0.0.1:1", well}, {hole, well}, {well, hole}, {hole, "http://127.0.0.1:1", well}} {
		// The slowest call of each try; a busy machine is not slow each time.
		var slowest []time.Duration
		for len(slowest) < 5 && (len(slowest) == 0 || slices.Min(slowest) > 3*time.Second) {
			slowest = append(slowest, slowestOf(t, endpoints, "first", "second", "third"))
		}
		if slices.Min(slowest) > 3*time.Second {
			t.Errorf("%v: calls took %v", endpoints, slowest)
		}
	}
}

// slowestOf makes calls with a registry of its own, which must succeed, and returns
// how long the slowest took.
func slowestOf(t *testing.T, endpoints []string, calls ...string) (slowest time.Duration) {
	t.Helper()
	r := open(t, etcd.Options{Endpoints: endpoints, Username: "root", Password: etcdtest.RootPassword})
	defer r.Close()
	for _, call := range calls {
		begin := time.Now()
		if _, _, err := r.List(t.Context()); err != nil {
			t.Errorf("%v: the %s call: %v", endpoints, call, err)
		}
		slowest = max(slowest, time.Since(begin))
	}
	return slowest
}

// When nobody answers at all, each call ends in time, and at once when its
// context does.
func TestOnlyDeadEndpoints(t *testing.T) {
	t.Parallel()
	hole := "http://" + blackHole(t)
	for name, o := range map[string]etcd.Options{
		"plain":         {Endpoints: []string{hole}},
		"with password": {Endpoints: []string{hole}, Username: "root", Password: "x"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := open(t, o)
			begin := time.Now()
			_, err := r.Config(t.Context())
			if took := time.Since(begin); !errors.Is(err, lease.ErrUnavailable) || took > 12*time.Second {
				t.Errorf("after %s: %v", took, err)
			} else {
				t.Logf("after %s: %v", took.Round(time.Millisecond), err)
			}
			ctx, cancel := context.WithCancel(t.Context())
			var wg sync.WaitGroup
			wg.Go(func() {
				time.Sleep(100 * time.Millisecond)
				begin = time.Now()
				cancel()
			})
			fresh := open(t, o)
			_, err = fresh.Config(ctx)
			if took := time.Since(begin); !errors.Is(err, context.Canceled) || took > time.Second {
				t.Errorf("%s after its context: %v", took, err)
			}
			wg.Wait()
		})
	}
}

// unixProxy is a socket in the file system, through which the address is reached.
func unixProxy(t *testing.T, name, to string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	t.Cleanup(func() {
		l.Close()
		wg.Wait()
	})
	wg.Go(func() {
		for {
			outside, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() { relay(outside, to) })
		}
	})
	return path
}

// Endpoints are taken in all forms that etcd's own client takes.
func TestFormsOfEndpoints(t *testing.T) {
	plain := etcdtest.Start(t).Endpoint()
	proxy := newTLSProxy(t, plain)
	address, secure := strings.TrimPrefix(plain, "http://"), strings.TrimPrefix(proxy.endpoint, "https://")
	socket := unixProxy(t, "etcd", address)
	secureSocket := unixProxy(t, "example.com", secure) // a name of the certificate
	for _, c := range []struct {
		endpoint string
		ca       bool
		refused  bool
	}{
		{endpoint: plain},
		{endpoint: plain, ca: true},
		{endpoint: address},
		{endpoint: proxy.endpoint, ca: true},
		{endpoint: proxy.endpoint, refused: true},
		{endpoint: secure, ca: true},
		{endpoint: secure, refused: true},
		{endpoint: "unix://" + socket},
		{endpoint: "unix:" + socket},
		{endpoint: "unix://" + secureSocket, ca: true},
		{endpoint: "unixs://" + secureSocket, ca: true},
		{endpoint: "unixs://" + secureSocket, refused: true},
	} {
		o := etcd.Options{Endpoints: []string{c.endpoint}}
		if c.ca {
			o.CAFile = proxy.caFile
		}
		r := open(t, o)
		if _, _, err := r.List(t.Context()); (err != nil) != c.refused {
			t.Errorf("%s, CA %t: %v", c.endpoint, c.ca, err)
		}
		_ = r.Close()
	}
}

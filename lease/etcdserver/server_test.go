package etcdserver_test

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	clientv3 "go.etcd.io/etcd/client/v3"

	"uvxlan/lease/etcdserver"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func client(t *testing.T, endpoint string) *clientv3.Client {
	t.Helper()
	c, err := clientv3.New(clientv3.Config{Endpoints: []string{endpoint}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

func start(t *testing.T, o etcdserver.Options) *etcdserver.Server {
	t.Helper()
	s, err := etcdserver.Start(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s
}

func TestSeveralAddressesAndRestart(t *testing.T) {
	var log bytes.Buffer
	o := etcdserver.Options{
		Dir:          filepath.Join(t.TempDir(), "etcd"),
		ListenClient: "http://127.0.0.1:0, http://127.0.0.2:0",
		Logger:       slog.New(slog.NewTextHandler(&log, nil)),
	}
	s := start(t, o)
	eps := s.Endpoints()
	if len(eps) != 2 || !strings.HasPrefix(eps[0], "http://127.0.0.1:") || !strings.HasPrefix(eps[1], "http://127.0.0.2:") || s.Endpoint() != eps[0] {
		t.Fatalf("endpoints %q are not in the configured order", eps)
	}
	if info, err := os.Stat(o.Dir); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("data directory: %v, %v", info.Mode(), err)
	}
	if _, err := client(t, eps[1]).Put(t.Context(), "k", "v"); err != nil {
		t.Fatal(err)
	}
	s.Close()

	o.ListenClient = eps[0]
	s = start(t, o)
	got, err := client(t, s.Endpoint()).Get(t.Context(), "k")
	if err != nil || len(got.Kvs) != 1 {
		t.Errorf("after restart: %v, %v", got, err)
	}
	s.Close()
	if log.Len() > 0 {
		t.Errorf("a healthy life was logged:\n%s", &log)
	}
}

func TestCloseDoesNotWaitForWatches(t *testing.T) {
	s := start(t, etcdserver.Options{Dir: t.TempDir(), ListenClient: "http://127.0.0.1:0"})
	w := client(t, s.Endpoint()).Watch(t.Context(), "k", clientv3.WithCreatedNotify())
	<-w
	closed := make(chan struct{})
	go func() { s.Close(); close(closed) }()
	select {
	case <-closed:
	case <-time.After(4 * time.Second): // a graceful stop takes 7 s
		t.Error("Close waits for a watch to end")
		<-closed
	}
}

func TestErrorsSayWhatToDo(t *testing.T) {
	s := start(t, etcdserver.Options{Dir: t.TempDir(), ListenClient: "http://127.0.0.1:0"})
	u, _ := url.Parse(s.Endpoint())
	for name, c := range map[string]struct {
		o    etcdserver.Options
		want string
	}{
		"no directory": {etcdserver.Options{}, "no data directory"},
		"port in use":  {etcdserver.Options{Dir: t.TempDir(), ListenClient: s.Endpoint()}, "address " + u.Host + " is in use"},
		"foreign":      {etcdserver.Options{Dir: t.TempDir(), ListenClient: "http://192.0.2.1:2379"}, "not on this host"},
		"no scheme":    {etcdserver.Options{Dir: t.TempDir(), ListenClient: "127.0.0.1:2379"}, "must be like http://127.0.0.1:2379"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := etcdserver.Start(t.Context(), c.o)
			if err == nil || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "\n") {
				t.Errorf("error %v, want one line with %q", err, c.want)
			}
		})
	}
}

func ExampleStart() {
	dir, err := os.MkdirTemp("", "etcd")
	if err != nil {
		panic(err)
	}
	defer func() { _ = os.RemoveAll(dir) }()
	s, err := etcdserver.Start(context.Background(), etcdserver.Options{Dir: dir, ListenClient: "http://127.0.0.1:0"})
	if err != nil {
		panic(err)
	}
	defer s.Close()
	fmt.Println(strings.HasPrefix(s.Endpoint(), "http://127.0.0.1:"))
	// Output: true
}

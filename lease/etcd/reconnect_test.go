package etcd_test

import (
	"context"
	"errors"
	"net"
	"sync/atomic"
	"testing"
	"time"

	"uvxlan/lease"
	"uvxlan/lease/etcd"
	"uvxlan/lease/etcd/etcdtest"
)

// A watch on a dropped connection ends, and what follows has another.
func TestReconnect(t *testing.T) {
	server := etcdtest.Start(t)
	var dialed atomic.Int32
	r, err := etcd.Open(etcd.Options{Endpoints: []string{server.Endpoint()}, Dial: func(ctx context.Context, address string) (net.Conn, error) {
		dialed.Add(1)
		var d net.Dialer
		return d.DialContext(ctx, "tcp", address)
	}})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	_, revision, err := r.List(ctx)
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- r.Watch(ctx, revision+1, func(lease.Update) {}) }()
	before := dialed.Load()
	for dropped := false; !dropped; {
		r.Reconnect() // again if the watch had not begun
		select {
		case err := <-ended:
			if dropped = true; !errors.Is(err, lease.ErrUnavailable) {
				t.Errorf("the watch ended with %v", err)
			}
		case <-time.After(50 * time.Millisecond):
		}
	}
	for {
		_, _, err := r.List(ctx)
		if err == nil {
			break
		}
		if !errors.Is(err, lease.ErrUnavailable) {
			t.Fatal(err)
		}
	}
	if dialed.Load() == before {
		t.Error("there is no other connection")
	}
}

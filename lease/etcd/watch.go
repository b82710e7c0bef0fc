package etcd

import (
	"context"
	"errors"
	"slices"
	"sync"

	"google.golang.org/grpc"
	"google.golang.org/grpc/connectivity"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	"uvxlan/lease"
)

// errDisconnected ends a watch whose connection is gone. The client would
// resume it silently, however long that took; the caller wants to know.
// errEnded is for one that etcd ended without a word.
var (
	errDisconnected = errors.New("the connection is lost")
	errEnded        = errors.New("the watch has ended")
)

// Watch implements [lease.Registry]. A server that lost its leader counts as
// one that doesn't answer.
func (r *Registry) Watch(ctx context.Context, from int64, report func(lease.Update)) error {
	c, err := r.connect()
	if err != nil {
		return r.words(ctx, "watch leases", err)
	}
	watching, cancel := context.WithCancelCause(ctx)
	var wg sync.WaitGroup
	wg.Go(func() {
		if disconnected(watching, c.ActiveConnection()) {
			cancel(r.unavailable(errDisconnected.Error()))
		}
	})
	w := clientv3.NewWatchFromWatchClient(gatherer{pb.NewWatchClient(c.ActiveConnection()), &wg}, c)
	err = r.follow(watching, w, from, report)
	if err == nil {
		err = context.Cause(watching)
	}
	if err == nil {
		err = r.unavailable(errEnded.Error())
	}
	cancel(nil)
	_ = w.Close() // reports no more than that it was cancelled
	wg.Wait()
	return r.words(ctx, "watch leases", err)
}

// follow follows the leases and the configuration. It returns nil if ctx ended.
func (r *Registry) follow(ctx context.Context, w clientv3.Watcher, from int64, report func(lease.Update)) error {
	ctx = clientv3.WithRequireLeader(ctx)
	leases := w.Watch(ctx, r.subnetsKey(), clientv3.WithPrefix(), clientv3.WithRev(from))
	config := w.Watch(ctx, r.configKey(), clientv3.WithRev(from))
	for {
		var resp clientv3.WatchResponse
		var ok bool
		read := r.update
		select {
		case resp, ok = <-leases:
		case resp, ok = <-config:
			read = configUpdate
		}
		if err := resp.Err(); err != nil || !ok {
			return err
		}
		if u := read(resp); len(u.Leases)+len(u.Deleted) > 0 || u.Config != nil {
			report(u)
		}
	}
}

// configUpdate is the last of the configuration's changes in a response.
func configUpdate(resp clientv3.WatchResponse) lease.Update {
	u := lease.Update{Revision: resp.Header.Revision}
	if n := len(resp.Events); n > 0 {
		u.Config = append([]byte{}, resp.Events[n-1].Kv.Value...) // a deletion has none
	}
	return u
}

// disconnected waits until the connection that is there, or is being made, is
// gone; false if ctx ends first.
func disconnected(ctx context.Context, conn *grpc.ClientConn) bool {
	for {
		switch s := conn.GetState(); s {
		case connectivity.TransientFailure, connectivity.Shutdown:
			return true
		case connectivity.Ready:
			return conn.WaitForStateChange(ctx, s)
		default:
			if !conn.WaitForStateChange(ctx, s) {
				return false
			}
		}
	}
}

// update gathers a response's events; of several for one subnet the last
// counts.
func (r *Registry) update(resp clientv3.WatchResponse) lease.Update {
	u := lease.Update{Revision: resp.Header.Revision}
	seen := make(map[string]bool, len(resp.Events))
	for _, e := range slices.Backward(resp.Events) {
		if seen[string(e.Kv.Key)] {
			continue
		}
		if e.Type == clientv3.EventTypeDelete {
			if l, err := r.subnets(e.Kv); err == nil {
				l.Revision = e.Kv.ModRevision
				u.Deleted = append(u.Deleted, l)
				seen[string(e.Kv.Key)] = true
			}
			continue
		}
		if l, ok := r.read(e.Kv); ok {
			u.Leases = append(u.Leases, l)
			seen[string(e.Kv.Key)] = true
		}
	}
	return u
}

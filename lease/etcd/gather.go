package etcd

import (
	"context"
	"sync"

	"google.golang.org/grpc"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
)

// gatherer is a [pb.WatchClient] whose streams put together what has come while
// the receiver was busy. etcd sends a response for each change, which the client
// hands from goroutine to goroutine.
type gatherer struct {
	pb.WatchClient
	wg *sync.WaitGroup // of the streams' goroutines, which end with their contexts
}

// Watch implements [pb.WatchClient].
func (g gatherer) Watch(ctx context.Context, opts ...grpc.CallOption) (pb.Watch_WatchClient, error) {
	s, err := g.WatchClient.Watch(ctx, opts...)
	if err != nil {
		return nil, err
	}
	out := &gathered{Watch_WatchClient: s}
	out.more.L = &out.mu
	g.wg.Go(out.receive)
	return out, nil
}

// gathered is a stream of fewer and longer responses.
type gathered struct {
	pb.Watch_WatchClient

	mu    sync.Mutex
	more  sync.Cond           // queue or err has changed
	queue []*pb.WatchResponse // guarded by mu, as is err
	err   error               // the stream's end, after the queue's
}

func (g *gathered) receive() {
	for {
		resp, err := g.Watch_WatchClient.Recv()
		g.put(resp, err)
		if err != nil {
			return
		}
	}
}

func (g *gathered) put(resp *pb.WatchResponse, err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	defer g.more.Signal()
	if err != nil {
		g.err = err
		return
	}
	if n := len(g.queue); n > 0 && mergeable(g.queue[n-1], resp) {
		last := g.queue[n-1]
		last.Header, last.Events = resp.Header, append(last.Events, resp.Events...)
		return
	}
	g.queue = append(g.queue, resp)
}

// mergeable tells whether both are of one watch and have nothing but events.
func mergeable(a, b *pb.WatchResponse) bool {
	return a.WatchId == b.WatchId && onlyEvents(a) && onlyEvents(b)
}

func onlyEvents(r *pb.WatchResponse) bool {
	return len(r.Events) > 0 && !r.Created && !r.Canceled && r.CompactRevision == 0
}

// Recv returns the next response, with the events of those that came after it.
func (g *gathered) Recv() (*pb.WatchResponse, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for len(g.queue) == 0 && g.err == nil {
		g.more.Wait()
	}
	if len(g.queue) == 0 {
		return nil, g.err
	}
	resp := g.queue[0]
	g.queue = g.queue[1:]
	return resp, nil
}

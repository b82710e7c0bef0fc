package etcd_test

import (
	"context"
	"errors"
	"io"
	"slices"
	"sync"
	"testing"
	"testing/synctest"

	"google.golang.org/grpc"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"

	"uvxlan/lease/etcd"
)

// script is a server's part in a watch; its end is the stream's.
type script chan *pb.WatchResponse

func (s script) Watch(context.Context, ...grpc.CallOption) (pb.Watch_WatchClient, error) {
	return scripted{s: s}, nil
}

type scripted struct {
	pb.Watch_WatchClient
	s script
}

func (s scripted) Recv() (*pb.WatchResponse, error) {
	if resp, ok := <-s.s; ok {
		return resp, nil
	}
	return nil, io.EOF
}

func events(watch int64, revisions ...int64) *pb.WatchResponse {
	r := &pb.WatchResponse{WatchId: watch, Header: &pb.ResponseHeader{Revision: revisions[len(revisions)-1]}}
	for _, rev := range revisions {
		r.Events = append(r.Events, &mvccpb.Event{Kv: &mvccpb.KeyValue{ModRevision: rev}})
	}
	return r
}

// What comes while nobody receives is put together, in order, but for what has
// more to say than events.
func TestWatchIsGathered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, wg := make(script), &sync.WaitGroup{}
		stream, err := etcd.Gather(s, wg).Watch(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		compacted, created := events(1, 9), &pb.WatchResponse{Created: true}
		compacted.CompactRevision = 8
		for _, r := range []*pb.WatchResponse{
			created, events(1, 3), events(1, 4, 5), events(1, 6), events(2, 6), events(1, 7), compacted, events(1, 10),
		} {
			s <- r
		}
		close(s)
		synctest.Wait()
		for _, want := range [][]int64{nil, {3, 4, 5, 6}, {6}, {7}, {9}, {10}} {
			r, err := stream.Recv()
			if err != nil {
				t.Fatal(err)
			}
			var got []int64
			for _, e := range r.Events {
				got = append(got, e.Kv.ModRevision)
			}
			if !slices.Equal(got, want) || len(got) > 0 && r.Header.Revision != got[len(got)-1] {
				t.Errorf("received %v at %v, want %v", got, r.Header, want)
			}
		}
		for range 2 {
			if _, err := stream.Recv(); !errors.Is(err, io.EOF) {
				t.Errorf("at its end the stream says %v", err)
			}
		}
		wg.Wait()
	})
}

func TestGatheringWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, wg := make(script), &sync.WaitGroup{}
		stream, err := etcd.Gather(s, wg).Watch(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		got := make(chan int64)
		go func() {
			defer close(got)
			for {
				r, err := stream.Recv()
				if err != nil {
					return
				}
				got <- r.Header.Revision
			}
		}()
		for rev := range int64(3) {
			synctest.Wait()
			s <- events(1, rev)
			if r := <-got; r != rev {
				t.Errorf("received %d, want %d", r, rev)
			}
		}
		close(s)
		if r, more := <-got; more {
			t.Errorf("received %d at the end", r)
		}
		wg.Wait()
	})
}

package etcdserver

import (
	"context"

	"google.golang.org/grpc"
)

// endWith ends streams, which are watches and keep-alives, when ctx ends. A
// graceful stop of etcd would wait seconds for clients to hang up.
func endWith(ctx context.Context) grpc.StreamServerInterceptor {
	return func(srv any, stream grpc.ServerStream, _ *grpc.StreamServerInfo, handle grpc.StreamHandler) error {
		own, cancel := context.WithCancel(stream.Context())
		defer cancel()
		defer context.AfterFunc(ctx, cancel)()
		return handle(srv, endable{stream, own})
	}
}

type endable struct {
	grpc.ServerStream
	ctx context.Context
}

func (s endable) Context() context.Context { return s.ctx }

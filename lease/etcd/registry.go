package etcd

import (
	"context"
	"fmt"
	"net"
	"sync"
	"time"

	"google.golang.org/grpc"

	clientv3 "go.etcd.io/etcd/client/v3"

	"uvxlan/lease"
)

var _ lease.Registry = (*Registry)(nil)

// Registry is a cluster's leases in etcd.
type Registry struct {
	opts     Options // immutable, as are files, config, cancel and pageSize
	files    *certificates
	config   clientv3.Config
	cancel   context.CancelFunc // ends the client and its calls
	pageSize int64              // most leases to be read at once
	junk     junk
	v2       v2

	mu     sync.Mutex
	client *clientv3.Client // guarded by mu, as is closed
	closed bool
}

// Open checks the options and reads the files they name. It doesn't wait for
// etcd: the first call connects.
func Open(o Options) (*Registry, error) {
	o, err := o.normal()
	if err != nil {
		return nil, err
	}
	files, err := newCertificates(o)
	if err != nil {
		return nil, err
	}
	c := o.clientConfig(files)
	r := &Registry{opts: o, files: files, pageSize: pageSize, junk: junk{log: o.Logger}}
	c.Context, r.cancel = context.WithCancel(context.Background())
	r.config = c
	return r, nil
}

// Close ends the connection, and with it every call; later ones return
// net.ErrClosed. It is idempotent.
func (r *Registry) Close() error {
	r.cancel()
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.client != nil && !r.closed {
		_ = r.client.Close() // reports no more than that it was cancelled
	}
	r.closed = true
	return nil
}

// connect returns the client. It is made on first use, since it opens
// connections.
func (r *Registry) connect() (*clientv3.Client, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return nil, fmt.Errorf("etcd: %w", net.ErrClosed)
	}
	if r.client != nil {
		return r.client, nil
	}
	c, err := clientv3.New(r.config)
	if err != nil {
		return nil, err
	}
	r.client = c
	return c, nil
}

// call runs op with a client and a time limit and puts its error in words.
func (r *Registry) call(ctx context.Context, what string, op func(context.Context, *clientv3.Client) error) error {
	return r.unlimited(ctx, what, func(ctx context.Context, c *clientv3.Client) error {
		limited, cancel := context.WithTimeout(ctx, callTimeout)
		defer cancel()
		return op(limited, c)
	})
}

// unlimited is call without a time limit.
func (r *Registry) unlimited(ctx context.Context, what string, op func(context.Context, *clientv3.Client) error) error {
	c, err := r.connect()
	if err == nil {
		err = op(ctx, c)
	}
	return r.words(ctx, what, err)
}

// failFast makes a call fail with the reason when no endpoint can be reached;
// by default it would wait, and its time limit would hide the reason.
func failFast(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
	return invoke(ctx, method, req, reply, cc, append(opts, grpc.WaitForReady(false))...)
}

// Skipped returns how many entries under the prefix weren't leases and were
// left out, each version of an entry counted once.
func (r *Registry) Skipped() uint64 { return r.junk.total() }

func (r *Registry) configKey() string  { return r.opts.Prefix + "/config" }
func (r *Registry) subnetsKey() string { return r.opts.Prefix + "/subnets/" }

func (r *Registry) key(l lease.Lease) string { return r.subnetsKey() + l.Key() }

func seconds(ttl time.Duration) int64 {
	return max(1, int64(ttl/time.Second))
}

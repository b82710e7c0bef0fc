package etcd

import (
	"context"
	"errors"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// cleanupTimeout bounds what is done for tidiness alone: an etcd lease that
// isn't revoked lapses by itself.
const cleanupTimeout = 2 * time.Second

// alive extends an etcd lease and reports whether it lives on and has the
// wanted length. With an error nobody knows.
func alive(ctx context.Context, c *clientv3.Client, id int64, ttl time.Duration) (bool, error) {
	if id == 0 {
		return false, nil
	}
	resp, err := c.KeepAliveOnce(ctx, clientv3.LeaseID(id))
	switch {
	case errors.Is(err, rpctypes.ErrLeaseNotFound):
		return false, nil
	case err != nil:
		return false, err
	}
	return resp.TTL == seconds(ttl), nil
}

// drop revokes an etcd lease unless some other entry hangs on it.
func drop(ctx context.Context, c *clientv3.Client, id int64) {
	if id == 0 {
		return
	}
	ctx, cancel := cleanup(ctx)
	defer cancel()
	resp, err := c.TimeToLive(ctx, clientv3.LeaseID(id), clientv3.WithAttachedKeys())
	if err == nil && len(resp.Keys) == 0 {
		revoke(ctx, c, id)
	}
}

func revoke(ctx context.Context, c *clientv3.Client, id int64) {
	ctx, cancel := cleanup(ctx)
	defer cancel()
	_, _ = c.Revoke(ctx, clientv3.LeaseID(id))
}

// cleanup outlives a caller that gave up, or nothing would ever be tidied then.
func cleanup(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.WithoutCancel(ctx), cleanupTimeout)
}

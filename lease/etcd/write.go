package etcd

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"uvxlan/lease"
)

// SetConfig writes the network configuration as it is given. Hosts that run
// already keep the one they started with.
func (r *Registry) SetConfig(ctx context.Context, config []byte) error {
	return r.call(ctx, "write configuration", func(ctx context.Context, c *clientv3.Client) error {
		_, err := c.Put(ctx, r.configKey(), string(config))
		return err
	})
}

// Create implements [lease.Registry]. The IPv4 subnet counts: it is taken also
// by an entry that has another IPv6 subnet beside it.
func (r *Registry) Create(ctx context.Context, l lease.Lease, ttl time.Duration) (lease.Lease, error) {
	err := r.call(ctx, "create lease "+l.Key(), func(ctx context.Context, c *clientv3.Client) (err error) {
		v4 := lease.Lease{Subnet: l.Subnet}
		free := clientv3.Compare(clientv3.CreateRevision(r.key(v4)), "=", 0).WithPrefix()
		l.ID = 0
		l, err = r.put(ctx, c, l, ttl, free, lease.ErrExists)
		l.Created = l.Revision
		return err
	})
	return l, err
}

// Update implements [lease.Registry]. It keeps the etcd lease if that still
// lives and has the right length.
func (r *Registry) Update(ctx context.Context, l lease.Lease, ttl time.Duration) (lease.Lease, error) {
	err := r.call(ctx, "update lease "+l.Key(), func(ctx context.Context, c *clientv3.Client) (err error) {
		l, err = r.replace(ctx, c, l, ttl)
		return err
	})
	return l, err
}

// Renew implements [lease.Registry]. It keeps the etcd lease alive and leaves
// the entry alone, so that no peer is disturbed; only if the etcd lease is gone
// or of another length the entry is written again.
func (r *Registry) Renew(ctx context.Context, l lease.Lease, ttl time.Duration) (lease.Lease, error) {
	err := r.call(ctx, "renew lease "+l.Key(), func(ctx context.Context, c *clientv3.Client) error {
		resp, err := c.Get(ctx, r.key(l), clientv3.WithKeysOnly())
		if err != nil {
			return err
		}
		if len(resp.Kvs) == 0 || resp.Kvs[0].ModRevision != l.Revision {
			return lease.ErrConflict
		}
		if l.Permanent {
			return nil
		}
		if lives, err := alive(ctx, c, l.ID, ttl); err != nil {
			return err
		} else if lives {
			l.Expires = time.Now().Add(ttl)
			return nil
		}
		l, err = r.replace(ctx, c, l, ttl)
		return err
	})
	return l, err
}

// Delete implements [lease.Registry].
func (r *Registry) Delete(ctx context.Context, l lease.Lease) error {
	return r.call(ctx, "delete lease "+l.Key(), func(ctx context.Context, c *clientv3.Client) error {
		resp, err := c.Txn(ctx).If(r.unchanged(l)).Then(clientv3.OpDelete(r.key(l))).Commit()
		if err != nil {
			return err
		}
		if !resp.Succeeded {
			return lease.ErrConflict
		}
		drop(ctx, c, l.ID)
		return nil
	})
}

func (r *Registry) unchanged(l lease.Lease) clientv3.Cmp {
	return clientv3.Compare(clientv3.ModRevision(r.key(l)), "=", l.Revision)
}

func (r *Registry) replace(ctx context.Context, c *clientv3.Client, l lease.Lease, ttl time.Duration) (lease.Lease, error) {
	old := l.ID
	if l.Permanent {
		l.ID = 0
	} else if lives, err := alive(ctx, c, old, ttl); err != nil {
		return l, err
	} else if !lives {
		l.ID = 0
	}
	l, err := r.put(ctx, c, l, ttl, r.unchanged(l), lease.ErrConflict)
	if err == nil && old != l.ID {
		drop(ctx, c, old)
	}
	return l, err
}

// put writes the entry if the condition holds, else returns otherwise. It
// grants an etcd lease if the entry needs one and has none, and takes it back
// if nothing came of it.
func (r *Registry) put(ctx context.Context, c *clientv3.Client, l lease.Lease, ttl time.Duration, condition clientv3.Cmp, otherwise error) (lease.Lease, error) {
	value, err := json.Marshal(l.Attrs)
	if err != nil {
		return l, fmt.Errorf("encode attributes: %w", err)
	}
	granted := !l.Permanent && l.ID == 0
	if granted {
		grant, err := c.Grant(ctx, seconds(ttl))
		if err != nil {
			return l, err
		}
		l.ID = int64(grant.ID)
	}
	op := clientv3.OpPut(r.key(l), string(value), clientv3.WithLease(clientv3.LeaseID(l.ID)))
	resp, err := c.Txn(ctx).If(condition).Then(op).Commit()
	if err == nil && !resp.Succeeded {
		err = otherwise
	}
	if err != nil {
		if granted {
			revoke(ctx, c, l.ID)
		}
		return l, err
	}
	l.Revision, l.Expires = resp.Header.Revision, time.Time{}
	if !l.Permanent {
		l.Expires = time.Now().Add(ttl)
	}
	return l, nil
}

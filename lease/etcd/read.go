package etcd

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"

	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	"uvxlan/lease"
)

// Config implements [lease.Registry].
func (r *Registry) Config(ctx context.Context) ([]byte, error) {
	var data []byte
	err := r.call(ctx, "read configuration", func(ctx context.Context, c *clientv3.Client) error {
		resp, err := c.Get(ctx, r.configKey())
		if err != nil {
			return err
		}
		if len(resp.Kvs) == 0 {
			return fmt.Errorf(`%w: etcd has no key %s; write one, such as {"Network":"10.5.0.0/16","Backend":{"Type":"vxlan"}}`, lease.ErrNoConfig, r.configKey())
		}
		data = resp.Kvs[0].Value
		return nil
	})
	return data, err
}

// List implements [lease.Registry]. It makes one call, however many leases
// there are.
func (r *Registry) List(ctx context.Context) (all []lease.Lease, revision int64, err error) {
	err = r.call(ctx, "list leases", func(ctx context.Context, c *clientv3.Client) error {
		resp, err := c.Get(ctx, r.subnetsKey(), clientv3.WithPrefix())
		if err != nil {
			return err
		}
		all, revision = make([]lease.Lease, 0, len(resp.Kvs)), resp.Header.Revision
		for _, kv := range resp.Kvs {
			if l, ok := r.read(kv); ok {
				all = append(all, l)
			}
		}
		return nil
	})
	return all, revision, err
}

// read returns the lease that an entry is. One that is none is junk.
func (r *Registry) read(kv *mvccpb.KeyValue) (lease.Lease, bool) {
	l, err := r.subnets(kv)
	if err == nil {
		err = json.Unmarshal(kv.Value, &l.Attrs)
	}
	if err != nil {
		r.junk.add(string(kv.Key), kv.ModRevision, err)
		return lease.Lease{}, false
	}
	l.Revision, l.ID, l.Permanent = kv.ModRevision, kv.Lease, kv.Lease == 0
	return l, true
}

// subnets reads the key alone, which is all that a deletion has.
func (r *Registry) subnets(kv *mvccpb.KeyValue) (l lease.Lease, err error) {
	l.Subnet, l.IPv6Subnet, err = lease.ParseKey(strings.TrimPrefix(string(kv.Key), r.subnetsKey()))
	return l, err
}

package etcd

import (
	"context"
	"errors"
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
			return fmt.Errorf("%w: etcd has no key %s; %s", lease.ErrNoConfig, r.configKey(), r.howToWrite(ctx))
		}
		data = resp.Kvs[0].Value
		return nil
	})
	return data, err
}

// listing is what has been read of the leases, all at one revision.
type listing struct {
	all      []lease.Lease
	revision int64  // of the first page
	from     string // key that the next page begins at
	more     bool   // there is a next page
}

// List implements [lease.Registry]. It reads a page at a time, so that neither a
// slow line nor the limits of what is between makes many leases unreadable.
// etcd may compact the revision meanwhile: then it begins again.
func (r *Registry) List(ctx context.Context) (all []lease.Lease, revision int64, err error) {
	for range tries {
		l := &listing{from: r.subnetsKey(), more: true}
		for err = nil; l.more && err == nil; {
			err = r.call(ctx, "list leases", func(ctx context.Context, c *clientv3.Client) error {
				return r.page(ctx, c, l)
			})
		}
		if err == nil {
			return l.all, l.revision, nil
		}
		if !errors.Is(err, lease.ErrCompacted) {
			break
		}
	}
	return nil, 0, err
}

// page reads the next of a listing's pages.
func (r *Registry) page(ctx context.Context, c *clientv3.Client, l *listing) error {
	end := clientv3.GetPrefixRangeEnd(r.subnetsKey())
	resp, err := c.Get(ctx, l.from, clientv3.WithRange(end), clientv3.WithLimit(r.pageSize), clientv3.WithRev(l.revision))
	if err != nil {
		return err
	}
	if l.revision == 0 {
		l.revision, l.all = resp.Header.Revision, make([]lease.Lease, 0, resp.Count)
	}
	for _, kv := range resp.Kvs {
		if one, ok := r.read(kv); ok {
			l.all = append(l.all, one)
		}
		l.from = string(kv.Key) + "\x00"
	}
	l.more = resp.More
	return nil
}

// read returns the lease that an entry is; false if its key is none's. What isn't a
// lease is junk.
func (r *Registry) read(kv *mvccpb.KeyValue) (lease.Lease, bool) {
	l, err := r.subnets(kv)
	isKey := err == nil
	if isKey {
		l.Revision, l.Created, l.ID, l.Permanent = kv.ModRevision, kv.CreateRevision, kv.Lease, kv.Lease == 0
		err = l.Attrs.UnmarshalJSON(kv.Value)
		l.Damaged = err != nil
	}
	if err != nil {
		r.junk.add(string(kv.Key), kv.ModRevision, err)
	}
	return l, isKey
}

// subnets reads the key alone, which is all that a deletion has.
func (r *Registry) subnets(kv *mvccpb.KeyValue) (l lease.Lease, err error) {
	l.Subnet, l.IPv6Subnet, err = lease.ParseKey(strings.TrimPrefix(string(kv.Key), r.subnetsKey()))
	return l, err
}

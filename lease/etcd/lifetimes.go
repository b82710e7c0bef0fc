package etcd

import (
	"context"
	"time"

	"golang.org/x/sync/errgroup"

	clientv3 "go.etcd.io/etcd/client/v3"

	"uvxlan/lease"
)

// lifetimeCalls is how many of the calls of Lifetimes are on their way at once.
const lifetimeCalls = 32

// Lifetimes asks etcd until when leases last, a call for each, and sets Expires and
// Renewed of those in all that have a time to live. It stops at the first error and
// when ctx ends: then those that it didn't come to are left as they are.
func (r *Registry) Lifetimes(ctx context.Context, all []lease.Lease) error {
	return r.unlimited(ctx, "ask for the leases' ends", func(ctx context.Context, c *clientv3.Client) error {
		g, ctx := errgroup.WithContext(ctx)
		g.SetLimit(lifetimeCalls)
		for i := range all {
			if all[i].ID == 0 {
				continue
			}
			if ctx.Err() != nil {
				break
			}
			g.Go(func() error { return lifetime(ctx, c, &all[i]) })
		}
		return g.Wait()
	})
}

// lifetime asks for one. The answer's TTL is -1 for an etcd lease that has just
// lapsed.
func lifetime(ctx context.Context, c *clientv3.Client, l *lease.Lease) error {
	resp, err := c.TimeToLive(ctx, clientv3.LeaseID(l.ID))
	if err != nil || resp.TTL < 0 {
		return err
	}
	l.Expires = time.Now().Add(time.Duration(resp.TTL) * time.Second)
	l.Renewed = l.Expires.Add(-time.Duration(resp.GrantedTTL) * time.Second)
	return nil
}

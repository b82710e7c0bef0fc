package system

import (
	"context"
	"fmt"
	"time"

	"uvxlan/bench/lab"
	"uvxlan/lease"
	"uvxlan/lease/etcd"
)

func init() {
	register(func(_ context.Context, e Env) (all []System) {
		for _, d := range e.Daemons {
			all = append(all,
				System{
					Name: d.Name("kernel-to-uvxlan"), About: "a kernel VXLAN host sends to a uvxlan host", rank: mixed,
					Start: func(ctx context.Context, s *Site) error { return startMixed(ctx, s, d, s.A, s.B) },
				},
				System{
					Name: d.Name("uvxlan-to-kernel"), About: "a uvxlan host sends to a kernel VXLAN host", rank: mixed,
					Start: func(ctx context.Context, s *Site) error { return startMixed(ctx, s, d, s.B, s.A) },
				},
			)
		}
		return all
	})
}

// startMixed joins a host that has kernel VXLAN and one that has uvxlan.
func startMixed(ctx context.Context, s *Site, d Daemon, kernel, user *lab.Host) error {
	if _, err := startUvxlan(ctx, s, s.cluster(d), vxlanConfig, []*lab.Host{user}); err != nil {
		return err
	}
	v, err := addVTEP(kernel)
	if err != nil {
		return err
	}
	registry, err := s.cluster(d).Open()
	if err != nil {
		return err
	}
	defer registry.Close()
	own, err := v.lease()
	if err != nil {
		return err
	}
	if _, err := registry.Create(ctx, own, time.Hour); err != nil {
		return err
	}
	theirs, err := leaseOf(ctx, registry, user)
	if err != nil {
		return err
	}
	return v.learnLease(theirs)
}

// leaseOf reads the lease of a host whose daemon is ready.
func leaseOf(ctx context.Context, r *etcd.Registry, h *lab.Host) (lease.Lease, error) {
	leases, _, err := r.List(ctx)
	if err != nil {
		return lease.Lease{}, err
	}
	for _, l := range leases {
		if l.Subnet == h.Subnet {
			return l, nil
		}
	}
	return lease.Lease{}, fmt.Errorf("no lease for %s of %s", h.Subnet, h.Name)
}

package daemon

import (
	"cmp"
	"context"
	"errors"

	"golang.org/x/sync/errgroup"

	"uvxlan/cmd/internal/claim"
	"uvxlan/cmd/internal/extiface"
	"uvxlan/cmd/internal/handover"
	"uvxlan/cmd/internal/health"
	"uvxlan/cmd/internal/host"
	"uvxlan/cmd/internal/leaseadmin"
	"uvxlan/cmd/internal/peerlog"
	"uvxlan/cmd/internal/subnetfile"
	"uvxlan/lease"
)

// registry is where the leases are.
type registry interface {
	leaseadmin.Registry
	// Skipped counts what was left out of the leases.
	Skipped() uint64
	// Reconnect makes connections from the host's address as it is.
	Reconnect()
}

// service is the daemon's work: the host's lease, what carries the packets and what
// is on the host for it.
type service struct {
	opts     Options
	monitor  *monitor
	leases   registry
	underlay *uplink
	before   *handover.State // what the daemon before handed over, or nil

	// in the order in which they come to be
	manager *lease.Manager
	config  *lease.Config
	claim   *claim.Claim
	rules   rules
	keeper  *host.Keeper
	network backend
	health  *health.Monitor
	own     lease.Lease
}

// serve opens what can fail before it takes a lease, so that a host that can't
// carry packets never holds a subnet.
//
// With what the daemon before handed over, there is a lease, and packets flow.
func serve(ctx context.Context, o Options, ext extiface.Interface, leases registry, r *reloader, before *handover.State) (after *handover.State, err error) {
	s := &service{opts: o, monitor: r.monitor, leases: leases, before: before}
	s.underlay = &uplink{log: o.Logger, wanted: o.Interface, moved: s.move, now: ext}
	defer func() { s.close(after) }()
	if err := s.readConfig(ctx); err != nil {
		return nil, err
	}
	if err := s.open(); err != nil {
		return nil, err
	}
	if err := s.takeLease(ctx); err != nil {
		return nil, err
	}
	if err := s.network.Start(s.own); err != nil {
		return nil, err
	}
	s.keeper.Add(s.network.Parts()...)
	s.health = health.New(health.Config{Network: s.network, Interval: s.opts.ProbeInterval, Logger: s.opts.Logger})
	s.monitor.set(func(m *monitor) { m.network, m.peerHealth = s.network, s.health })
	return s.run(ctx, r)
}

// readConfig reads what all else depends on. What was handed over goes on with the
// configuration and the addresses that it was made by.
func (s *service) readConfig(ctx context.Context) (err error) {
	earlier := previous(s.opts)
	s.manager, err = lease.NewManager(lease.Options{
		Registry: s.leases, Logger: s.opts.Logger, RenewMargin: s.opts.RenewMargin, Store: storeOf(s.opts), UseExpired: s.opts.UseExpired,
		Previous: earlier.Subnet, PreviousV6: earlier.SubnetV6, Patience: s.opts.patience,
	})
	if err != nil {
		return err
	}
	s.monitor.set(func(m *monitor) { m.manager = s.manager })
	if s.before != nil {
		s.manager.Resume()
		s.config = s.before.Config
		if s.before.IsOther() {
			err = s.checkConfig(ctx)
		}
	} else if s.config, err = s.manager.Config(ctx); err == nil {
		err = s.addIPv6(ctx)
	}
	s.underlay.ipv6 = err == nil && s.config.EnableIPv6
	return err
}

// addIPv6 gives the external interface its IPv6 address, if the network has IPv6.
func (s *service) addIPv6(ctx context.Context) error {
	if !s.config.EnableIPv6 {
		if s.opts.Interface.PublicIPv6.IsValid() {
			s.opts.Logger.Warn("-public-ipv6 has no effect: the network has no IPv6")
		}
		return nil
	}
	ext, err := s.underlay.now.AddIPv6(ctx, s.opts.Interface)
	if err != nil {
		return err
	}
	s.underlay.now = ext
	s.opts.Logger.Info("external IPv6 address", "name", ext.Name, "address", ext.AddressV6, "public_ipv6", ext.PublicIPv6)
	return nil
}

// open opens what may fail before there is a lease.
func (s *service) open() (err error) {
	if err := subnetfile.Prepare(s.opts.SubnetFile); err != nil {
		return err
	}
	if s.claim, err = claim.Networks(s.config.Networks(), s.claimed()...); err != nil {
		return err
	}
	if s.rules, err = openRules(s.opts, s.config); err != nil {
		return err
	}
	if s.keeper, err = host.Open(s.opts.Logger); err != nil {
		return err
	}
	if err := s.checkHidden(); err != nil {
		return err
	}
	ext := s.underlay.now
	s.monitor.set(func(m *monitor) { m.config, m.ext, m.keeper = s.config, ext, s.keeper })
	network, err := openBackend(s.opts, s.config, ext, s.keeper, s.before)
	if err != nil {
		return err
	}
	s.network = network
	return nil
}

// claimed are the claims of the daemon whose place is taken.
func (s *service) claimed() []string {
	if s.before == nil {
		return nil
	}
	return s.before.Claims
}

// checkHidden refuses no overlay that was handed over, since it carries packets.
func (s *service) checkHidden() error {
	if s.before != nil {
		return nil
	}
	return checkHidden(s.opts, s.config, s.underlay.now)
}

// takeLease acquires a lease, or keeps the one that was handed over: the manager finds
// out what has happened to it meanwhile.
func (s *service) takeLease(ctx context.Context) (err error) {
	if s.before != nil {
		s.own = s.before.Own
		err = s.publish() // the address may have changed while etcd was away
	} else {
		s.own, err = s.manager.Acquire(ctx, s.config, s.network.Attrs)
	}
	if err != nil {
		return err
	}
	s.opts.Logger.Info("lease", append(peerlog.Subnets(s.own), "expires", s.own.Expires)...)
	return recordNetworks(s.opts, s.config, s.own)
}

// publish has the other hosts know of our addresses as they are.
func (s *service) publish() error {
	attrs, err := s.network.Attrs(nil)
	if err != nil {
		return err
	}
	s.manager.Publish(attrs)
	return nil
}

// run carries packets, keeps lease and host as they should be and waits for the
// order to hand over, until ctx ends or one of them fails.
func (s *service) run(ctx context.Context, r *reloader) (after *handover.State, err error) {
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return s.keeper.Run(ctx) })
	group.Go(func() error {
		return s.network.Run(ctx, func() error { return s.ready(ctx) })
	})
	group.Go(func() error {
		return s.manager.Run(ctx, s.own, func(u lease.Update) {
			s.network.Apply(u)
			s.health.Changed()
		})
	})
	group.Go(func() error {
		s.health.Run(ctx)
		return nil
	})
	group.Go(func() error { return s.before.AwaitEnd(ctx) })
	group.Go(func() error {
		trim(ctx, s.opts.Logger, s.monitor.isReady)
		return nil
	})
	var reloaded, given, stored *handover.State
	group.Go(func() error {
		if reloaded = r.run(ctx); reloaded != nil {
			return errReloading
		}
		return nil
	})
	group.Go(func() error {
		var err error
		if given, err = s.offer(ctx, r); given != nil {
			return errReloading
		}
		return err
	})
	group.Go(func() error {
		if stored = s.store(ctx, r); stored != nil {
			return errReloading
		}
		return nil
	})
	err = group.Wait()
	if after = cmp.Or(reloaded, given, stored); after != nil {
		return after, nil
	}
	if (errors.Is(err, lease.ErrLeaseLost) || errors.Is(err, lease.ErrReassigned)) && !s.before.Borrowed() {
		withdraw(s.opts, s.config, s.own)
	}
	return nil, err
}

// close removes what shouldn't outlive the process; what is handed over stays, and
// what is still another daemon's.
func (s *service) close(after *handover.State) {
	borrowed := s.before.Borrowed()
	if s.network != nil && !borrowed {
		s.network.Close()
	}
	if s.network != nil && after == nil && !borrowed {
		host.RemoveBlackholes(s.opts.StateDir, s.opts.Logger)
		host.RestoreSysctls(s.opts.StateDir, s.opts.Logger)
	}
	if s.keeper != nil {
		s.keeper.Close()
	}
	if s.claim != nil {
		if err := s.claim.Close(); err != nil {
			s.opts.Logger.Warn("give up the claim of the networks", "error", err)
		}
	}
}

// previous is what an earlier run wrote to the subnet file, the zero File if
// there is none.
func previous(o Options) subnetfile.File {
	f, err := subnetfile.Read(o.SubnetFile)
	if err != nil {
		o.Logger.Warn("the earlier run's subnet is not known", "error", err)
	}
	return f
}

package daemon

import (
	"context"
	"errors"
	"net/netip"

	"golang.org/x/sync/errgroup"

	"uvxlan/cmd/internal/claim"
	"uvxlan/cmd/internal/extiface"
	"uvxlan/cmd/internal/handover"
	"uvxlan/cmd/internal/host"
	"uvxlan/cmd/internal/hoststate"
	"uvxlan/cmd/internal/logqueue"
	"uvxlan/cmd/internal/peerlog"
	"uvxlan/cmd/internal/subnetfile"
	"uvxlan/lease"
	"uvxlan/lease/etcd"
	"uvxlan/lease/etcdserver"
)

// Run is the daemon's life: it returns nil when t ends, after the device is gone,
// and otherwise an error of one line that says what to do. The lease stays in etcd,
// so that the next run has the same subnet.
//
// It is also what takes over from a daemon that reloads, and what stands in for it
// meanwhile; which of them it is, the environment tells.
func Run(t *handover.Termination, o Options) error {
	program, err := handover.Program()
	if err != nil {
		return err
	}
	before, main, err := handover.ReceiveState()
	if err != nil {
		return err
	}
	if main != nil {
		return explain(standby(o, before, main))
	}
	for {
		after, err := run(t, o, program, before)
		switch {
		case after == nil && t.Err() != nil && errors.Is(err, t.Err()):
			return nil
		case after == nil:
			return explain(err)
		}
		if o.LogQueue != nil {
			o.LogQueue.Flush(logqueue.LastWords) // what is left then is lost
		}
		if err = after.Exec(t, program); t.Err() == nil {
			o.Logger.Error("reload failed, this program goes on", "error", err)
		}
		before = after
	}
}

// run returns what is to be handed over if the daemon reloads; then all that is on
// the host stays. before is what the one before handed over, or nil.
func run(ctx context.Context, o Options, program string, before *handover.State) (after *handover.State, err error) {
	if err := checkCapability(); err != nil {
		return nil, err
	}
	lock, err := before.TakeLock(o.StateDir)
	if err != nil {
		return nil, err
	}
	defer func() {
		if after != nil {
			after.Keep(lock)
			return
		}
		lock.Close()
	}()
	if _, err := hoststate.Load(o.StateDir); err != nil {
		return nil, err
	}
	if before == nil {
		host.RestoreSysctls(o.StateDir, o.Logger)
		host.RemoveBlackholes(o.StateDir, o.Logger)
	}
	m := newMonitor()
	if before != nil {
		m.started = before.Started
	}
	stop, err := m.open(ctx, o, before)
	if err != nil {
		return nil, err
	}
	defer func() { stop(after) }()
	ext, err := chooseInterface(o, before)
	if err != nil {
		return nil, err
	}
	if o.EmbeddedEtcd {
		server, err := startEtcd(ctx, &o, ext)
		if err != nil {
			return nil, err
		}
		defer server.Close()
	}
	o.Etcd.Logger = o.Logger
	registry, err := etcd.Open(o.Etcd)
	if err != nil {
		return nil, err
	}
	defer registry.Close()
	m.set(func(m *monitor) { m.ext, m.skipped = ext, registry.Skipped })
	return serve(ctx, o, ext, registry, &reloader{opts: o, program: program, monitor: m}, before)
}

// chooseInterface keeps the one that the inherited sockets are bound to.
func chooseInterface(o Options, before *handover.State) (extiface.Interface, error) {
	if before != nil {
		return before.Interface, nil
	}
	ext, err := extiface.Choose(o.Interface)
	if err == nil {
		o.Logger.Info("external interface", "name", ext.Name, "address", ext.Address, "public_ip", ext.PublicIP, "mtu", int(ext.MTU))
	}
	return ext, err
}

// startEtcd runs the embedded etcd on loopback and on the address that the
// other hosts know, and makes it ours.
func startEtcd(ctx context.Context, o *Options, ext extiface.Interface) (*etcdserver.Server, error) {
	own := "http://" + netip.AddrPortFrom(ext.Address, 2379).String()
	server, err := etcdserver.Start(ctx, etcdserver.Options{
		Dir:             hoststate.EtcdDir(o.StateDir),
		ListenClient:    "http://127.0.0.1:2379," + own,
		AdvertiseClient: own,
		Logger:          o.Logger,
	})
	if err != nil {
		return nil, err
	}
	o.Etcd.Endpoints = []string{server.Endpoint()}
	o.Logger.Info("embedded etcd is up; start the other hosts with", "etcd-endpoints", own)
	return server, nil
}

// registry is where the leases are.
type registry interface {
	lease.Registry
	// Reconnect makes connections from the host's address as it is.
	Reconnect()
}

// serve opens what can fail before it takes a lease, so that a host that can't
// carry packets never holds a subnet.
//
// With what the daemon before handed over, there is a lease, and packets flow.
func serve(ctx context.Context, o Options, ext extiface.Interface, leases registry, r *reloader, before *handover.State) (after *handover.State, err error) {
	m := r.monitor
	manager, err := newManager(o, leases)
	if err != nil {
		return nil, err
	}
	m.set(func(m *monitor) { m.manager = manager })
	config, err := readConfig(ctx, manager, before)
	if err != nil {
		return nil, err
	}
	if ext, err = addIPv6(ctx, o, config, ext, before); err != nil {
		return nil, err
	}
	if err := subnetfile.Prepare(o.SubnetFile); err != nil {
		return nil, err
	}
	mine, err := claim.Networks(config.Networks())
	if err != nil {
		return nil, err
	}
	defer mine.Close()
	rules, err := openRules(o, config)
	if err != nil {
		return nil, err
	}
	keeper, err := host.Open(o.Logger)
	if err != nil {
		return nil, err
	}
	defer keeper.Close()
	m.set(func(m *monitor) { m.config, m.ext, m.keeper = config, ext, keeper })
	network, err := openBackend(o, config, ext, keeper, before)
	if err != nil {
		return nil, err
	}
	defer func() {
		network.Close()
		if after == nil {
			host.RestoreSysctls(o.StateDir, o.Logger)
		}
	}()
	own, err := acquire(ctx, manager, config, network, before)
	if err != nil {
		return nil, err
	}
	o.Logger.Info("lease", append(peerlog.Subnets(own), "expires", own.Expires)...)
	if err := recordNetworks(o, config, own); err != nil {
		return nil, err
	}
	if err := network.Start(own); err != nil {
		return nil, err
	}
	defer func() {
		if after == nil {
			host.RemoveBlackholes(o.StateDir, o.Logger)
		}
	}()
	keeper.Add(network.Parts()...)
	m.set(func(m *monitor) { m.network = network })
	h := hostOf{opts: o, config: config, own: own, keeper: keeper, network: network, rules: rules}
	h.underlay = &underlay{log: o.Logger, wanted: o.Interface, ipv6: config.EnableIPv6, now: ext}
	h.underlay.moved = func(ext extiface.Interface) error {
		if err := h.move(m, manager, ext); err != nil {
			return err
		}
		if before := h.underlay.current(); before.Address != ext.Address || before.AddressV6 != ext.AddressV6 {
			leases.Reconnect()
		}
		return nil
	}
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return keeper.Run(ctx) })
	group.Go(func() error {
		return network.Run(ctx, func() error { return h.ready(ctx, m.beReady) })
	})
	group.Go(func() error { return manager.Run(ctx, own, network.Apply) })
	group.Go(func() error { return before.AwaitEnd(ctx) })
	group.Go(func() error {
		if after = r.run(ctx); after != nil {
			return errReloading
		}
		return nil
	})
	if err = group.Wait(); after != nil {
		return after, nil
	}
	if errors.Is(err, lease.ErrLeaseLost) {
		withdraw(o, config, own)
	}
	return nil, err
}

func newManager(o Options, leases registry) (*lease.Manager, error) {
	earlier := previous(o)
	return lease.NewManager(lease.Options{
		Registry: leases, Logger: o.Logger, RenewMargin: o.RenewMargin, Store: storeOf(o), UseExpired: o.UseExpired,
		Previous: earlier.Subnet, PreviousV6: earlier.SubnetV6,
	})
}

// readConfig keeps the one that the inherited device was made by.
func readConfig(ctx context.Context, manager *lease.Manager, before *handover.State) (*lease.Config, error) {
	if before != nil {
		manager.Resume()
		return before.Config, nil
	}
	return manager.Config(ctx)
}

// acquire keeps the lease that was handed over; what happened to it meanwhile, the
// manager finds out.
func acquire(ctx context.Context, manager *lease.Manager, config *lease.Config, network backend, before *handover.State) (lease.Lease, error) {
	if before != nil {
		return before.Own, nil
	}
	return manager.Acquire(ctx, config, network.Attrs)
}

// addIPv6 gives the external interface its IPv6 address, if the network has IPv6.
// One that was handed over has it.
func addIPv6(ctx context.Context, o Options, c *lease.Config, ext extiface.Interface, before *handover.State) (extiface.Interface, error) {
	if before != nil {
		return ext, nil
	}
	if !c.EnableIPv6 {
		if o.Interface.PublicIPv6.IsValid() {
			o.Logger.Warn("-public-ipv6 has no effect: the network has no IPv6")
		}
		return ext, nil
	}
	ext, err := ext.AddIPv6(ctx, o.Interface)
	if err == nil {
		o.Logger.Info("external IPv6 address", "name", ext.Name, "address", ext.AddressV6, "public_ipv6", ext.PublicIPv6)
	}
	return ext, err
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

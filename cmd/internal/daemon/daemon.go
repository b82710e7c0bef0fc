package daemon

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"

	"golang.org/x/sync/errgroup"

	"uvxlan/cmd/internal/extiface"
	"uvxlan/cmd/internal/hoststate"
	"uvxlan/cmd/internal/subnetfile"
	"uvxlan/lease"
	"uvxlan/lease/etcd"
	"uvxlan/lease/etcdserver"
)

// Run is the daemon's life: it returns nil when ctx ends, after the device is
// gone, and otherwise an error of one line that says what to do. The lease stays
// in etcd, so that the next run has the same subnet.
func Run(ctx context.Context, o Options) error {
	err := run(ctx, o)
	if ctx.Err() != nil && errors.Is(err, ctx.Err()) {
		return nil
	}
	return explain(err)
}

func run(ctx context.Context, o Options) error {
	if err := checkCapability(); err != nil {
		return err
	}
	lock, err := hoststate.Acquire(o.StateDir)
	if err != nil {
		return err
	}
	defer lock.Close()
	if _, err := hoststate.Load(o.StateDir); err != nil {
		return err
	}
	restoreSysctls(o)
	removeBlackhole(o)
	m := newMonitor()
	stop, err := m.open(ctx, o)
	if err != nil {
		return err
	}
	defer stop()
	ext, err := extiface.Choose(o.Interface)
	if err != nil {
		return err
	}
	o.Logger.Info("external interface", "name", ext.Name, "address", ext.Address, "public_ip", ext.PublicIP, "mtu", int(ext.MTU))
	if o.EmbeddedEtcd {
		server, err := startEtcd(ctx, &o, ext)
		if err != nil {
			return err
		}
		defer server.Close()
	}
	o.Etcd.Logger = o.Logger
	registry, err := etcd.Open(o.Etcd)
	if err != nil {
		return err
	}
	defer registry.Close()
	m.set(func(m *monitor) { m.ext, m.skipped = ext, registry.Skipped })
	return serve(ctx, o, ext, registry, m)
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

// serve opens what can fail before it takes a lease, so that a host that can't
// carry packets never holds a subnet.
func serve(ctx context.Context, o Options, ext extiface.Interface, registry lease.Registry, m *monitor) error {
	before := previous(o)
	manager, err := lease.NewManager(lease.Options{
		Registry: registry, Logger: o.Logger, Previous: before.Subnet, PreviousV6: before.SubnetV6, RenewMargin: o.RenewMargin,
		Store: storeOf(o),
	})
	if err != nil {
		return err
	}
	m.set(func(m *monitor) { m.manager = manager })
	config, err := manager.Config(ctx)
	if err != nil {
		return err
	}
	if ext, err = addIPv6(ctx, o, config, ext); err != nil {
		return err
	}
	if err := subnetfile.Prepare(o.SubnetFile); err != nil {
		return err
	}
	rules, err := openRules(o, config)
	if err != nil {
		return err
	}
	m.set(func(m *monitor) { m.config, m.ext = config, ext })
	network, err := openBackend(o, config, ext)
	if err != nil {
		return err
	}
	defer network.close()
	own, err := manager.Acquire(ctx, config, network.attrs)
	if err != nil {
		return err
	}
	o.Logger.Info("lease", append(subnetsOf(own), "expires", own.Expires)...)
	if err := recordNetworks(o, config, own); err != nil {
		return err
	}
	if err := network.start(own); err != nil {
		return err
	}
	defer removeBlackhole(o)
	if err := addBlackhole(o, own); err != nil {
		return err
	}
	if err := rules.apply(own); err != nil {
		return err
	}
	file := subnetfile.File{
		Network: config.Network, Subnet: own.Subnet, NetworkV6: config.IPv6Network, SubnetV6: own.IPv6Subnet,
		MTU: network.mtu(), IPMasq: o.Firewall.Masquerade,
	}
	m.set(func(m *monitor) { m.network = network })
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error {
		return network.run(ctx, func() error {
			if err := writeSubnetFile(o, file); err != nil {
				return err
			}
			m.beReady()
			return nil
		})
	})
	group.Go(func() error { return manager.Run(ctx, own, network.apply) })
	group.Go(func() error { return rules.run(ctx) })
	err = group.Wait()
	if errors.Is(err, lease.ErrLeaseLost) {
		withdraw(o, config, own)
	}
	return err
}

// writeSubnetFile notes where the file is, which stays when the daemon ends. A
// daemon that can't write it must not go on: what an earlier run has left there
// may tell the containers of another subnet.
func writeSubnetFile(o Options, f subnetfile.File) error {
	path, err := filepath.Abs(o.SubnetFile)
	if err != nil {
		return fmt.Errorf("write subnet file: %w", err)
	}
	if err := hoststate.Update(o.StateDir, func(s *hoststate.State) { s.SubnetFile = path }); err != nil {
		return err
	}
	return f.Write(path)
}

// addIPv6 gives the external interface its IPv6 address, if the network has IPv6.
func addIPv6(ctx context.Context, o Options, c *lease.Config, ext extiface.Interface) (extiface.Interface, error) {
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

// subnetsOf are a lease's subnets as attributes of a line in the log.
func subnetsOf(l lease.Lease) []any {
	attrs := []any{"subnet", l.Subnet}
	if l.IPv6Subnet.IsValid() {
		attrs = append(attrs, "ipv6_subnet", l.IPv6Subnet)
	}
	return attrs
}

// addressesOf are the owner's addresses in the same way.
func addressesOf(a lease.Attrs) []any {
	attrs := []any{"public_ip", a.PublicIP}
	if a.PublicIPv6.IsValid() {
		attrs = append(attrs, "public_ipv6", a.PublicIPv6)
	}
	return attrs
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

package daemon

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"uvxlan/cmd/internal/control"
	"uvxlan/cmd/internal/extiface"
	"uvxlan/lease"
	"uvxlan/tunnel"
)

// gateway is the host's part of a host-gw network: routes, and no device.
type gateway struct {
	// immutable
	log    *slog.Logger
	config *lease.Config
	ext    extiface.Interface
	routes *tunnel.Gateway

	changes changeLog

	loaded chan struct{} // closed when the first snapshot of leases is in force
	once   sync.Once     // closes loaded
}

func openGateway(o Options, c *lease.Config, ext extiface.Interface, before *handoverState) (*gateway, error) {
	if ext.PublicIP != ext.Address {
		return nil, fmt.Errorf("host-gw: the public address %s is not on %s, which has %s: peers route straight to it, so choose its interface with -iface or leave -public-ip away",
			ext.PublicIP, ext.Name, ext.Address)
	}
	if ext.PublicIPv6 != ext.AddressV6 {
		return nil, fmt.Errorf("host-gw: the public address %s is not on %s, which has %s: peers route straight to it, so leave -public-ipv6 away",
			ext.PublicIPv6, ext.Name, ext.AddressV6)
	}
	routes, err := tunnel.OpenGateway(tunnel.GatewayConfig{
		Link: ext.Name, Networks: networks(c), IPv6: c.EnableIPv6, Logger: o.Logger,
	})
	if err != nil {
		return nil, err
	}
	g := &gateway{log: o.Logger, config: c, ext: ext, routes: routes, changes: changeLog{log: o.Logger}, loaded: make(chan struct{})}
	if before != nil {
		g.take(before)
	}
	return g, nil
}

// take goes on with the peers of the daemon before, whose routes are there.
func (g *gateway) take(before *handoverState) {
	if err := before.stopStandby(); err != nil {
		g.log.Warn("stop the standby", "error", err)
	}
	g.log.Info("took over", "from_version", before.Version, "peers", len(before.Peers))
	g.routes.ReplacePeers(before.Peers)
	g.once.Do(func() { close(g.loaded) })
}

// handOver is all it takes: the kernel carries the packets.
func (g *gateway) handOver(e *handoverState) error {
	e.Peers = g.routes.List()
	return g.fault()
}

func (g *gateway) release() (time.Time, error) { return time.Now(), nil }

func (g *gateway) settle() {}

// mtu is the containers': nothing is put around their packets.
func (g *gateway) mtu() int { return int(g.ext.MTU) }

func (g *gateway) attrs(*lease.Lease) (lease.Attrs, error) {
	return lease.Attrs{PublicIP: g.ext.PublicIP, PublicIPv6: g.ext.PublicIPv6, BackendType: lease.TypeHostGW}, nil
}

func (g *gateway) start(lease.Lease) error {
	checkForwarding(g.log, g.config.EnableIPv6)
	return nil
}

// run keeps the routes until ctx ends. It calls ready when the first snapshot of
// leases is in force.
func (g *gateway) run(ctx context.Context, ready func() error) error {
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return g.routes.Run(ctx) })
	group.Go(func() error {
		select {
		case <-g.loaded:
			return ready()
		case <-ctx.Done():
			return nil
		}
	})
	return group.Wait()
}

// apply passes on what the watch reports.
func (g *gateway) apply(u lease.Update) {
	g.changes.leftOut(g.routes.Apply(u))
	if u.Reset {
		g.log.Info("peers loaded", "count", g.routes.Peers())
		g.once.Do(func() { close(g.loaded) })
		return
	}
	g.changes.tell(u)
}

// describe tells of the peers.
func (g *gateway) describe(s *control.Status) {
	s.Peers = g.routes.Peers()
	lost := 0
	for _, p := range g.peers() {
		if p.Path == control.PathNone {
			lost++
		}
	}
	if lost > 0 {
		s.Notes = append(s.Notes, fmt.Sprintf("%d of %d peers can't be reached", lost, s.Peers))
	}
}

func (g *gateway) peers() []control.Peer {
	list := g.routes.List()
	peers := make([]control.Peer, len(list))
	for i, p := range list {
		peers[i] = peerOf(p, g.routes.Path(p.Subnet), control.PathNone)
	}
	return peers
}

// fault is nil once the peers are known: the kernel carries the packets.
func (g *gateway) fault() error {
	select {
	case <-g.loaded:
		return nil
	default:
		return errLoading
	}
}

// close leaves the routes, so that packets flow until the next run.
func (g *gateway) close() {
	if err := g.routes.Close(); err != nil {
		g.log.Warn("close the gateway", "error", err)
	}
}

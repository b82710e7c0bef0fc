// Package hostgw is the host's part of a host-gw network: routes, and no device.
package hostgw

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"uvxlan/cmd/internal/control"
	"uvxlan/cmd/internal/extiface"
	"uvxlan/cmd/internal/handover"
	"uvxlan/cmd/internal/host"
	"uvxlan/cmd/internal/overlay"
	"uvxlan/cmd/internal/peerlog"
	"uvxlan/lease"
	"uvxlan/tunnel"
	"uvxlan/tunnel/hostgw"
	"uvxlan/tunnel/onlink"
)

// Gateway is the host's part of a host-gw network: routes, and no device.
type Gateway struct {
	// immutable
	log     *slog.Logger
	config  *lease.Config
	wake    func(part string)
	peerlog *peerlog.Log

	loaded chan struct{} // closed when the first snapshot of leases is in force
	once   sync.Once     // closes loaded

	mu     sync.Mutex // guards the rest
	ext    extiface.Interface
	routes *hostgw.Gateway
	moved  chan struct{}   // closed, and made anew, when routes is another one
	before *handover.State // of a daemon that works until this one does, or nil; immutable
}

// Config is what a Gateway must know. All of it is required.
type Config struct {
	// Network is the cluster's configuration.
	Network *lease.Config
	// Interface leads to the other hosts.
	Interface extiface.Interface
	// Wake asks for a look at a part of the host; see [Gateway.Parts].
	Wake   func(part string)
	Logger *slog.Logger
}

// Open opens whatever may fail before there is a lease, or goes on where the
// daemon before has left it.
func Open(c Config, before *handover.State) (*Gateway, error) {
	if err := check(c.Interface); err != nil {
		return nil, err
	}
	g := &Gateway{
		log: c.Logger, config: c.Network, ext: c.Interface, wake: c.Wake, peerlog: peerlog.New(c.Logger),
		loaded: make(chan struct{}), moved: make(chan struct{}),
	}
	var err error
	if g.routes, err = g.open(c.Interface); err != nil {
		return nil, err
	}
	if before != nil {
		g.takeOver(before)
	}
	return g, nil
}

// check refuses addresses that peers can't route to.
func check(ext extiface.Interface) error {
	if ext.PublicIP != ext.Address {
		return fmt.Errorf("host-gw: the public address %s is not on %s, which has %s: peers route straight to it, so choose its interface with -iface or leave -public-ip away",
			ext.PublicIP, ext.Name, ext.Address)
	}
	if ext.PublicIPv6 != ext.AddressV6 {
		return fmt.Errorf("host-gw: the public address %s is not on %s, which has %s: peers route straight to it, so leave -public-ipv6 away",
			ext.PublicIPv6, ext.Name, ext.AddressV6)
	}
	return nil
}

func (g *Gateway) open(ext extiface.Interface) (*hostgw.Gateway, error) {
	return hostgw.Open(hostgw.Config{
		Link: ext.Name, Networks: g.config.Networks(), IPv6: g.config.EnableIPv6, Logger: g.log,
	})
}

// takeOver goes on with the peers of the daemon before, whose routes are there. If
// that daemon still runs, it ends once this one is ready.
func (g *Gateway) takeOver(before *handover.State) {
	if before.Borrowed() {
		g.before = before
	} else if err := before.StopStandby(); err != nil {
		g.log.Warn("stop the standby", "error", err)
	}
	g.log.Info("took over", "from_version", before.Version, "peers", len(before.Peers))
	g.routes.ReplacePeers(members(before.Peers))
	g.once.Do(func() { close(g.loaded) })
}

// HandOver tells of the peers, which is all it takes: the kernel carries the
// packets.
func (g *Gateway) HandOver(e *handover.State) error {
	e.Peers = peers(g.inForce().List())
	if !g.isLoaded() {
		return overlay.ErrLoading
	}
	return nil
}

// Release does nothing: the routes stay.
func (g *Gateway) Release(*handover.State) (time.Time, error) { return time.Now(), nil }

// inForce are the routes at the moment.
func (g *Gateway) inForce() *hostgw.Gateway {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.routes
}

// MTU is the containers': nothing is put around their packets.
func (g *Gateway) MTU() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return int(g.ext.MTU)
}

// Attrs is what our lease says.
func (g *Gateway) Attrs(*lease.Lease) (lease.Attrs, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	return lease.Attrs{PublicIP: g.ext.PublicIP, PublicIPv6: g.ext.PublicIPv6, BackendType: lease.TypeHostGW}, nil
}

// Start does nothing: the routes wait for Run.
func (g *Gateway) Start(lease.Lease) error { return nil }

// Run keeps the routes until ctx ends. It calls ready when the first snapshot of
// leases is in force.
func (g *Gateway) Run(ctx context.Context, ready func() error) error {
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return g.keep(ctx) })
	group.Go(func() error {
		select {
		case <-g.loaded:
			g.wake(peersPart)
			if err := ready(); err != nil || g.before == nil {
				return err
			}
			return g.before.StopStandby()
		case <-ctx.Done():
			return nil
		}
	})
	return group.Wait()
}

// keep runs the routes in force, and those that come after them.
func (g *Gateway) keep(ctx context.Context) error {
	for ctx.Err() == nil {
		g.mu.Lock()
		routes, moved := g.routes, g.moved
		g.mu.Unlock()
		if err := routes.Run(ctx); err != nil && !errors.Is(err, onlink.ErrClosed) {
			return err
		}
		select {
		case <-moved:
		case <-ctx.Done():
		}
	}
	return nil
}

// Move has the routes lead by another interface or address from here on.
func (g *Gateway) Move(ext extiface.Interface) error {
	if err := check(ext); err != nil {
		return err
	}
	next, err := g.open(ext)
	if err != nil {
		return err
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	next.ReplacePeers(g.routes.List())
	err = g.routes.Close()
	g.ext, g.routes = ext, next
	close(g.moved)
	g.moved = make(chan struct{})
	if err != nil {
		g.log.Warn("close the routes by the interface before", "error", err)
	}
	return nil
}

// peersPart is the name of the part for the peers' leases.
const peersPart = "peers"

// Parts are what host-gw needs beside its routes, which it keeps itself: the peers'
// leases, once read.
func (g *Gateway) Parts() []host.Part {
	return []host.Part{{Name: peersPart, Check: g.checkPeers}}
}

func (g *Gateway) checkPeers(context.Context) []host.Fault {
	if !g.isLoaded() {
		return []host.Fault{{What: overlay.ErrLoading.Error(), Stops: true, Starting: true}}
	}
	return nil
}

// Apply passes on what the watch reports.
func (g *Gateway) Apply(u lease.Update) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.peerlog.LeftOut(u, g.routes.Apply(u))
	if u.Reset {
		g.log.Info("peers loaded", "count", g.routes.Peers())
		g.once.Do(func() { close(g.loaded) })
		return
	}
	g.peerlog.Tell(u)
}

// Describe tells of the peers.
func (g *Gateway) Describe(s *control.Status) {
	s.Peers = g.inForce().Peers()
	lost := 0
	for _, p := range g.routed() {
		if p.Path == control.PathNone {
			lost++
		}
	}
	if lost > 0 {
		s.Notes = append(s.Notes, fmt.Sprintf("%d of %d peers can't be reached", lost, s.Peers))
	}
	if note := g.peerlog.Note(); note != "" {
		s.Notes = append(s.Notes, note)
	}
}

// Peers lists the peers and their paths, and the leases that are no peers.
func (g *Gateway) Peers() []control.Peer { return g.peerlog.WithLeftOut(g.routed()) }

// routed are the peers and their paths.
func (g *Gateway) routed() []control.Peer {
	routes := g.inForce()
	list := routes.List()
	peers := make([]control.Peer, len(list))
	for i, p := range list {
		peers[i] = control.PeerOf(tunnel.Peer{Subnet: p.Subnet, Underlay: p.Underlay}, routes.Path(p.Subnet), control.PathNone)
	}
	return peers
}

func (g *Gateway) isLoaded() bool {
	select {
	case <-g.loaded:
		return true
	default:
		return false
	}
}

// Close leaves the routes, so that packets flow until the next run.
func (g *Gateway) Close() {
	if err := g.inForce().Close(); err != nil {
		g.log.Warn("close the gateway", "error", err)
	}
}

// members and peers are the same hosts, as the gateway and as a handover has them.
func members(peers []tunnel.Peer) (all []onlink.Member) {
	for _, p := range peers {
		all = append(all, onlink.Member{Subnet: p.Subnet, Underlay: p.Underlay})
	}
	return all
}

func peers(members []onlink.Member) (all []tunnel.Peer) {
	for _, m := range members {
		all = append(all, tunnel.Peer{Subnet: m.Subnet, Underlay: m.Underlay})
	}
	return all
}

package tunnel

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"

	"uvxlan/lease"
)

// Gateway joins hosts of one layer-2 network by kernel routes alone, each
// peer's subnet via that peer: flannel's host-gw backend. It has no device, and
// no packet ever comes to it. Its methods may be called from any goroutine.
type Gateway struct {
	paths *paths // immutable, as is v6
	v6    bool
}

// GatewayConfig is what a [Gateway] must know.
type GatewayConfig struct {
	// Link is the interface that the peers are on. Required.
	Link string
	// Networks are the overlay's networks: the kernel routes of an earlier run
	// are removed that lead into them. Nil means wherever they lead.
	Networks []netip.Prefix
	// IPv6 takes the leases' IPv6 subnets as well; otherwise they get no route.
	IPv6 bool
	// Logger gets what happens rarely; nil means nothing is logged.
	Logger *slog.Logger
}

// OpenGateway opens the gateway's netlink sockets in the calling thread's
// network namespace. It changes nothing. It needs CAP_NET_ADMIN.
func OpenGateway(c GatewayConfig) (*Gateway, error) {
	if c.Link == "" {
		return nil, errors.New("open gateway: the interface is missing")
	}
	p, err := openPaths(DirectRoute, c.Logger)
	if err != nil {
		return nil, fmt.Errorf("open gateway: %w", err)
	}
	p.only, p.alone = c.Link, true
	p.limit(c.Networks)
	return &Gateway{paths: p, v6: c.IPv6}, nil
}

// Apply takes over what a watch of leases reports. A lease that can't be a peer,
// such as one of another backend, is left out, and is named in the error.
//
// Routes to the peers are made once Run has found out that they are on-link, and
// routes that an earlier run left stay in force until then.
func (g *Gateway) Apply(u lease.Update) error {
	peers, gone, errs := take(u, g.v6, gatewayPeer)
	if u.Reset {
		g.paths.replace(peers)
	} else {
		g.paths.update(peers, gone)
	}
	return errors.Join(errs...)
}

// ReplacePeers makes peers all there are. Their MACs don't count.
func (g *Gateway) ReplacePeers(peers []Peer) {
	all := make([]member, len(peers))
	for i, p := range peers {
		all[i] = member{p.Subnet.Masked(), p.Underlay}
	}
	g.paths.replace(all)
}

// gatewayPeer reads a peer out of a lease of flannel's host-gw backend.
func gatewayPeer(s side) (member, error) {
	m := member{s.subnet().Masked(), s.host()}
	switch {
	case !strings.EqualFold(s.Attrs.BackendType, lease.TypeHostGW):
		return m, leftOut(s.subnet(), m.underlay, "its backend is %q, not %q", s.Attrs.BackendType, lease.TypeHostGW)
	case !m.subnet.IsValid():
		return m, leftOut(s.subnet(), m.underlay, "no subnet")
	case !m.underlay.IsValid() || m.underlay.IsUnspecified() || m.underlay.IsMulticast():
		return m, leftOut(s.subnet(), m.underlay, "that is no host's address")
	}
	return m, nil
}

// Peers is how many peers there are.
func (g *Gateway) Peers() int {
	g.paths.mu.Lock()
	defer g.paths.mu.Unlock()
	return len(g.paths.owners)
}

// List lists the peers, sorted by subnet. They have no MAC.
func (g *Gateway) List() []Peer {
	g.paths.mu.Lock()
	defer g.paths.mu.Unlock()
	peers := make([]Peer, 0, len(g.paths.owners))
	for subnet, host := range g.paths.owners {
		peers = append(peers, Peer{Subnet: subnet, Underlay: host})
	}
	slices.SortFunc(peers, func(a, b Peer) int { return a.Subnet.Compare(b.Subnet) })
	return peers
}

// Path is how packets to the peer of a subnet travel at the moment: direct, or
// not at all, with the reason; the zero Path if there is no such peer.
func (g *Gateway) Path(subnet netip.Prefix) Path { return g.paths.path(subnet.Masked()) }

// Run keeps the routes as the peers and the underlay want them until ctx ends or
// Close is called, and then returns nil; [ErrClosed] on a closed gateway. Routes
// that somebody removes or alters are put back. It returns early, and leaves the
// routes as they are, when the kernel can't be followed any longer. Run is called
// once.
func (g *Gateway) Run(ctx context.Context) error { return g.paths.run(ctx) }

// Close ends Run and waits for it. The routes stay, so that packets flow while
// the host's daemon is replaced. Further calls do nothing.
func (g *Gateway) Close() error { return g.paths.close() }

// Clear is Close, and removes the routes.
func (g *Gateway) Clear() error { return g.paths.clear() }

// Package hostgw joins hosts of one layer-2 network by kernel routes alone, as
// flannel's host-gw backend does. It has no device, and no packet comes to it.
package hostgw

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"strings"

	"uvxlan/lease"
	"uvxlan/tunnel/internal/leasepeer"
	"uvxlan/tunnel/onlink"
)

// Gateway joins hosts of one layer-2 network by kernel routes alone, each
// peer's subnet via that peer: flannel's host-gw backend. It has no device, and
// no packet ever comes to it. Its methods may be called from any goroutine.
type Gateway struct {
	paths *onlink.Paths // immutable, as is v6
	v6    bool
}

// Config is what a [Gateway] must know.
type Config struct {
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

// Open opens the gateway's netlink sockets in the calling thread's
// network namespace. It changes nothing. It needs CAP_NET_ADMIN.
func Open(c Config) (*Gateway, error) {
	if c.Link == "" {
		return nil, errors.New("open gateway: the interface is missing")
	}
	p, err := onlink.Open(onlink.Config{Mode: onlink.Route, Link: c.Link, Exclusive: true})
	if err != nil {
		return nil, fmt.Errorf("open gateway: %w", err)
	}
	p.Attach(onlink.Settings{Networks: c.Networks, Logger: c.Logger})
	return &Gateway{paths: p, v6: c.IPv6}, nil
}

// Apply takes over what a watch of leases reports. A lease that can't be a peer,
// such as one of another backend, is left out, and is named in the error.
//
// Routes to the peers are made once Run has found out that they are on-link, and
// routes that an earlier run left stay in force until then.
func (g *Gateway) Apply(u lease.Update) error {
	peers, gone, errs := leasepeer.Read(u, g.v6, peer)
	if u.Reset {
		g.paths.Replace(peers)
	} else {
		g.paths.Update(peers, gone)
	}
	return errors.Join(errs...)
}

// ReplacePeers makes peers all there are.
func (g *Gateway) ReplacePeers(peers []onlink.Member) { g.paths.Replace(peers) }

// peer reads a peer out of a lease of flannel's host-gw backend.
func peer(s leasepeer.Side) (onlink.Member, error) {
	m := onlink.Member{Subnet: s.Subnet().Masked(), Underlay: s.Host()}
	switch {
	case s.Unclaimed():
		return m, s.Refused("%w", lease.ErrUnclaimed)
	case !strings.EqualFold(s.Attrs.BackendType, lease.TypeHostGW):
		return m, s.Refused("its backend is %q, not %q", s.Attrs.BackendType, lease.TypeHostGW)
	case !m.Subnet.IsValid():
		return m, s.Refused("no subnet")
	case !m.Underlay.IsValid() || m.Underlay.IsUnspecified() || m.Underlay.IsMulticast():
		return m, s.Refused("that is no host's address")
	}
	return m, nil
}

// Peers is how many peers there are.
func (g *Gateway) Peers() int { return g.paths.Len() }

// List lists the peers, sorted by subnet.
func (g *Gateway) List() []onlink.Member { return g.paths.Members() }

// Path is how packets to the peer of a subnet travel at the moment: direct, or
// not at all, with the reason; the zero Path if there is no such peer.
func (g *Gateway) Path(subnet netip.Prefix) onlink.Path { return g.paths.Path(subnet.Masked()) }

// Run keeps the routes as the peers and the underlay want them until ctx ends or
// Close is called, and then returns nil; [onlink.ErrClosed] on a closed gateway. Routes
// that somebody removes or alters are put back. It returns early, and leaves the
// routes as they are, when the kernel can't be followed any longer. Run is called
// once.
func (g *Gateway) Run(ctx context.Context) error { return g.paths.Run(ctx) }

// Close ends Run and waits for it. The routes stay, so that packets flow while
// the host's daemon is replaced. Further calls do nothing.
func (g *Gateway) Close() error { return g.paths.Release() }

// Clear is Close, and removes the routes.
func (g *Gateway) Clear() error { return g.paths.Close() }

package tunnel

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"strings"

	"uvxlan/lease"
)

// Gateway joins hosts of one layer-2 network by kernel routes alone, each
// peer's subnet via that peer: flannel's host-gw backend. It has no device, and
// no packet ever comes to it. Its methods may be called from any goroutine.
type Gateway struct {
	paths *paths // immutable
}

// GatewayConfig is what a [Gateway] must know.
type GatewayConfig struct {
	// Link is the interface that the peers are on. Required.
	Link string
	// Logger gets what happens rarely; nil means nothing is logged.
	Logger *slog.Logger
}

// OpenGateway opens the gateway's netlink sockets in the calling thread's
// network namespace. It changes nothing. It needs CAP_NET_ADMIN.
func OpenGateway(c GatewayConfig) (*Gateway, error) {
	if c.Link == "" {
		return nil, errors.New("open gateway: the interface is missing")
	}
	p, err := openPaths(DirectRoute)
	if err != nil {
		return nil, fmt.Errorf("open gateway: %w", err)
	}
	p.log, p.only, p.alone = cmp.Or(c.Logger, slog.New(slog.DiscardHandler)), c.Link, true
	return &Gateway{paths: p}, nil
}

// Apply takes over what a watch of leases reports. A lease of another backend is
// left out, and is named in the error.
//
// Routes to the peers are made once Run has found out that they are on-link, and
// routes that an earlier run left stay in force until then.
func (g *Gateway) Apply(u lease.Update) error {
	var errs []error
	var peers []member
	gone := make([]netip.Prefix, 0, len(u.Deleted))
	for _, l := range u.Deleted {
		gone = append(gone, l.Subnet.Masked())
	}
	for _, l := range u.Leases {
		if !strings.EqualFold(l.Attrs.BackendType, lease.TypeHostGW) {
			errs = append(errs, fmt.Errorf("peer %s at %s: its backend is %q, not %q",
				l.Subnet, l.Attrs.PublicIP, l.Attrs.BackendType, lease.TypeHostGW))
			gone = append(gone, l.Subnet.Masked())
			continue
		}
		peers = append(peers, member{l.Subnet.Masked(), l.Attrs.PublicIP})
	}
	if u.Reset {
		g.paths.replace(peers)
	} else {
		g.paths.update(peers, gone)
	}
	return errors.Join(errs...)
}

// Peers is how many peers there are.
func (g *Gateway) Peers() int {
	g.paths.mu.Lock()
	defer g.paths.mu.Unlock()
	return len(g.paths.owners)
}

// Path is how packets to the peer of a subnet travel at the moment: direct, or
// not at all, with the reason.
func (g *Gateway) Path(subnet netip.Prefix) Path { return g.paths.path(subnet.Masked()) }

// Run keeps the routes as the peers and the underlay want them until ctx ends or
// Close is called, and then returns nil. Routes that somebody removes or alters
// are put back. It returns early when the kernel can't be followed any longer.
// Run is called once.
func (g *Gateway) Run(ctx context.Context) error { return g.paths.run(ctx) }

// Close ends Run and waits for it. The routes stay, so that packets flow while
// the host's daemon is replaced.
func (g *Gateway) Close() error { return g.paths.close() }

// Clear is Close, and removes the routes.
func (g *Gateway) Clear() error { return g.paths.clear() }

package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"time"

	"uvxlan/cmd/internal/control"
	"uvxlan/cmd/internal/extiface"
	"uvxlan/lease"
	"uvxlan/tunnel"
)

// backend is one way to carry the containers' packets between hosts.
type backend interface {
	// mtu is that of the containers, in bytes.
	mtu() int
	// attrs is what our lease says; previous is the one we had, or nil.
	attrs(previous *lease.Lease) (lease.Attrs, error)
	// start takes the lease that was acquired.
	start(own lease.Lease) error
	// run carries packets until ctx ends, and calls ready when it does.
	run(ctx context.Context, ready func() error) error
	// apply passes on what the watch reports. It may be called before run.
	apply(u lease.Update)
	// describe, peers and fault tell how the backend is; fault is why it doesn't
	// carry packets, nil if it does. They may be called at any time after start,
	// from any goroutine.
	describe(s *control.Status)
	peers() []control.Peer
	fault() error
	// handOver adds to e what a daemon that takes over needs. It fails while the
	// backend doesn't carry packets.
	handOver(e *handoverState) error
	// release stops to carry packets, and has run and close leave all that is open
	// as it is. It returns since when packets wait.
	release() (time.Time, error)
	// settle ends what was for the time of a reload.
	settle()
	// close removes what shouldn't outlive the process.
	close()
}

// openBackend opens whatever may fail before there is a lease, or takes over what
// the daemon before had open.
func openBackend(o Options, c *lease.Config, ext extiface.Interface, before *handoverState) (backend, error) {
	if c.Network.Contains(ext.PublicIP) {
		return nil, fmt.Errorf("the public address %s lies inside the overlay network %s: packets between hosts would loop, choose another Network or -iface",
			ext.PublicIP, c.Network)
	}
	if c.EnableIPv6 && c.IPv6Network.Contains(ext.PublicIPv6) {
		return nil, fmt.Errorf("the public address %s lies inside the overlay network %s: packets between hosts would loop, choose another IPv6Network or -public-ipv6",
			ext.PublicIPv6, c.IPv6Network)
	}
	if c.Backend.Type == lease.TypeHostGW {
		return openGateway(o, c, ext, before)
	}
	return openOverlay(o, c, ext, before)
}

// networks are those of the containers, one of each family that is enabled.
func networks(c *lease.Config) []netip.Prefix {
	if c.EnableIPv6 {
		return []netip.Prefix{c.Network, c.IPv6Network}
	}
	return []netip.Prefix{c.Network}
}

// errLoading is a backend's fault until the first snapshot of leases is in force.
var errLoading = errors.New("the peers' leases are not read yet")

// directMode is how the configuration wants on-link peers to be reached.
func directMode(b lease.Backend) tunnel.DirectMode {
	switch {
	case !b.DirectRouting:
		return tunnel.DirectOff
	case b.DirectMode == lease.DirectRoute:
		return tunnel.DirectRoute
	}
	return tunnel.DirectSocket
}

func checkForwarding(log *slog.Logger, v6 bool) {
	on, err := tunnel.ForwardingEnabled()
	if err == nil && !on {
		log.Warn("the host doesn't forward what its containers send: sysctl -w net.ipv4.ip_forward=1")
	}
	onV6, errV6 := true, error(nil)
	if v6 {
		onV6, errV6 = tunnel.IPv6ForwardingEnabled()
	}
	if errV6 == nil && !onV6 {
		log.Warn("the host doesn't forward what its containers send by IPv6: sysctl -w net.ipv6.conf.all.forwarding=1")
	}
	if err := errors.Join(err, errV6); err != nil {
		log.Warn("whether the host forwards is not known", "error", err)
	}
}

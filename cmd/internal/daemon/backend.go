package daemon

import (
	"context"
	"time"

	"uvxlan/cmd/internal/control"
	"uvxlan/cmd/internal/extiface"
	"uvxlan/cmd/internal/handover"
	"uvxlan/cmd/internal/health"
	"uvxlan/cmd/internal/host"
	"uvxlan/cmd/internal/hostgw"
	"uvxlan/cmd/internal/overlay"
	"uvxlan/lease"
)

// backend is one way to carry the containers' packets between hosts.
type backend interface {
	// MTU is that of the containers, in bytes.
	MTU() int
	// Attrs is what our lease says; previous is the one we had, or nil.
	Attrs(previous *lease.Lease) (lease.Attrs, error)
	// Start takes the lease that was acquired.
	Start(own lease.Lease) error
	// Run carries packets until ctx ends, and calls ready when it does.
	Run(ctx context.Context, ready func() error) error
	// Apply passes on what the watch reports. It may be called before Run.
	Apply(u lease.Update)
	// Parts are what the backend needs on the host. They may be looked at from
	// Start on, until Close.
	Parts() []host.Part
	// Move has the other hosts reached by another interface or address.
	Move(ext extiface.Interface) error
	// The peers' health is asked by way of the backend; from Start on.
	health.Network
	// Describe and Peers tell how the backend is. They may be called at any time
	// after Start, from any goroutine.
	Describe(s *control.Status)
	Peers() []control.Peer
	// HandOver adds to s what a daemon that takes over needs. It fails while the
	// backend doesn't carry packets.
	HandOver(s *handover.State) error
	// Release stops carrying packets, and has Run and Close leave all that is open
	// as it is. It adds to s what the standby doesn't need. It returns since when
	// packets wait.
	Release(s *handover.State) (time.Time, error)
	// Close removes what shouldn't outlive the process.
	Close()
}

// openBackend opens whatever may fail before there is a lease, or takes over what
// the daemon before had open.
func openBackend(o Options, c *lease.Config, ext extiface.Interface, keeper *host.Keeper, before *handover.State) (backend, error) {
	if c.Backend.Type == lease.TypeHostGW {
		return hostgw.Open(hostgw.Config{Network: c, Interface: ext, Wake: keeper.Wake, Logger: o.Logger}, before)
	}
	return overlay.Open(overlayConfig(o, c, ext, keeper.Wake), before)
}

func overlayConfig(o Options, c *lease.Config, ext extiface.Interface, wake func(string)) overlay.Config {
	return overlay.Config{Options: o.Overlay, Network: c, Interface: ext, StateDir: o.StateDir, Wake: wake, Logger: o.Logger}
}

package hostgw_test

import (
	"context"
	"log/slog"
	"net/netip"
	"os/signal"
	"syscall"

	"uvxlan/lease"
	"uvxlan/tunnel/hostgw"
)

// A host of a network without VXLAN: a kernel route to each peer on eth0.
func ExampleGateway() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	g, err := hostgw.Open(hostgw.Config{Link: "eth0", Logger: slog.Default()})
	if err != nil {
		slog.Error("no gateway", "error", err)
		return
	}
	defer g.Close() // leaves the routes; Clear doesn't
	subnet := netip.MustParsePrefix("172.7.22.0/24")
	err = g.Apply(lease.Update{Reset: true, Leases: []lease.Lease{{
		Subnet: subnet,
		Attrs:  lease.Attrs{PublicIP: netip.MustParseAddr("192.168.14.22"), BackendType: lease.TypeHostGW},
	}}})
	if err != nil {
		slog.Warn("some leases are no peers", "error", err)
	}
	if err := g.Run(ctx); err != nil {
		slog.Error("the routes are no longer kept", "error", err)
	}
	slog.Info("stopped", "path", g.Path(subnet))
}

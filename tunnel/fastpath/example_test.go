package fastpath_test

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"os/signal"
	"sync"
	"syscall"

	"uvxlan/encap"
	"uvxlan/tunnel"
	"uvxlan/tunnel/fastpath"
	"uvxlan/tunnel/link"
)

// A router whose plain packets the kernel carries, if it can: otherwise the workers
// carry all of them, and nothing else is different.
func ExampleAttach() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	if removed, err := fastpath.RemoveStale("flannel.1"); err != nil || len(removed) > 0 {
		slog.Warn("an earlier run was killed", "removed", removed, "error", err)
	}
	router, err := tunnel.Open("flannel.1", tunnel.Setup{
		Address: netip.MustParseAddr("192.168.14.21"), Port: 4789, VNI: 1, MAC: encap.MAC{2, 0, 0, 0, 0, 21},
		Link: link.Config{MTU: 1450},
	})
	if err != nil {
		slog.Error("no router", "error", err)
		return
	}
	defer router.Close()
	var following sync.WaitGroup
	defer following.Wait()
	fast, err := fastpath.Attach(router, fastpath.Config{Logger: slog.Default()})
	switch {
	case errors.Is(err, fastpath.ErrUnsupported):
		slog.Info("the workers carry everything", "reason", err)
	case err != nil:
		slog.Error("no fast path", "error", err)
	default:
		defer fast.Close()
		following.Go(func() {
			if err := fast.Run(ctx); err != nil {
				slog.Error("the fast path follows the host no longer", "error", err)
			}
		})
		r := fast.Report()
		slog.Info("fast path", "on", r.On, "reason", r.Reason, "link", r.Link, "superpackets", r.Superpackets)
	}
	if err := router.Run(ctx); err != nil {
		slog.Error("the router has failed", "error", err)
	}
}

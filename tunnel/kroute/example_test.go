package kroute_test

import (
	"log/slog"
	"net"
	"net/netip"

	"uvxlan/tunnel/kroute"
)

// One peer on the layer-2 network of eth0.
func Example() {
	eth0, err := net.InterfaceByName("eth0")
	if err != nil {
		slog.Error("no eth0", "error", err)
		return
	}
	set, err := kroute.Open(kroute.Config{Protocol: 89})
	if err != nil {
		slog.Error("no routes", "error", err)
		return
	}
	defer set.Close()
	err = set.Replace([]kroute.Route{{
		Subnet: netip.MustParsePrefix("172.7.22.0/24"), Via: netip.MustParseAddr("192.168.14.22"), Link: eth0.Index,
	}})
	if err != nil {
		slog.Warn("some peers have no route", "error", err)
	}
	// Whenever the kernel reports a change of routes, links or addresses:
	if n, err := set.Restore(); n > 0 || err != nil {
		slog.Info("put routes back", "count", n, "error", err)
	}
}

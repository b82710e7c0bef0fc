package link_test

import (
	"log/slog"
	"net/netip"

	"uvxlan/tunnel/device"
	"uvxlan/tunnel/link"
	"uvxlan/tunnel/offload"
)

// A device of two queues that has the network's packets from now on. It needs
// CAP_NET_ADMIN.
func ExampleConfigure() {
	d, err := device.Open("flannel.1", device.Config{Queues: 2, Offloads: offload.All})
	if err != nil {
		slog.Error("no device", "error", err)
		return
	}
	defer d.Close() // with it go the addresses and the routes
	err = link.Configure("flannel.1", link.Config{
		Addresses: []netip.Addr{netip.MustParseAddr("172.7.21.0")},
		Networks:  []netip.Prefix{netip.MustParsePrefix("172.7.0.0/16")},
		MTU:       1450,
	})
	if err != nil {
		slog.Error("the device is not up", "error", err)
	}
}

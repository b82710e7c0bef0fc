package tunnel_test

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"os"

	"uvxlan/encap"
	"uvxlan/tunnel"
	"uvxlan/tunnel/device"
	"uvxlan/tunnel/link"
	"uvxlan/tunnel/offload"
	"uvxlan/tunnel/underlay"
)

// A runtime whose sandbox has made the device gets its queue over a Unix socket
// (SCM_RIGHTS), or inherits it. The sockets are of the host's network namespace.
func ExampleNew_adoptedDevice() {
	const queue = 3 // inherited
	device, err := device.Adopt([]int{queue}, offload.All)
	if err != nil {
		slog.Error("no device", "error", err) // the descriptor is still ours
		return
	}
	host, err := os.Open("/run/netns/host")
	if err != nil {
		slog.Error("no namespace", "error", errors.Join(err, device.Close()))
		return
	}
	defer host.Close()
	var sockets *underlay.UDP
	err = tunnel.Inside(host, func() (err error) {
		sockets, err = underlay.Listen(underlay.Config{
			Address: netip.MustParseAddr("192.168.14.21"), Port: 4789, Offloads: offload.All,
		})
		return err
	})
	if err != nil {
		slog.Error("no sockets", "error", errors.Join(err, device.Close()))
		return
	}
	router, err := tunnel.New(device, sockets, tunnel.Config{
		VNI: 1, MAC: encap.MAC{2, 0, 0, 0, 0, 21}, Link: link.Config{MTU: 1450},
	})
	if err != nil {
		slog.Error("no router", "error", errors.Join(err, sockets.Close(), device.Close()))
		return
	}
	defer router.Close() // and with it the queue and the sockets
	if err := router.Run(context.Background()); err != nil {
		slog.Error("the sandbox is offline", "error", err)
	}
}

// Another router takes over: no packet is lost as long as the kernel's queues hold
// what comes meanwhile.
func ExampleRouter_Release() {
	replace := func(old *tunnel.Router, c tunnel.Config) (*tunnel.Router, error) {
		peers := old.Peers()
		given, err := old.Release()
		if err != nil {
			return nil, err // the old one still runs
		}
		device, err := device.Adopt(given.Queues, offload.All)
		if err != nil {
			return nil, err
		}
		sockets, err := underlay.Adopt(given.Sockets.UDP, offload.All)
		if err != nil {
			return nil, errors.Join(err, device.Close())
		}
		router, err := tunnel.New(device, sockets, c)
		if err != nil {
			return nil, errors.Join(err, sockets.Close(), device.Close())
		}
		return router, router.ReplacePeers(peers)
	}
	_ = replace
}

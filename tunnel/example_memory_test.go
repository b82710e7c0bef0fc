package tunnel_test

import (
	"context"
	"errors"
	"fmt"
	"net/netip"

	"uvxlan/encap"
	"uvxlan/tunnel"
	"uvxlan/tunnel/link"
	"uvxlan/tunnel/offload"
	"uvxlan/tunnel/tunneltest"
	"uvxlan/tunnel/underlay"
)

// Two hosts in one process, without privileges: their devices are in memory, and
// their underlay is loopback. With device.Open and link.Configure
// instead they carry what the kernel sends.
func ExampleRouter() {
	ctx, stop := context.WithCancel(context.Background())
	left := tunnel.Peer{Subnet: netip.MustParsePrefix("172.7.21.0/24"), Underlay: netip.MustParseAddr("127.0.21.1"), MAC: encap.MAC{2, 21}}
	right := tunnel.Peer{Subnet: netip.MustParsePrefix("172.7.22.0/24"), Underlay: netip.MustParseAddr("127.0.22.1"), MAC: encap.MAC{2, 22}}
	from, a := exampleHost(left, right)
	to, b := exampleHost(right, left)
	ended := make(chan error, 2)
	for _, r := range []*tunnel.Router{a, b} {
		go func() { ended <- r.Run(ctx) }()
	}

	packet := encap.IPv4{
		0x45, 0, 0, 25, 0, 0, 0, 0, 64, 253, 0, 0, // 25 bytes of an experiment's protocol
		172, 7, 21, 2, 172, 7, 22, 2, 'h', 'e', 'l', 'l', 'o',
	}
	packet.UpdateChecksum()
	check(from.Send(packet))
	got, err := to.Receive(ctx)
	check(err)
	fmt.Printf("%s from %s\n", encap.IPv4(got).Payload(), encap.IPv4(got).Src())

	stop()
	check(errors.Join(<-ended, <-ended))
	s := a.Stats()
	fmt.Println("sent:", s.TxPackets, "dropped:", s.Dropped())
	check(errors.Join(a.Close(), b.Close()))
	// Output:
	// hello from 172.7.21.2
	// sent: 1 dropped: 0
}

// exampleHost is the host that other knows as own.
func exampleHost(own, other tunnel.Peer) (*tunneltest.Device, *tunnel.Router) {
	const port = 14789
	device, err := tunneltest.NewDevice("memory0", 1)
	check(err)
	underlay, err := underlay.Listen(underlay.Config{Address: own.Underlay, Port: port, Offloads: offload.All})
	check(err)
	router, err := tunnel.New(device, underlay, tunnel.Config{VNI: 1, MAC: own.MAC, Link: link.Config{MTU: 1450}})
	check(err)
	check(router.ReplacePeers([]tunnel.Peer{other}))
	return device, router
}

// A peer that can't be one is named, and all others are in force.
func ExampleRouter_UpdatePeers() {
	own := tunnel.Peer{Underlay: netip.MustParseAddr("127.0.23.1"), MAC: encap.MAC{2, 23}}
	_, router := exampleHost(own, tunnel.Peer{
		Subnet: netip.MustParsePrefix("172.7.22.0/24"), Underlay: netip.MustParseAddr("192.168.14.22"), MAC: encap.MAC{2, 22},
	})
	defer router.Close()
	err := router.UpdatePeers([]tunnel.Peer{
		{Subnet: netip.MustParsePrefix("172.7.31.0/24"), Underlay: netip.MustParseAddr("192.168.15.31"), MAC: encap.MAC{2, 31}},
		{Subnet: netip.MustParsePrefix("172.7.32.0/24"), Underlay: netip.MustParseAddr("192.168.15.32")},
	}, []netip.Prefix{netip.MustParsePrefix("172.7.22.0/24")})
	fmt.Println(err)
	for _, p := range router.Peers() {
		fmt.Println(p.Subnet, "at", p.Underlay)
	}
	// Output:
	// peer 172.7.32.0/24 at 192.168.15.32: 00:00:00:00:00:00 is no VTEP's MAC
	// 172.7.31.0/24 at 192.168.15.31
}

func check(err error) {
	if err != nil {
		panic(err)
	}
}

package tunnelprom_test

import (
	"context"
	"fmt"
	"net/netip"

	"github.com/prometheus/client_golang/prometheus"

	"uvxlan/encap"
	"uvxlan/tunnel"
	"uvxlan/tunnel/link"
	"uvxlan/tunnel/tunnelprom"
	"uvxlan/tunnel/tunneltest"
	"uvxlan/tunnel/underlay"
)

func ExampleNew() {
	device, err := tunneltest.NewDevice("memory0", 1)
	check(err)
	underlay, err := underlay.Listen(underlay.Config{Address: netip.MustParseAddr("127.0.91.1"), Port: 14789})
	check(err)
	router, err := tunnel.New(device, underlay, tunnel.Config{MAC: encap.MAC{2}, Link: link.Config{MTU: 1450}})
	check(err)
	defer router.Close()
	go router.Run(context.Background()) //nolint:errcheck // ends with Close

	registry := prometheus.NewRegistry()
	check(registry.Register(tunnelprom.New(router, prometheus.Labels{"network": "blue"})))
	families, err := registry.Gather()
	check(err)
	for _, f := range families {
		if f.GetName() == "uvxlan_peers" {
			fmt.Println(f.GetMetric()[0].GetLabel()[0].GetValue(), f.GetMetric()[0].GetGauge().GetValue())
		}
	}
	// Output: blue 0
}

func check(err error) {
	if err != nil {
		panic(err)
	}
}

package etcd_test

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"time"

	"uvxlan/encap"
	"uvxlan/lease"
	"uvxlan/lease/etcd"
	"uvxlan/lease/etcdserver"
	"uvxlan/tunnel"
	"uvxlan/tunnel/link"
	"uvxlan/tunnel/tunneltest"
	"uvxlan/tunnel/underlay"
)

// A host of a cluster: it takes a lease, and its router has the other hosts' peers
// as etcd has their leases. In earnest the device is device.Open's, with
// link.Configure, and the etcd is the cluster's.
func Example_router() {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	registry := exampleCluster(ctx)
	host, mac := netip.MustParseAddr("127.0.24.1"), encap.MAC{2, 24}

	manager, err := lease.NewManager(lease.Options{Registry: registry, Previous: netip.MustParsePrefix("172.7.21.0/24")})
	check(err)
	config, err := manager.Config(ctx)
	check(err)
	own, err := manager.Acquire(ctx, config, func(*lease.Lease) (lease.Attrs, error) { return attrs(config, host, mac) })
	check(err)

	device, err := tunneltest.NewDevice("memory0", 1)
	check(err)
	underlay, err := underlay.Listen(underlay.Config{Address: host, Port: config.Backend.Port})
	check(err)
	router, err := tunnel.New(device, underlay, tunnel.Config{
		VNI: encap.VNI(config.Backend.VNI), MAC: mac,
		Link: link.Config{MTU: 1450, Addresses: []netip.Addr{own.Subnet.Addr()}, Networks: []netip.Prefix{config.Network}},
	})
	check(err)
	defer router.Close()
	ended := make(chan error, 1)
	go func() { ended <- router.Run(ctx) }()

	check(manager.Run(ctx, own, func(u lease.Update) {
		if err := router.Apply(u); err != nil {
			fmt.Println("leases that are no peers were left out:", err)
		}
		for _, p := range router.Peers() {
			fmt.Println("we have", own.Subnet, "and", p.Underlay, "has", p.Subnet)
		}
		cancel() // has seen enough
	}))
	check(<-ended)
	// Output: we have 172.7.21.0/24 and 192.168.14.22 has 172.7.22.0/24
}

// attrs is what the lease of a host says.
func attrs(c *lease.Config, host netip.Addr, mac encap.MAC) (lease.Attrs, error) {
	data, err := json.Marshal(lease.VXLANData{VNI: c.Backend.VNI, VtepMAC: mac.String()})
	return lease.Attrs{PublicIP: host, BackendType: lease.TypeVXLAN, BackendData: data}, err
}

// exampleCluster is a cluster with another host in it, until ctx ends.
func exampleCluster(ctx context.Context) *etcd.Registry {
	dir, err := os.MkdirTemp("", "etcd")
	check(err)
	server, err := etcdserver.Start(ctx, etcdserver.Options{Dir: dir, ListenClient: "http://127.0.0.1:0"})
	check(err)
	registry, err := etcd.Open(etcd.Options{Endpoints: []string{server.Endpoint()}})
	check(err)
	context.AfterFunc(ctx, func() {
		_ = registry.Close()
		server.Close()
		_ = os.RemoveAll(dir)
	})
	const text = `{"Network":"172.7.0.0/16","Backend":{"Type":"vxlan","Port":14789}}`
	check(registry.SetConfig(ctx, []byte(text)))
	config, err := lease.ParseConfig([]byte(text))
	check(err)
	other, err := attrs(config, netip.MustParseAddr("192.168.14.22"), encap.MAC{2, 22})
	check(err)
	_, err = registry.Create(ctx, lease.Lease{Subnet: netip.MustParsePrefix("172.7.22.0/24"), Attrs: other}, time.Hour)
	check(err)
	return registry
}

func check(err error) {
	if err != nil {
		panic(err)
	}
}

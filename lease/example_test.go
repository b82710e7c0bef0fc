package lease_test

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"

	"uvxlan/lease"
	"uvxlan/lease/etcd"
	"uvxlan/lease/etcdserver"
)

func ExampleParseConfig() {
	c, err := lease.ParseConfig([]byte(`{"Network":"172.7.0.0/16","Backend":{"Type":"VxLAN"}}`))
	fmt.Println(c.Network, c.SubnetLen, c.Backend.Type, c.Backend.Port, err)
	_, err = lease.ParseConfig([]byte(`{"Network":"172.7.0.0/29","Backend":{"Type":"ipip"}}`))
	fmt.Println(err)
	// Output:
	// 172.7.0.0/16 24 vxlan 4789 <nil>
	// Network "172.7.0.0/29": must have a prefix of at most /28 to have room for subnets; Backend.Type "ipip": must be "vxlan" or "host-gw"
}

// A lease's key names its subnets, and its value says who has them.
func ExampleLease_Key() {
	l := lease.Lease{
		Subnet: netip.MustParsePrefix("172.7.21.0/24"), IPv6Subnet: netip.MustParsePrefix("fd00:7:21::/64"),
		Attrs: lease.Attrs{PublicIP: netip.MustParseAddr("192.168.14.21"), BackendType: lease.TypeHostGW},
	}
	value, err := json.Marshal(l.Attrs)
	fmt.Println(l.Key(), string(value), err)
	v4, v6, err := lease.ParseKey(l.Key())
	fmt.Println(v4, v6, err)
	// Output:
	// 172.7.21.0-24&fd00:7:21::-64 {"PublicIP":"192.168.14.21","PublicIPv6":null,"BackendType":"host-gw"} <nil>
	// 172.7.21.0/24 fd00:7:21::/64 <nil>
}

func ExampleManager() {
	dir, err := os.MkdirTemp("", "etcd")
	check(err)
	defer func() { _ = os.RemoveAll(dir) }()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	server, err := etcdserver.Start(ctx, etcdserver.Options{Dir: dir, ListenClient: "http://127.0.0.1:0"})
	check(err)
	defer server.Close()
	registry, err := etcd.Open(etcd.Options{Endpoints: []string{server.Endpoint()}})
	check(err)
	defer registry.Close()

	m, err := lease.NewManager(lease.Options{Registry: registry, Previous: netip.MustParsePrefix("172.7.21.0/24")})
	check(err)
	cfg, err := lease.ParseConfig([]byte(`{"Network":"172.7.0.0/16","Backend":{"Type":"host-gw"}}`))
	check(err)
	own, err := m.Acquire(ctx, cfg, func(*lease.Lease) (lease.Attrs, error) {
		return lease.Attrs{PublicIP: netip.MustParseAddr("192.168.14.21"), BackendType: cfg.Backend.Type}, nil
	})
	check(err)
	err = m.Run(ctx, own, func(u lease.Update) {
		fmt.Println("own", own.Subnet, "peers", len(u.Leases))
		cancel()
	})
	check(err)
	// Output: own 172.7.21.0/24 peers 0
}

func check(err error) {
	if err != nil {
		panic(err)
	}
}

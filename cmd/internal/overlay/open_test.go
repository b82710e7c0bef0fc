package overlay

import (
	"log/slog"
	"net/netip"
	"testing"

	"uvxlan/lease"
	"uvxlan/tunnel/link"
	"uvxlan/tunnel/netnstest"
)

// TestFlannelInterface has flannel's interface carry packets until there is a lease.
func TestFlannelInterface(t *testing.T) {
	enterHost(t)
	netnstest.Run(t, "sh", "-c", `ip link add flannel.1 type vxlan id 1 local 192.0.2.1 dev eth0 dstport 8472 nolearning
		ip link set flannel.1 up; ip route add 172.7.0.0/16 dev flannel.1`)
	config, err := lease.ParseConfig([]byte(`{"Network":"172.7.0.0/16","Backend":{"Type":"vxlan","Port":8472}}`))
	if err != nil {
		t.Fatal(err)
	}
	v, err := Open(Config{
		Options: Options{Workers: 1}, Network: config, Interface: at("192.0.2.1"), StateDir: t.TempDir(),
		Wake: func(string) {}, Logger: slog.New(slog.DiscardHandler),
	}, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(v.Close)
	if _, err := v.Attrs(nil); err != nil {
		t.Error(err)
	}
	if kind, err := link.Stale("flannel.1"); kind != "vxlan" {
		t.Errorf("before there is a lease, the interface is %q, %v", kind, err)
	}
	if err := v.Start(lease.Lease{Subnet: netip.MustParsePrefix("172.7.21.0/24")}); err != nil {
		t.Fatal(err)
	}
	if err := v.raise(); err != nil {
		t.Fatal(err)
	}
	v.setDown(nil)
	if wrong := link.Check("flannel.1", v.link()); len(wrong) > 0 {
		t.Errorf("once there is one: %v", wrong)
	}
}

package overlay

import (
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"uvxlan/cmd/internal/extiface"
	"uvxlan/cmd/internal/handover"
	"uvxlan/lease"
	"uvxlan/tunnel"
	"uvxlan/tunnel/device"
	"uvxlan/tunnel/netnstest"
)

// newOverlayTest is an overlay of which nothing is open.
func newOverlayTest(t *testing.T) *Overlay {
	t.Helper()
	config, err := lease.ParseConfig([]byte(`{"Network":"172.7.0.0/16","Backend":{"Type":"vxlan"}}`))
	if err != nil {
		t.Fatal(err)
	}
	return newOverlay(Config{
		Options: Options{Workers: 1}, Network: config, Interface: at("192.0.2.1"), StateDir: t.TempDir(),
		Wake: func(string) {}, Logger: slog.New(slog.DiscardHandler),
	})
}

// at is eth0 with an address.
func at(address string) extiface.Interface {
	a := netip.MustParseAddr(address)
	return extiface.Interface{Name: "eth0", MTU: 1500, Address: a, PublicIP: a}
}

// enterHost has the test on a host of its own, which has the addresses 192.0.2.1 and
// 192.0.2.2.
func enterHost(t *testing.T) {
	t.Helper()
	netnstest.RequireRoot(t)
	netnstest.Enter(t)
	netnstest.Run(t, "sh", "-c", `ip link set lo up; ip link add eth0 type bridge
		ip addr add 192.0.2.1/24 dev eth0; ip addr add 192.0.2.2/24 dev eth0; ip link set eth0 up`)
}

// startOverlay is an overlay that is up on a host of its own. Run isn't called.
func startOverlay(t *testing.T) *Overlay {
	t.Helper()
	enterHost(t)
	v := newOverlayTest(t)
	err := v.open()
	t.Cleanup(v.Close)
	if err == nil {
		err = v.Start(lease.Lease{Subnet: netip.MustParsePrefix("172.7.21.0/24")})
	}
	if err == nil {
		err = v.raise()
	}
	if err != nil {
		t.Fatal(err)
	}
	v.setDown(nil)
	return v
}

// A route of somebody's in the place of ours is no reason to give the device up when
// the underlay moves.
func TestIntegrationMoveBesideForeignRoute(t *testing.T) {
	v := startOverlay(t)
	netnstest.Run(t, "ip", "route", "replace", "172.7.0.0/16", "dev", "eth0")
	before, err := net.InterfaceByName(v.name)
	if err != nil {
		t.Fatal(err)
	}
	router, _ := v.inForce()
	if err := v.Move(at("192.0.2.2")); err != nil {
		t.Fatal(err)
	}
	if next, _ := v.inForce(); next == router {
		t.Errorf("there is no other router: %v", v.ended(router, tunnel.ErrClosed))
	}
	if after, err := net.InterfaceByName(v.name); err != nil || after.Index != before.Index {
		t.Errorf("the device is %+v, %v; it was %+v", after, err, before)
	}
}

// Sockets that another process was told of and that are there no longer are not
// released to it, and no move begins once they are.
func TestIntegrationMoveAndHandOver(t *testing.T) {
	v := startOverlay(t)
	e := handover.NewState()
	release := func() error {
		_, err := v.Release(e)
		return err
	}
	if err := v.HandOver(e); err != nil {
		t.Fatal(err)
	}
	if err := v.Move(at("192.0.2.2")); err != nil {
		t.Fatal(err)
	}
	if err := release(); !errors.Is(err, errReplaced) || v.isHanded() {
		t.Fatalf("after a move: %v", err)
	}
	if err := v.HandOver(e); err != nil {
		t.Fatal(err)
	}
	if err := release(); err != nil {
		t.Fatal(err)
	}
	if m := v.beginMove(at("192.0.2.1")); m != nil {
		t.Error("a move begins")
	}
	closeAll(e.TunnelDescriptors())
}

// While the device and the sockets are made again nobody else changes them, and a
// move meanwhile is heeded.
func TestMoveWhileMade(t *testing.T) {
	v := newOverlayTest(t)
	router := &tunnel.Router{}
	v.router, v.down = router, nil
	if err := v.ended(router, device.ErrGone); !errors.Is(err, device.ErrGone) {
		t.Fatalf("the router ended: %v", err)
	}
	made := v.way()
	if err := v.Move(at("192.0.2.2")); err != nil || v.router != router {
		t.Errorf("a move: %v", err)
	}
	if err := v.remadeFor(made, nil); !gone(err) || v.carries() {
		t.Errorf("made for the address before: %v", err)
	}
	if err := v.remadeFor(v.way(), nil); err != nil || !v.carries() {
		t.Errorf("made for the address: %v", err)
	}
}

// A router that a move has ended gives way to the next one, whatever it ended with.
func TestEndedByMove(t *testing.T) {
	v := newOverlayTest(t)
	router := &tunnel.Router{}
	v.router, v.down = router, nil
	m := v.beginMove(at("192.0.2.2"))
	if m == nil {
		t.Fatal("no move begins")
	}
	ended := make(chan error)
	go func() { ended <- v.ended(router, device.ErrGone) }()
	close(m.done)
	select {
	case err := <-ended:
		if err != nil || !v.carries() {
			t.Errorf("after the move: %v", err)
		}
	case <-time.After(20 * time.Second):
		t.Fatal("the move isn't noticed")
	}
}

// A device that is made again stays up beside a foreign route in the place of ours.
func TestIntegrationRemakeBesideForeignRoute(t *testing.T) {
	v := startOverlay(t)
	netnstest.Run(t, "ip", "route", "replace", "172.7.0.0/16", "dev", "eth0")
	if err := v.restart(); err != nil {
		t.Fatal(err)
	}
	faults := v.checkDevice(t.Context())
	if len(faults) != 1 || !strings.Contains(faults[0].What, "172.7.0.0/16 by eth0") {
		t.Errorf("the device's faults are %+v", faults)
	}
}

// A lease beyond what the configuration gives to hosts is routed into the device
// where it is a peer and hides nothing.
func TestIntegrationOutliers(t *testing.T) {
	v := startOverlay(t)
	v.config.Network = netip.MustParsePrefix("0.0.0.0/0")
	v.config.SubnetMin, v.config.SubnetMax = netip.MustParseAddr("172.7.0.0"), netip.MustParseAddr("172.7.255.0")
	peer := func(subnet, host, backend string) lease.Lease {
		return lease.Lease{Subnet: netip.MustParsePrefix(subnet), Attrs: lease.Attrs{
			PublicIP: netip.MustParseAddr(host), BackendType: backend, BackendData: []byte(`{"VNI":1,"VtepMAC":"02:00:00:00:00:09"}`),
		}}
	}
	v.Apply(lease.Update{Reset: true, Leases: []lease.Lease{
		peer("172.7.9.0/24", "192.0.2.9", "vxlan"),       // a usual one
		peer("10.9.9.0/24", "192.0.2.9", "vxlan"),        // an outlier
		peer("10.9.8.0/24", "192.0.2.8", "host-gw"),      // no peer
		peer("192.0.2.0/24", "198.51.100.7", "vxlan"),    // our own underlay
		peer("198.51.100.0/24", "198.51.100.7", "vxlan"), // the peer's
	}})
	if len(v.outliers) != 1 {
		t.Errorf("the outliers are %v", v.outliers)
	}
	if _, ok := v.outliers[netip.MustParsePrefix("10.9.9.0/24")]; !ok {
		t.Errorf("the outliers are %v", v.outliers)
	}
}

package direct_test

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"uvxlan/bench/e2e"

	"uvxlan/bench/cluster"
	"uvxlan/bench/lab"
	"uvxlan/lease"
)

// Hosts of one network reach each other by kernel routes alone, as with
// flannel's host-gw.
func TestIntegrationHostGW(t *testing.T) {
	w := e2e.NewWorld(t, "kb21", "kb22")
	w.Configure(e2e.HostGWConfig)
	daemons := w.Start("kb21", "kb22")
	w.Mesh("kb21", "kb22")
	w.NoLoss()
	seen := watchTraffic(t, w.Host("kb21"))
	e2e.Transfer(t, w.Container("kb21").Node, w.Container("kb22"), 16<<20)
	e2e.Transfer(t, w.Container("kb22").Node, w.Container("kb21"), 16<<20)
	e2e.Transfer(t, w.Host("kb21").Node, w.Container("kb22"), 1<<20)
	if plain, wrapped := seen.count(w.Host("kb22")); plain == 0 || wrapped > 0 {
		t.Errorf("%d packets plain, %d in VXLAN", plain, wrapped)
	}
	for i, d := range daemons {
		e2e.AwaitRoutes(t, d.Host, e2e.RouteTo(daemons[1-i].Host))
		if links := e2e.Command(t, d.Host.Node, "ip -o link show type tun"); links != "" {
			t.Errorf("%s has a device: %s", d.Host.Name, links)
		}
		file := e2e.SubnetFile(t, d.SubnetFile())
		if file["FLANNEL_NETWORK"] != "172.7.0.0/16" || file["FLANNEL_MTU"] != "1500" {
			t.Errorf("the subnet file says %v", file)
		}
		l := w.LeaseOf(d.Host.Name)
		if !l.Attrs.Equal(lease.Attrs{PublicIP: d.Host.Address, BackendType: lease.TypeHostGW}) {
			t.Errorf("the lease says %+v", l.Attrs)
		}
	}
}

// A host whose routes somebody else sets, as flannel's host-gw does, is reached
// as soon as its lease is there.
func TestIntegrationHostGWKernelPeer(t *testing.T) {
	w := e2e.NewWorld(t, "kb21", "kb22")
	w.Configure(e2e.HostGWConfig)
	w.Start("kb21")
	kb21, kb22 := w.Host("kb21"), w.Host("kb22")
	e2e.Command(t, kb22.Node, "ip route add "+e2e.RouteTo(kb21))
	attrs := lease.Attrs{PublicIP: kb22.Address, BackendType: lease.TypeHostGW}
	if _, err := w.Registry().Create(w.Context(), lease.Lease{Subnet: kb22.Subnet, Attrs: attrs}, time.Hour); err != nil {
		t.Fatal(err)
	}
	w.Mesh("kb21", "kb22")
	e2e.AwaitRoutes(t, kb21, e2e.RouteTo(kb22))
	e2e.Transfer(t, w.Container("kb21").Node, w.Container("kb22"), 16<<20)
	e2e.Transfer(t, w.Container("kb22").Node, w.Container("kb21"), 16<<20)
}

// host-gw has no device and takes no driver.
func TestIntegrationHostGWWithoutTUN(t *testing.T) {
	w := e2e.NewWorld(t, "kb21")
	w.Configure(e2e.HostGWConfig)
	w.Cluster.Binary = filepath.Join(t.TempDir(), "uvxland")
	script := "#!/bin/sh\n" + `exec unshare --mount sh -c 'mount -t tmpfs none /dev/net && exec "$0" "$@"' ` + e2e.DaemonBinary + ` "$@"` + "\n"
	if err := os.WriteFile(w.Cluster.Binary, []byte(script), 0o700); err != nil {
		t.Fatal(err)
	}
	d := w.Start("kb21")[0]
	if err := d.Stop(w.Context()); err != nil {
		t.Error(err)
	}
}

// Under a running TCP stream, routes that somebody removes or alters are put
// back; one that somebody else has put in our place is reported,
// left alone, and makes way for ours when it goes.
func TestIntegrationHostGWRoutesPutBack(t *testing.T) {
	w := e2e.NewWorld(t, "kb21", "kb22")
	w.Configure(e2e.HostGWConfig)
	d := w.Start("kb21", "kb22")[0]
	w.Mesh("kb21", "kb22")
	kb21, kb22 := w.Host("kb21"), w.Host("kb22")
	e2e.AwaitRoutes(t, kb21, e2e.RouteTo(kb22))
	s := e2e.StartStream(t, w)
	s.GoesOn()
	elsewhere := fmt.Sprintf("%s via %s", kb22.Subnet, kb21.Gateway)
	for _, c := range []struct {
		command string
		words   []string
		want    []string // routes afterwards
	}{
		{"ip route flush proto 89", []string{"routes put back"}, []string{e2e.RouteTo(kb22)}},
		{"ip route replace " + elsewhere + " proto 89", []string{"routes put back"}, []string{e2e.RouteTo(kb22)}},
		{"ip route replace " + elsewhere + " proto static", []string{
			"no route to peer", "subnet=" + kb22.Subnet.String(), "isn't ours: via " + kb21.Gateway.String() + " dev eth0 proto static", "ip route del " + kb22.Subnet.String(),
		}, nil},
		{"ip route del " + kb22.Subnet.String(), []string{"route to peer is there now"}, []string{e2e.RouteTo(kb22)}},
	} {
		begin := time.Now()
		e2e.Command(t, kb21.Node, c.command)
		line := e2e.AwaitLine(t, d, begin, c.words...)
		e2e.AwaitRoutes(t, kb21, c.want...)
		took := e2e.LogTime(t, line).Sub(begin)
		t.Logf("%s: after %s: %s", c.command, took, line)
		if c.want == nil {
			foreignStays(t, d, kb22, elsewhere)
			continue
		}
		s.GoesOn()
	}
}

// foreignStays looks whether somebody else's route stays where it is, while
// other routes come and go, and is reported once.
func foreignStays(t *testing.T, d *cluster.Daemon, to *lab.Host, route string) {
	t.Helper()
	for range 3 {
		e2e.Command(t, d.Host.Node, "ip route add 172.7.99.0/24 via 192.168.14.99 proto 89")
		e2e.Command(t, d.Host.Node, "ip route del 172.7.99.0/24 proto 89")
		time.Sleep(50 * time.Millisecond) // the daemon looks at what changed
	}
	if now := e2e.Command(t, d.Host.Node, "ip route show "+to.Subnet.String()); !strings.Contains(now, route+" dev eth0 proto static") {
		t.Errorf("the route of somebody else became %q", now)
	}
	if n := strings.Count(e2e.LogOf(t, d), "no route to peer"); n != 1 {
		t.Errorf("it was reported %d times", n)
	}
}

// A host behind a router can't be reached, which the log says once; when it
// comes to be on-link, it gets its route.
func TestIntegrationHostGWRouted(t *testing.T) {
	w := e2e.NewWorld(t)
	w.Configure(e2e.HostGWConfig)
	d := w.Start("kb21", "kb22", "kb31")[0]
	w.Mesh("kb21", "kb22")
	kb21, kb22, kb31 := w.Host("kb21"), w.Host("kb22"), w.Host("kb31")
	const refusal = "peer can't be reached"
	e2e.AwaitLine(t, d, time.Time{}, refusal, "subnet="+kb31.Subnet.String(), "public_ip="+kb31.Address.String(),
		"not on-link: via gateway "+kb21.Gateway.String())
	e2e.AwaitRoutes(t, kb21, e2e.RouteTo(kb22))
	if n := strings.Count(e2e.LogOf(t, d), refusal); n != 1 {
		t.Errorf("it says %d times that kb31 can't be reached", n)
	}
	more := lease.Lease{Subnet: netip.MustParsePrefix("172.7.99.0/24"), Attrs: lease.Attrs{PublicIP: kb31.Address, BackendType: lease.TypeHostGW}}
	if _, err := w.Registry().Create(w.Context(), more, time.Hour); err != nil {
		t.Fatal(err)
	}
	e2e.AwaitLine(t, d, time.Time{}, refusal, "subnet="+more.Subnet.String())

	// Its cable moves to the others' switch.
	e2e.Command(t, w.Router(), "ip link set kb31 master br0")
	e2e.Command(t, kb31.Node, "ip route add 192.168.14.0/24 dev eth0")
	onLink := kb31.Address.String() + "/32 dev eth0"
	begin := time.Now()
	for _, h := range []*lab.Host{kb21, kb22} {
		e2e.Command(t, h.Node, "ip route add "+onLink)
	}
	e2e.AwaitPath(t, d, kb31, "direct now", begin)
	w.Mesh("kb21", "kb22", "kb31")
	e2e.AwaitRoutes(t, kb21, e2e.RouteTo(kb22), e2e.RouteTo(kb31), fmt.Sprintf("%s via %s dev eth0", more.Subnet, kb31.Address))
	e2e.Transfer(t, w.Container("kb31").Node, w.Container("kb21"), 16<<20)

	begin = time.Now()
	e2e.Command(t, kb21.Node, "ip route del "+onLink)
	e2e.AwaitPath(t, d, kb31, refusal, begin)
	e2e.AwaitRoutes(t, kb21, e2e.RouteTo(kb22))
	w.Mesh("kb21", "kb22")
}

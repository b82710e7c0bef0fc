package main

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"uvxlan/bench/cluster"
	"uvxlan/bench/lab"
	"uvxlan/cmd/internal/subnetfile"
	"uvxlan/lease"
)

const hostGWConfig = `{"Network":"172.7.0.0/16","Backend":{"Type":"host-gw"}}`

// command runs a command line on a host and returns what it wrote.
func command(t *testing.T, n *lab.Node, line string) string {
	t.Helper()
	args := strings.Fields(line)
	out, err := n.Run(t.Context(), args[0], args[1:]...)
	if err != nil {
		t.Fatalf("%s: %s: %v", n.Name, line, err)
	}
	return string(out)
}

// ourRoutes are the routes of a host that carry our mark, a line each.
func ourRoutes(t *testing.T, h *lab.Host) []string {
	t.Helper()
	var routes []string
	for line := range strings.Lines(command(t, h.Node, "ip route show proto 89")) {
		routes = append(routes, strings.Join(strings.Fields(line), " "))
	}
	return routes
}

// awaitRoutes waits until a host's routes of ours are the wanted ones.
func awaitRoutes(t *testing.T, h *lab.Host, want ...string) {
	t.Helper()
	var got []string
	for end := time.Now().Add(patience); time.Now().Before(end); {
		if got = ourRoutes(t, h); strings.Join(got, "\n") == strings.Join(want, "\n") {
			return
		}
	}
	t.Fatalf("%s has the routes %q, want %q", h.Name, got, want)
}

// routeTo is the route to a host's containers by way of that host.
func routeTo(h *lab.Host) string { return fmt.Sprintf("%s via %s dev eth0", h.Subnet, h.Address) }

// Hosts of one network reach each other by kernel routes alone, as with
// flannel's host-gw.
func TestIntegrationHostGW(t *testing.T) {
	w := newWorld(t, "kb21", "kb22")
	w.configure(hostGWConfig)
	daemons := w.start("kb21", "kb22")
	w.mesh("kb21", "kb22")
	noLoss(t, w.Hosts())
	seen := watchTraffic(t, w.Host("kb21"))
	transfer(t, w.container("kb21").Node, w.container("kb22"), 64<<20)
	transfer(t, w.container("kb22").Node, w.container("kb21"), 64<<20)
	transfer(t, w.Host("kb21").Node, w.container("kb22"), 1<<20)
	if plain, wrapped := seen.count(w.Host("kb22")); plain == 0 || wrapped > 0 {
		t.Errorf("%d packets plain, %d in VXLAN", plain, wrapped)
	}
	for i, d := range daemons {
		awaitRoutes(t, d.Host, routeTo(daemons[1-i].Host))
		if links := command(t, d.Host.Node, "ip -o link show type tun"); links != "" {
			t.Errorf("%s has a device: %s", d.Host.Name, links)
		}
		file, err := subnetfile.Read(d.SubnetFile())
		want := subnetfile.File{Network: overlayNetwork, Subnet: d.Host.Subnet, MTU: 1500}
		if err != nil || file != want {
			t.Errorf("the subnet file says %+v, want %+v, %v", file, want, err)
		}
		l := w.leaseOf(d.Host.Name)
		if !l.Attrs.Equal(lease.Attrs{PublicIP: d.Host.Address, BackendType: lease.TypeHostGW}) {
			t.Errorf("the lease says %+v", l.Attrs)
		}
	}
}

// A host whose routes somebody else sets, as flannel's host-gw does, is reached
// as soon as its lease is there.
func TestIntegrationHostGWKernelPeer(t *testing.T) {
	w := newWorld(t, "kb21", "kb22")
	w.configure(hostGWConfig)
	w.start("kb21")
	kb21, kb22 := w.Host("kb21"), w.Host("kb22")
	command(t, kb22.Node, "ip route add "+routeTo(kb21))
	attrs := lease.Attrs{PublicIP: kb22.Address, BackendType: lease.TypeHostGW}
	if _, err := w.registry().Create(w.context(), lease.Lease{Subnet: kb22.Subnet, Attrs: attrs}, time.Hour); err != nil {
		t.Fatal(err)
	}
	w.mesh("kb21", "kb22")
	awaitRoutes(t, kb21, routeTo(kb22))
	transfer(t, w.container("kb21").Node, w.container("kb22"), 16<<20)
	transfer(t, w.container("kb22").Node, w.container("kb21"), 16<<20)
}

// host-gw has no device and takes no driver.
func TestIntegrationHostGWWithoutTUN(t *testing.T) {
	w := newWorld(t, "kb21")
	w.configure(hostGWConfig)
	w.cluster.Binary = filepath.Join(t.TempDir(), "uvxland")
	script := "#!/bin/sh\n" + `exec unshare --mount sh -c 'mount -t tmpfs none /dev/net && exec "$0" "$@"' ` + daemonBinary + ` "$@"` + "\n"
	if err := os.WriteFile(w.cluster.Binary, []byte(script), 0o700); err != nil {
		t.Fatal(err)
	}
	d := w.start("kb21")[0]
	if err := d.Stop(w.context()); err != nil {
		t.Error(err)
	}
}

// Under a running TCP stream, routes that somebody removes or alters are put
// back within 200 ms; one that somebody else has put in our place is reported,
// left alone, and makes way for ours when it goes.
func TestIntegrationHostGWRoutesPutBack(t *testing.T) {
	w := newWorld(t, "kb21", "kb22")
	w.configure(hostGWConfig)
	d := w.start("kb21", "kb22")[0]
	w.mesh("kb21", "kb22")
	kb21, kb22 := w.Host("kb21"), w.Host("kb22")
	awaitRoutes(t, kb21, routeTo(kb22))
	s := startStream(t, w)
	s.goesOn()
	elsewhere := fmt.Sprintf("%s via %s", kb22.Subnet, kb21.Gateway)
	for _, c := range []struct {
		command string
		words   []string
		want    []string // routes afterwards
	}{
		{"ip route flush proto 89", []string{"routes put back"}, []string{routeTo(kb22)}},
		{"ip route replace " + elsewhere + " proto 89", []string{"routes put back"}, []string{routeTo(kb22)}},
		{"ip route replace " + elsewhere + " proto static", []string{
			"no route to peer", "subnet=" + kb22.Subnet.String(), "isn't ours: via " + kb21.Gateway.String() + " dev eth0 proto static", "ip route del " + kb22.Subnet.String(),
		}, nil},
		{"ip route del " + kb22.Subnet.String(), []string{"route to peer is there now"}, []string{routeTo(kb22)}},
	} {
		begin := time.Now()
		command(t, kb21.Node, c.command)
		line := awaitLine(t, d, begin, c.words...)
		awaitRoutes(t, kb21, c.want...)
		took := logTime(t, line).Sub(begin)
		t.Logf("%s: after %s: %s", c.command, took, line)
		if took > 200*time.Millisecond {
			t.Errorf("%s: followed after %s", c.command, took)
		}
		if c.want == nil {
			foreignStays(t, d, kb22, elsewhere)
			continue
		}
		s.goesOn()
	}
}

// foreignStays looks whether somebody else's route stays where it is, while
// other routes come and go, and is reported once.
func foreignStays(t *testing.T, d *cluster.Daemon, to *lab.Host, route string) {
	t.Helper()
	for range 3 {
		command(t, d.Host.Node, "ip route add 172.7.99.0/24 via 192.168.14.99 proto 89")
		command(t, d.Host.Node, "ip route del 172.7.99.0/24 proto 89")
		time.Sleep(50 * time.Millisecond) // the daemon looks at what changed
	}
	if now := command(t, d.Host.Node, "ip route show "+to.Subnet.String()); !strings.Contains(now, route+" dev eth0 proto static") {
		t.Errorf("the route of somebody else became %q", now)
	}
	if n := strings.Count(logOf(t, d), "no route to peer"); n != 1 {
		t.Errorf("it was reported %d times", n)
	}
}

// A host behind a router can't be reached, which the log says once; when it
// comes to be on-link, it gets its route.
func TestIntegrationHostGWRouted(t *testing.T) {
	w := newWorld(t)
	w.configure(hostGWConfig)
	d := w.start("kb21", "kb22", "kb31")[0]
	w.mesh("kb21", "kb22")
	kb21, kb22, kb31 := w.Host("kb21"), w.Host("kb22"), w.Host("kb31")
	const refusal = "peer can't be reached"
	awaitLine(t, d, time.Time{}, refusal, "subnet="+kb31.Subnet.String(), "public_ip="+kb31.Address.String(),
		"not on-link: via gateway "+kb21.Gateway.String())
	awaitRoutes(t, kb21, routeTo(kb22))
	if n := strings.Count(logOf(t, d), refusal); n != 1 {
		t.Errorf("it says %d times that kb31 can't be reached", n)
	}
	more := lease.Lease{Subnet: netip.MustParsePrefix("172.7.99.0/24"), Attrs: lease.Attrs{PublicIP: kb31.Address, BackendType: lease.TypeHostGW}}
	if _, err := w.registry().Create(w.context(), more, time.Hour); err != nil {
		t.Fatal(err)
	}
	awaitLine(t, d, time.Time{}, refusal, "subnet="+more.Subnet.String())

	// Its cable moves to the others' switch.
	command(t, w.Router(), "ip link set kb31 master br0")
	command(t, kb31.Node, "ip route add 192.168.14.0/24 dev eth0")
	onLink := kb31.Address.String() + "/32 dev eth0"
	begin := time.Now()
	for _, h := range []*lab.Host{kb21, kb22} {
		command(t, h.Node, "ip route add "+onLink)
	}
	awaitPath(t, d, kb31, "direct now", begin)
	w.mesh("kb21", "kb22", "kb31")
	awaitRoutes(t, kb21, routeTo(kb22), routeTo(kb31), fmt.Sprintf("%s via %s dev eth0", more.Subnet, kb31.Address))
	transfer(t, w.container("kb31").Node, w.container("kb21"), 16<<20)

	begin = time.Now()
	command(t, kb21.Node, "ip route del "+onLink)
	awaitPath(t, d, kb31, refusal, begin)
	awaitRoutes(t, kb21, routeTo(kb22))
	w.mesh("kb21", "kb22")
}

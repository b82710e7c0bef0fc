package direct_test

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"uvxlan/bench/e2e"

	"uvxlan/bench/cluster"
	"uvxlan/bench/lab"
	"uvxlan/lease"
)

// traffic counts what passes a host's underlay interface, by the other end and
// whether it is wrapped.
type traffic struct {
	capture *lab.Capture
	t       *testing.T
}

func watchTraffic(t *testing.T, h *lab.Host) traffic {
	t.Helper()
	c, err := h.Capture(t.Context(), "eth0", func(p lab.Packet) bool {
		_, _, _, ok := p.IPv4()
		return ok
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return traffic{c, t}
}

// count returns how many packets went to or came from the host's containers
// plainly, and how many went to or came from the host in VXLAN.
func (c traffic) count(far *lab.Host) (plain, wrapped int) {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(c.t.Context(), e2e.Patience)
	defer cancel()
	if err := c.capture.Settle(ctx); err != nil {
		c.t.Fatal(err)
	}
	if n, err := c.capture.Drops(); n > 0 || err != nil {
		c.t.Errorf("the capture missed %d packets: %v", n, err)
	}
	for _, p := range c.capture.Packets() {
		src, dst, _, _ := p.IPv4()
		switch {
		case far.Subnet.Contains(src), far.Subnet.Contains(dst):
			plain++
		case p.IsUDP(lease.DefaultPort) && (src == far.Address || dst == far.Address):
			wrapped++
		}
	}
	return plain, wrapped
}

// Hosts of one network send to each other plainly, and by VXLAN to the host
// behind the router.
func TestIntegrationHybrid(t *testing.T) {
	for name, config := range map[string]string{"socket": e2e.HybridConfig, "route": e2e.RouteConfig} {
		t.Run(name, func(t *testing.T) {
			w := e2e.NewWorld(t)
			w.Configure(config)
			daemons := w.Start("kb21", "kb22", "kb31")
			w.Mesh("kb21", "kb22", "kb31")
			e2e.AwaitDirect(t, daemons[:2]...)
			w.Mesh("kb21", "kb22") // nothing is on its way by VXLAN any more
			seen := watchTraffic(t, w.Host("kb21"))
			w.NoLoss()
			for _, pair := range [][2]string{{"kb21", "kb22"}, {"kb22", "kb21"}, {"kb21", "kb31"}, {"kb31", "kb21"}, {"kb22", "kb31"}} {
				e2e.Transfer(t, w.Container(pair[0]).Node, w.Container(pair[1]), 16<<20)
			}
			e2e.Transfer(t, w.Host("kb21").Node, w.Container("kb22"), 1<<20)
			if plain, wrapped := seen.count(w.Host("kb22")); plain == 0 || wrapped > 0 {
				t.Errorf("between kb21 and kb22: %d packets plain, %d in VXLAN", plain, wrapped)
			}
			if plain, wrapped := seen.count(w.Host("kb31")); plain > 0 || wrapped == 0 {
				t.Errorf("between kb21 and kb31: %d packets plain, %d in VXLAN", plain, wrapped)
			}
			for _, to := range []*lab.Container{w.Container("kb22"), w.Container("kb31")} {
				w.SendDatagrams(w.Container("kb21").Node, to.Node, to.Address)
			}
		})
	}
}

// One host sends plainly and the other by VXLAN: each decides alone.
func TestIntegrationHybridOneSided(t *testing.T) {
	w := e2e.NewWorld(t, "kb21", "kb22")
	w.Configure(e2e.HybridConfig)
	d := w.Start("kb21")[0]
	w.Configure(e2e.VXLANConfig)
	w.Start("kb22")
	w.Mesh("kb21", "kb22")
	e2e.AwaitPath(t, d, w.Host("kb22"), "direct now", time.Time{})
	seen := watchTraffic(t, w.Host("kb21"))
	e2e.Transfer(t, w.Container("kb21").Node, w.Container("kb22"), 16<<20)
	e2e.Transfer(t, w.Container("kb22").Node, w.Container("kb21"), 16<<20)
	if plain, wrapped := seen.count(w.Host("kb22")); plain == 0 || wrapped == 0 {
		t.Errorf("%d packets plain, %d in VXLAN, want both", plain, wrapped)
	}
}

// A strict reverse-path filter doesn't stop what comes without VXLAN, and is as
// before when the daemon has stopped.
func TestIntegrationHybridReversePathFilter(t *testing.T) {
	w := e2e.NewWorld(t, "kb21", "kb22")
	for _, h := range w.Hosts() {
		for _, iface := range []string{"all", "eth0"} {
			if err := h.Sysctl("ipv4/conf/"+iface+"/rp_filter", "1"); err != nil {
				t.Fatal(err)
			}
		}
	}
	w.Configure(e2e.HybridConfig)
	daemons := w.Start("kb21", "kb22")
	w.Mesh("kb21", "kb22")
	e2e.AwaitDirect(t, daemons...)
	w.NoLoss()
	for _, d := range daemons {
		if err := d.Stop(w.Context()); err != nil {
			t.Error(err)
		}
		out, err := d.Host.Run(w.Context(), "cat", "/proc/sys/net/ipv4/conf/eth0/rp_filter")
		if err != nil || strings.TrimSpace(string(out)) != "1" {
			t.Errorf("rp_filter on %s is %q afterwards, %v", d.Host.Name, out, err)
		}
	}
}

// A kernel VXLAN peer that routes directly, as flannel does it.
func TestIntegrationHybridKernelPeer(t *testing.T) {
	w := e2e.NewWorld(t)
	w.Configure(e2e.HybridConfig)
	d := w.Start("kb21", "kb31")[0]
	peer := e2e.NewKernelPeer(t, w.Host("kb22"))
	if _, err := w.Registry().Create(w.Context(), peer.Lease(), time.Hour); err != nil {
		t.Fatal(err)
	}
	peer.Learn(w.LeaseOf("kb31"))
	kb21 := w.Host("kb21")
	if out, err := w.Host("kb22").Run(w.Context(), "ip", "route", "replace", kb21.Subnet.String(), "via", kb21.Address.String()); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	e2e.AwaitPath(t, d, w.Host("kb22"), "direct now", time.Time{})
	w.Mesh("kb21", "kb22", "kb31")
	seen := watchTraffic(t, kb21)
	e2e.Transfer(t, w.Container("kb21").Node, w.Container("kb22"), 16<<20)
	e2e.Transfer(t, w.Container("kb22").Node, w.Container("kb21"), 16<<20)
	for _, to := range []*lab.Container{w.Container("kb21"), w.Container("kb31")} {
		w.SendDatagrams(w.Container("kb22").Node, to.Node, to.Address)
	}
	if plain, wrapped := seen.count(w.Host("kb22")); plain == 0 || wrapped > 0 {
		t.Errorf("%d packets plain, %d in VXLAN", plain, wrapped)
	}
}

// The underlay changes under a running TCP stream: the path follows, and the
// stream goes on.
func TestIntegrationHybridChanges(t *testing.T) {
	for name, config := range map[string]string{"socket": e2e.HybridConfig, "route": e2e.RouteConfig} {
		t.Run(name, func(t *testing.T) {
			w := e2e.NewWorld(t)
			w.Configure(config)
			daemons := w.Start("kb21", "kb22", "kb31")
			w.Mesh("kb21", "kb22", "kb31")
			e2e.AwaitDirect(t, daemons[:2]...)
			s := e2e.StartStream(t, w)
			for _, c := range changesOf(w, name) {
				c.make(t, w, daemons[0])
				if c.name == "link down" {
					s.Stalls() // nothing can pass
				} else {
					s.GoesOn()
				}
			}
		})
	}
}

// change is something that happens to the underlay of kb21, with the word that
// its daemon must have for the way to kb22.
type change struct {
	name     string
	commands []string // on the host that they begin with
	want     []string
}

func changesOf(w *e2e.World, mode string) []change {
	kb22 := w.Host("kb22").Address
	changes := []change{
		{"via gateway", []string{fmt.Sprintf("kb21 ip route add %s/32 via %s dev eth0", kb22, w.Host("kb21").Gateway)}, []string{"back to vxlan"}},
		{"on-link again", []string{fmt.Sprintf("kb21 ip route del %s/32", kb22)}, []string{"direct now"}},
		{"link down", []string{"kb21 ip link set eth0 down"}, []string{"back to vxlan"}},
		{"link up", []string{"kb21 ip link set eth0 up", fmt.Sprintf("kb21 ip route add default via %s", w.Host("kb21").Gateway)}, []string{"direct now"}},
	}
	if mode == "socket" {
		changes = append(changes,
			change{"neighbour fails", []string{fmt.Sprintf("kb21 ip neigh change %s dev eth0 nud failed", kb22)}, []string{"neighbour failed", "direct now"}},
			change{"peer's MAC changes", []string{
				"kb22 sysctl -qw net.ipv4.conf.eth0.arp_notify=1",
				"kb22 ip link set eth0 address 02:00:00:00:22:22",
			}, []string{"02:00:00:00:22:22"}},
		)
	}
	return changes
}

// make makes the change and waits for the daemon to follow.
func (c change) make(t *testing.T, w *e2e.World, d *cluster.Daemon) {
	t.Helper()
	begin := time.Now()
	for _, command := range c.commands {
		host, rest, _ := strings.Cut(command, " ")
		args := strings.Fields(rest)
		begin = time.Now()
		if out, err := w.Host(host).Run(w.Context(), args[0], args[1:]...); err != nil {
			t.Fatalf("%s: %v: %s", command, err, out)
		}
	}
	for _, want := range c.want {
		line := e2e.AwaitPath(t, d, w.Host("kb22"), want, begin)
		took := e2e.LogTime(t, line).Sub(begin)
		t.Logf("%s: followed after %s: %s", c.name, took, line)
	}
}

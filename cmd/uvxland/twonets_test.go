package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"uvxlan/bench/cluster"
	"uvxlan/bench/lab"
)

// second is a second network on hosts of a world: containers, etcd prefix,
// daemons and their files of its own, beside the first one's.
type second struct {
	*world
	hosts []*lab.Host // the world's, with the second network's containers
}

// newSecond gives each of the hosts a container of the second network, whose
// namespace is that of a spare host.
func (w *world) newSecond(config string, hosts ...string) *second {
	w.t.Helper()
	s := &second{world: w}
	for i, name := range hosts {
		spare, err := w.AddHost(w.context(), lab.HostSpec{
			Name: "kb4" + name[3:], Underlay: netip.PrefixFrom(netip.AddrFrom4([4]byte{192, 168, 16, byte(41 + i)}), 24),
			Gateway: netip.MustParseAddr("192.168.16.1"), Subnet: netip.PrefixFrom(netip.AddrFrom4([4]byte{172, 9, byte(i), 0}), 24),
		})
		if err != nil {
			w.t.Fatal(err)
		}
		h := *w.Host(name)
		b := h.Subnet.Addr().As4()
		b[1] = 8
		h.Subnet = netip.PrefixFrom(netip.AddrFrom4(b), 24)
		gateway := h.Subnet.Addr().Next()
		h.Container = &lab.Container{Node: spare.Node, Address: gateway.Next()}
		for _, c := range []struct {
			node *lab.Node
			line string
		}{
			{h.Node, "ip link add second0 mtu 1450 type veth peer name second0 mtu 1450 netns " + spare.Name},
			{h.Node, fmt.Sprintf("ip address add %s/24 dev second0", gateway)},
			{h.Node, "ip link set second0 up"},
			{spare.Node, fmt.Sprintf("ip address add %s/24 dev second0", h.Container.Address)},
			{spare.Node, "ip link set second0 up"},
			{spare.Node, fmt.Sprintf("ip route replace default via %s", gateway)},
		} {
			command(w.t, c.node, c.line)
		}
		s.hosts = append(s.hosts, &h)
	}
	first := *w.cluster
	first.Dir, first.Prefix = filepath.Join(w.dir, "second"), "/second/network"
	s.cluster(&first, config)
	return s
}

// cluster makes c the second network's, with a configuration.
func (s *second) cluster(c *cluster.Cluster, config string) {
	s.t.Helper()
	w := *s.world
	w.cluster = c
	s.world = &w
	s.configure(config)
}

// startAll starts the second network's daemons, and waits until its containers
// reach each other.
func (s *second) startAll() (daemons []*cluster.Daemon) {
	s.t.Helper()
	for _, h := range s.hosts {
		d, err := s.world.cluster.Start(s.t.Context(), h)
		if err != nil {
			s.t.Fatal(err)
		}
		daemons = append(daemons, d)
	}
	for _, d := range daemons {
		if err := d.Ready(s.context()); err != nil {
			s.t.Fatal(err)
		}
	}
	s.meshAll()
	return daemons
}

func (s *second) meshAll() {
	s.t.Helper()
	if _, err := cluster.Mesh(s.context(), s.hosts, lab.DefaultContainerMTU); err != nil {
		s.t.Fatal(err)
	}
}

// reaches tells whether a TCP segment from a node comes to an address, where no
// port is open; by a device, if one is named.
func reaches(t *testing.T, from *lab.Node, device string, to netip.Addr) bool {
	t.Helper()
	d := net.Dialer{Timeout: 500 * time.Millisecond, Control: func(_, _ string, c syscall.RawConn) (err error) {
		if device == "" {
			return nil
		}
		failed := c.Control(func(fd uintptr) { err = unix.BindToDevice(int(fd), device) })
		return errors.Join(failed, err)
	}}
	err := from.Do(func() error {
		conn, err := d.DialContext(t.Context(), "tcp4", netip.AddrPortFrom(to, 9).String())
		if err == nil {
			conn.Close()
		}
		return err
	})
	if err == nil || errors.Is(err, context.Canceled) {
		t.Fatalf("%s -> %s: %v", from.Name, to, err)
	}
	return errors.Is(err, unix.ECONNREFUSED)
}

const (
	secondVXLAN  = `{"Network":"172.8.0.0/16","Backend":{"Type":"VxLAN","VNI":2,"Port":8472}}`
	secondDirect = `{"Network":"172.8.0.0/16","Backend":{"Type":"VxLAN","Directrouting":true,"VNI":2,"Port":8472}}`
)

// reach is whether a node reaches an address by a device, the one of its routes
// if it is empty.
type reach struct {
	from   *lab.Node
	device string
	to     *lab.Container
	want   bool
}

func expectReach(t *testing.T, all []reach) {
	t.Helper()
	for _, r := range all {
		if got := reaches(t, r.from, r.device, r.to.Address); got != r.want {
			t.Errorf("%s by %q reaches %s of %s: %t", r.from.Name, r.device, r.to.Address, r.to.Name, got)
		}
	}
}

// Two networks by VXLAN on the same hosts: containers and hosts reach those of
// their own, and nothing gets from one into the other.
func TestIntegrationTwoNetworksApart(t *testing.T) {
	w := newWorld(t, "kb21", "kb22")
	s := w.newSecond(secondVXLAN, "kb21", "kb22")
	w.start("kb21", "kb22")
	s.startAll()
	w.mesh("kb21", "kb22")
	host, first, second := w.Host("kb21").Node, w.container("kb22"), s.hosts[1].Container
	expectReach(t, []reach{
		{host, "flannel.1", first, true},
		{host, "flannel.2", second, true},
		{host, "flannel.1", second, false},
		{host, "flannel.2", first, false},
		{host, "eth0", first, false},
		{w.container("kb21").Node, "", first, true},
		{s.hosts[0].Container.Node, "", second, true},
		{w.container("kb21").Node, "", second, false},
		{s.hosts[0].Container.Node, "", first, false},
	})
	transfer(t, w.container("kb21").Node, first, 16<<20)
	transfer(t, s.hosts[0].Container.Node, second, 16<<20)
}

// Of two networks on the same hosts, with direct routes, one that stops, is
// killed or is cleaned up leaves the other alone.
func TestIntegrationTwoNetworksEnd(t *testing.T) {
	w := newWorld(t, "kb21", "kb22")
	kb21, kb22 := w.Host("kb21"), w.Host("kb22")
	for _, h := range []*lab.Host{kb21, kb22} {
		strictReversePath(t, h)
	}
	s := w.newSecond(secondDirect, "kb21", "kb22")
	w.configure(hybridConfig)
	firsts := w.start("kb21", "kb22")
	w.mesh("kb21", "kb22")
	awaitDirect(t, firsts...)
	before := settledState(t, kb21)
	seconds := s.startAll()
	awaitDirect(t, seconds...)
	w.mesh("kb21", "kb22")
	for i, subnet := range []netip.Prefix{kb21.Subnet, s.hosts[0].Subnet} {
		if rules := networkRules(t, kb21, subnet); len(rules) != 2 {
			t.Errorf("the network of number %d has the rules %q", i+1, rules)
		}
	}

	stream := startStream(t, w)
	for _, signal := range []unix.Signal{unix.SIGTERM, unix.SIGKILL} {
		end(t, signal, seconds...)
		s.cleanupAll(seconds)
		stream.goesOn()
		w.mesh("kb21", "kb22")
		for _, h := range []*lab.Host{kb21, kb22} {
			awaitLoose(t, h)
		}
		expectState(t, kb21, before, fmt.Sprintf("after %s of the second network's daemon", signal))
		seconds = s.startAll()
		awaitDirect(t, seconds...)
	}
	// The other way round: the first goes, the second stays.
	end(t, unix.SIGTERM, firsts...)
	for _, d := range firsts {
		command(t, d.Host.Node, commandBinary+" cleanup -state-dir "+d.StateDir())
	}
	for _, h := range s.hosts {
		awaitLoose(t, h)
	}
	transfer(t, s.hosts[0].Container.Node, s.hosts[1].Container, 16<<20)
	if rules := networkRules(t, kb21, s.hosts[0].Subnet); len(rules) != 2 {
		t.Errorf("of the second network's rules there are %q", rules)
	}
	end(t, unix.SIGTERM, seconds...)
	if filter := reversePath(t, kb21); filter != "1" {
		t.Errorf("after all daemons rp_filter is %s", filter)
	}
}

func (s *second) cleanupAll(daemons []*cluster.Daemon) {
	s.t.Helper()
	for _, d := range daemons {
		command(s.t, d.Host.Node, commandBinary+" cleanup -state-dir "+d.StateDir())
	}
}

// networkRules are a host's rules, of either way, that name a subnet's network.
func networkRules(t *testing.T, h *lab.Host, subnet netip.Prefix) []string {
	t.Helper()
	network := netip.PrefixFrom(subnet.Addr(), 16).Masked().String()
	out, err := h.Run(t.Context(), "sh", "-c", "iptables -S; iptables -t nat -S; nft list ruleset | sed -n '/table ip flannel-ipv4/,/^}/p'")
	if err != nil {
		t.Fatal(err)
	}
	var rules []string
	for line := range strings.Lines(string(out)) {
		if strings.Contains(line, network) {
			rules = append(rules, strings.TrimSpace(line))
		}
	}
	return slices.Compact(rules)
}

// awaitLoose waits until the reverse-path filter is loose.
func awaitLoose(t *testing.T, h *lab.Host) {
	t.Helper()
	for end := time.Now().Add(patience); reversePath(t, h) != "2"; {
		if time.Now().After(end) {
			t.Fatalf("rp_filter of %s stays strict", h.Name)
		}
	}
}

// One network's rules by iptables and the other's by nftables, with masquerading:
// neither daemon takes the other way's rules for its own earlier ones.
func TestIntegrationTwoNetworksMasquerade(t *testing.T) {
	w := newWorld(t, "kb21", "kb22")
	w.cluster.Args = []string{"-ip-masq", "-iptables-resync=1"}
	s := w.newSecond(`{"Network":"172.8.0.0/16","EnableNFTables":true,"Backend":{"Type":"VxLAN","VNI":2,"Port":8472}}`, "kb21", "kb22")
	kb21 := w.Host("kb21")
	firsts := w.start("kb21", "kb22")
	first := networkRules(t, kb21, kb21.Subnet)
	seconds := s.startAll()
	w.mesh("kb21", "kb22")
	other := networkRules(t, kb21, s.hosts[0].Subnet)
	if len(first) < 7 || len(other) < 7 {
		t.Errorf("the rules are\n%s\nand\n%s", strings.Join(first, "\n"), strings.Join(other, "\n"))
	}
	same := func(when string, subnet netip.Prefix, want []string) {
		t.Helper()
		if now := networkRules(t, kb21, subnet); !slices.Equal(now, want) {
			t.Errorf("%s, rules of %s are\n%s\nthey were\n%s", when, subnet, strings.Join(now, "\n"), strings.Join(want, "\n"))
		}
	}
	same("beside the second", kb21.Subnet, first)
	for i := range 2 {
		end(t, unix.SIGTERM, firsts...)
		firsts = w.start("kb21", "kb22")
		same(fmt.Sprintf("after restart %d of the first", i), s.hosts[0].Subnet, other)
		same(fmt.Sprintf("after restart %d of its own", i), kb21.Subnet, first)
	}
	end(t, unix.SIGTERM, firsts...)
	for _, d := range firsts {
		command(t, d.Host.Node, commandBinary+" cleanup -state-dir "+d.StateDir())
	}
	same("after cleanup of the first", s.hosts[0].Subnet, other)
	same("after its own cleanup", kb21.Subnet, nil)
	s.meshAll()
	end(t, unix.SIGTERM, seconds...)
	s.cleanupAll(seconds)
	same("after its own cleanup", s.hosts[0].Subnet, nil)
	for _, line := range []string{"iptables -t nat -S", "iptables -S", "nft list ruleset"} {
		if out := command(t, kb21.Node, line); strings.Contains(strings.ToLower(out), "flannel") {
			t.Errorf("%s: what is left is\n%s", line, out)
		}
	}
}

// VXLAN and host-gw on one host: both keep kernel routes of our protocol, each
// those of its own network, whatever the other does.
func TestIntegrationTwoNetworksHostGW(t *testing.T) {
	w := newWorld(t, "kb21", "kb22")
	s := w.newSecond(`{"Network":"172.8.0.0/16","Backend":{"Type":"host-gw"}}`, "kb21", "kb22")
	kb21, kb22 := w.Host("kb21"), w.Host("kb22")
	seconds := s.startAll()
	second := routeTo(s.hosts[1])
	awaitRoutes(t, kb21, second)
	seen := watchRoutes(t, kb21)
	device := "172.7.0.0/16 dev flannel.1 scope link src " + kb21.Subnet.Addr().String()
	for _, c := range []struct {
		config string
		want   []string
	}{
		{vxlanConfig, []string{device, second}},
		{routeConfig, []string{device, routeTo(kb22), second}},
		{vxlanConfig, []string{device, second}}, // removes what the run before it left, and no more
	} {
		w.configure(c.config)
		firsts := w.start("kb21", "kb22")
		w.mesh("kb21", "kb22")
		awaitRoutes(t, kb21, c.want...)
		s.meshAll()
		if c.config == vxlanConfig { // as flannel's own test of two networks has it
			expectReach(t, []reach{
				{kb21.Node, "flannel.1", kb22.Container, true},
				{kb21.Node, "eth0", s.hosts[1].Container, true},
				{kb21.Node, "flannel.1", s.hosts[1].Container, false},
				{kb21.Node, "eth0", kb22.Container, false},
			})
		}
		end(t, unix.SIGKILL, firsts...)
	}
	w.configure(routeConfig)
	firsts := w.start("kb21", "kb22")
	awaitRoutes(t, kb21, device, routeTo(kb22), second)
	for _, u := range seen() {
		if u.Dst.String() == s.hosts[1].Subnet.String() {
			t.Errorf("the second network's route was touched: %+v", u)
		}
	}
	// host-gw takes its routes as its own after a restart, and leaves the others.
	end(t, unix.SIGKILL, seconds...)
	seconds = s.startAll()
	awaitRoutes(t, kb21, device, routeTo(kb22), second)
	end(t, unix.SIGTERM, seconds...)
	s.cleanupAll(seconds)
	awaitRoutes(t, kb21, device, routeTo(kb22))
	w.mesh("kb21", "kb22")
	end(t, unix.SIGTERM, firsts...)
}

package host_test

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

	"uvxlan/bench/e2e"

	"golang.org/x/sys/unix"

	"uvxlan/bench/cluster"
	"uvxlan/bench/lab"
)

// second is a second network on hosts of a world: containers, etcd prefix,
// daemons and their files of its own, beside the first one's.
type second struct {
	*e2e.World
	hosts []*lab.Host // the world's, with the second network's containers
}

// newSecond gives each of the hosts a container of the second network, whose
// namespace is that of a spare host.
func newSecond(w *e2e.World, config string, hosts ...string) *second {
	w.T.Helper()
	s := &second{World: w}
	for i, name := range hosts {
		spare, err := w.AddHost(w.Context(), lab.HostSpec{
			Name: "kb4" + name[3:], Underlay: netip.PrefixFrom(netip.AddrFrom4([4]byte{192, 168, 16, byte(41 + i)}), 24),
			Gateway: netip.MustParseAddr("192.168.16.1"), Subnet: netip.PrefixFrom(netip.AddrFrom4([4]byte{172, 9, byte(i), 0}), 24),
		})
		if err != nil {
			w.T.Fatal(err)
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
			e2e.Command(w.T, c.node, c.line)
		}
		s.hosts = append(s.hosts, &h)
	}
	first := *w.Cluster
	first.Dir, first.Prefix = filepath.Join(w.Dir, "second"), "/second/network"
	s.cluster(&first, config)
	return s
}

// cluster makes c the second network's, with a configuration.
func (s *second) cluster(c *cluster.Cluster, config string) {
	s.T.Helper()
	w := *s.World
	w.Cluster = c
	s.World = &w
	s.Configure(config)
}

// startAll starts the second network's daemons, and waits until its containers
// reach each other.
func (s *second) startAll() (daemons []*cluster.Daemon) {
	s.T.Helper()
	for _, h := range s.hosts {
		d, err := s.Cluster.Start(s.T.Context(), h)
		if err != nil {
			s.T.Fatal(err)
		}
		daemons = append(daemons, d)
	}
	for _, d := range daemons {
		if err := d.Ready(s.Context()); err != nil {
			s.T.Fatal(err)
		}
	}
	s.meshAll()
	return daemons
}

func (s *second) meshAll() {
	s.T.Helper()
	if _, err := cluster.Mesh(s.Context(), s.hosts, lab.DefaultContainerMTU); err != nil {
		s.T.Fatal(err)
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
		got := reaches(t, r.from, r.device, r.to.Address)
		for late := time.Now().Add(e2e.Patience); r.want && !got && time.Now().Before(late); {
			got = reaches(t, r.from, r.device, r.to.Address)
		}
		if got != r.want {
			t.Errorf("%s by %q reaches %s of %s: %t", r.from.Name, r.device, r.to.Address, r.to.Name, got)
		}
	}
}

// Two networks by VXLAN on the same hosts: containers and hosts reach those of
// their own, and nothing gets from one into the other.
func TestIntegrationTwoNetworksApart(t *testing.T) {
	w := e2e.NewWorld(t, "kb21", "kb22")
	s := newSecond(w, secondVXLAN, "kb21", "kb22")
	w.Start("kb21", "kb22")
	s.startAll()
	w.Mesh("kb21", "kb22")
	host, first, second := w.Host("kb21").Node, w.Container("kb22"), s.hosts[1].Container
	expectReach(t, []reach{
		{host, "flannel.1", first, true},
		{host, "flannel.2", second, true},
		{host, "flannel.1", second, false},
		{host, "flannel.2", first, false},
		{host, "eth0", first, false},
		{w.Container("kb21").Node, "", first, true},
		{s.hosts[0].Container.Node, "", second, true},
		{w.Container("kb21").Node, "", second, false},
		{s.hosts[0].Container.Node, "", first, false},
	})
	e2e.Transfer(t, w.Container("kb21").Node, first, 16<<20)
	e2e.Transfer(t, s.hosts[0].Container.Node, second, 16<<20)
}

// Of two networks on the same hosts, with direct routes, one that stops, is
// killed or is cleaned up leaves the other alone.
func TestIntegrationTwoNetworksEnd(t *testing.T) {
	w := e2e.NewWorld(t, "kb21", "kb22")
	kb21, kb22 := w.Host("kb21"), w.Host("kb22")
	for _, h := range []*lab.Host{kb21, kb22} {
		e2e.StrictReversePath(t, h)
	}
	s := newSecond(w, secondDirect, "kb21", "kb22")
	w.Configure(e2e.HybridConfig)
	firsts := w.Start("kb21", "kb22")
	w.Mesh("kb21", "kb22")
	e2e.AwaitDirect(t, firsts...)
	before := e2e.SettledState(t, kb21)
	seconds := s.startAll()
	e2e.AwaitDirect(t, seconds...)
	w.Mesh("kb21", "kb22")
	for i, subnet := range []netip.Prefix{kb21.Subnet, s.hosts[0].Subnet} {
		if rules := networkRules(t, kb21, subnet); len(rules) != 2 {
			t.Errorf("the network of number %d has the rules %q", i+1, rules)
		}
	}

	stream := e2e.StartStream(t, w)
	for _, signal := range []unix.Signal{unix.SIGTERM, unix.SIGKILL} {
		e2e.End(t, signal, seconds...)
		s.cleanupAll(seconds)
		stream.GoesOn()
		w.Mesh("kb21", "kb22")
		for _, h := range []*lab.Host{kb21, kb22} {
			awaitLoose(t, h)
		}
		e2e.ExpectState(t, kb21, before, fmt.Sprintf("after %s of the second network's daemon", signal))
		seconds = s.startAll()
		e2e.AwaitDirect(t, seconds...)
	}
	// The other way round: the first goes, the second stays.
	e2e.End(t, unix.SIGTERM, firsts...)
	for _, d := range firsts {
		e2e.Command(t, d.Host.Node, e2e.CommandBinary+" cleanup -state-dir "+d.StateDir())
	}
	for _, h := range s.hosts {
		awaitLoose(t, h)
	}
	e2e.Transfer(t, s.hosts[0].Container.Node, s.hosts[1].Container, 16<<20)
	if rules := networkRules(t, kb21, s.hosts[0].Subnet); len(rules) != 2 {
		t.Errorf("of the second network's rules there are %q", rules)
	}
	e2e.End(t, unix.SIGTERM, seconds...)
	if filter := e2e.ReversePath(t, kb21); filter != "1" {
		t.Errorf("after all daemons rp_filter is %s", filter)
	}
}

func (s *second) cleanupAll(daemons []*cluster.Daemon) {
	s.T.Helper()
	for _, d := range daemons {
		e2e.Command(s.T, d.Host.Node, e2e.CommandBinary+" cleanup -state-dir "+d.StateDir())
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
	for end := time.Now().Add(e2e.Patience); e2e.ReversePath(t, h) != "2"; {
		if time.Now().After(end) {
			t.Fatalf("rp_filter of %s stays strict", h.Name)
		}
	}
}

// One network's rules by iptables and the other's by nftables, with masquerading:
// neither daemon takes the other way's rules for its own earlier ones.
func TestIntegrationTwoNetworksMasquerade(t *testing.T) {
	w := e2e.NewWorld(t, "kb21", "kb22")
	w.Cluster.Args = []string{"-ip-masq", "-iptables-resync=1"}
	s := newSecond(w, `{"Network":"172.8.0.0/16","EnableNFTables":true,"Backend":{"Type":"VxLAN","VNI":2,"Port":8472}}`, "kb21", "kb22")
	kb21 := w.Host("kb21")
	firsts := w.Start("kb21", "kb22")
	first := networkRules(t, kb21, kb21.Subnet)
	seconds := s.startAll()
	w.Mesh("kb21", "kb22")
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
		e2e.End(t, unix.SIGTERM, firsts...)
		firsts = w.Start("kb21", "kb22")
		same(fmt.Sprintf("after restart %d of the first", i), s.hosts[0].Subnet, other)
		same(fmt.Sprintf("after restart %d of its own", i), kb21.Subnet, first)
	}
	e2e.End(t, unix.SIGTERM, firsts...)
	for _, d := range firsts {
		e2e.Command(t, d.Host.Node, e2e.CommandBinary+" cleanup -state-dir "+d.StateDir())
	}
	same("after cleanup of the first", s.hosts[0].Subnet, other)
	same("after its own cleanup", kb21.Subnet, nil)
	s.meshAll()
	e2e.End(t, unix.SIGTERM, seconds...)
	s.cleanupAll(seconds)
	same("after its own cleanup", s.hosts[0].Subnet, nil)
	for _, line := range []string{"iptables -t nat -S", "iptables -S", "nft list ruleset"} {
		if out := e2e.Command(t, kb21.Node, line); strings.Contains(strings.ToLower(out), "flannel") {
			t.Errorf("%s: what is left is\n%s", line, out)
		}
	}
}

// VXLAN and host-gw on one host: both keep kernel routes of our protocol, each
// those of its own network, whatever the other does.
func TestIntegrationTwoNetworksHostGW(t *testing.T) {
	w := e2e.NewWorld(t, "kb21", "kb22")
	s := newSecond(w, `{"Network":"172.8.0.0/16","Backend":{"Type":"host-gw"}}`, "kb21", "kb22")
	kb21, kb22 := w.Host("kb21"), w.Host("kb22")
	seconds := s.startAll()
	second := e2e.RouteTo(s.hosts[1])
	e2e.AwaitRoutes(t, kb21, second)
	seen := e2e.WatchRoutes(t, kb21)
	device := "172.7.0.0/16 dev flannel.1 scope link src " + kb21.Subnet.Addr().String()
	for _, c := range []struct {
		config string
		want   []string
	}{
		{e2e.VXLANConfig, []string{device, second}},
		{e2e.RouteConfig, []string{device, e2e.RouteTo(kb22), second}},
		{e2e.VXLANConfig, []string{device, second}}, // removes what the run before it left, and no more
	} {
		w.Configure(c.config)
		firsts := w.Start("kb21", "kb22")
		w.Mesh("kb21", "kb22")
		e2e.AwaitRoutes(t, kb21, c.want...)
		s.meshAll()
		if c.config == e2e.VXLANConfig { // as flannel's own test of two networks has it
			expectReach(t, []reach{
				{kb21.Node, "flannel.1", kb22.Container, true},
				{kb21.Node, "eth0", s.hosts[1].Container, true},
				{kb21.Node, "flannel.1", s.hosts[1].Container, false},
				{kb21.Node, "eth0", kb22.Container, false},
			})
		}
		e2e.End(t, unix.SIGKILL, firsts...)
	}
	w.Configure(e2e.RouteConfig)
	firsts := w.Start("kb21", "kb22")
	e2e.AwaitRoutes(t, kb21, device, e2e.RouteTo(kb22), second)
	for _, u := range seen() {
		if u.Dst.String() == s.hosts[1].Subnet.String() {
			t.Errorf("the second network's route was touched: %+v", u)
		}
	}
	// host-gw takes its routes as its own after a restart, and leaves the others.
	e2e.End(t, unix.SIGKILL, seconds...)
	seconds = s.startAll()
	e2e.AwaitRoutes(t, kb21, device, e2e.RouteTo(kb22), second)
	e2e.End(t, unix.SIGTERM, seconds...)
	s.cleanupAll(seconds)
	e2e.AwaitRoutes(t, kb21, device, e2e.RouteTo(kb22))
	w.Mesh("kb21", "kb22")
	e2e.End(t, unix.SIGTERM, firsts...)
}

package doctor_test

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"uvxlan/bench/e2e"
	"uvxlan/bench/lab"
	"uvxlan/lease"
)

// Nothing is wrong with a cluster that is well, and what is wrong with the host itself
// is found, and not laid at the peers' door.
func TestIntegrationHost(t *testing.T) {
	w := e2e.NewWorld(t)
	d := w.Start("kb21", "kb22", "kb31")[0]
	w.Mesh("kb21", "kb22", "kb31")
	kb21 := w.Host("kb21")
	r := doctor(t, d)
	if len(r.Findings) > 0 || len(r.Peers) != 2 {
		t.Errorf("of a cluster that is well: %d peers, %+v", len(r.Peers), r.Findings)
	}
	for _, p := range r.Peers {
		if p.Overlay.Received != p.Overlay.Sent || p.Overlay.MTU != 1450 || p.Underlay.Received != p.Underlay.Sent || p.Underlay.MTU != 1500 {
			t.Errorf("measured: %+v", p)
		}
	}
	const table = "nft -f - <<'N'\ntable ip doctor {\n chain c {\n  type "
	for _, c := range []struct{ fault, undo, kinds, remedy string }{
		{table + "filter hook output priority 0;\n udp dport 4789 drop\n }\n}\nN", "nft delete table ip doctor", "firewall-out", "nft insert rule ip doctor c udp dport 4789 accept"},
		{"iptables -A INPUT -p udp --dport 4789 -j DROP", "iptables -F INPUT", "firewall-in", "iptables -I INPUT -p udp --dport 4789 -j ACCEPT"},
		{
			"ip addr add 192.168.14.77/32 dev eth0; " + table + "nat hook postrouting priority 100;\n udp dport 4789 snat to 192.168.14.77\n }\n}\nN",
			"nft delete table ip doctor", "firewall-changes masqueraded", "iptables -t nat -I POSTROUTING -p udp --dport 4789 -j ACCEPT",
		},
		{"sysctl -qw net.ipv4.ip_forward=0", "sysctl -qw net.ipv4.ip_forward=1", "host-forwarding", "sysctl -w net.ipv4.ip_forward=1"},
	} {
		e2e.Shell(t, kb21.Node, c.fault)
		e2e.Await(t, "the daemon has noticed what was done", func() bool {
			s := e2e.AskStatus(t, d)
			return !s.FastPath.On || !s.Ready
		})
		r := doctor(t, d)
		kinds := strings.Fields(c.kinds)
		if got := r.kinds(netip.Prefix{}); !slices.Equal(got, kinds) {
			t.Errorf("found %v, want %v", got, kinds)
		}
		if f := r.find(t, kinds[len(kinds)-1]); f.Severity != "fault" || !strings.Contains(f.Remedy, c.remedy) {
			t.Errorf("%s: %+v, without the remedy %q", f.Kind, f, c.remedy)
		}
		for _, p := range r.Peers {
			if kinds := r.kinds(p.Subnet); len(kinds) > 0 {
				t.Errorf("%s: peer %s is blamed: %s", c.kinds, p.Subnet, kinds)
			}
		}
		e2e.Shell(t, kb21.Node, c.undo)
		e2e.AwaitNoFault(t, d)
	}
	// Root that may not administer the network, as in a container, can't read the rules.
	r = doctorBy(t, d, []string{"setpriv", "--bounding-set=-net_admin", "--inh-caps=-net_admin"})
	if f := r.find(t, "firewall-unread"); f.Severity != "warning" || !strings.Contains(f.Evidence, "not permitted") || !strings.Contains(f.Remedy, "NET_ADMIN") || len(r.Findings) > 1 {
		t.Errorf("without CAP_NET_ADMIN: %+v", r.Findings)
	}
	w.StopEtcd()
	e2e.Await(t, "the daemon misses etcd", func() bool { return len(e2e.AskStatus(t, d).Notes) > 0 })
	r = doctor(t, d)
	if f := r.find(t, "note"); r.Daemon != "ready" || f.Severity != "warning" || !strings.Contains(f.Remedy, "start etcd") || len(r.Findings) > 1 {
		t.Errorf("without etcd: %s, %+v", r.Daemon, r.Findings)
	}
	e2e.End(t, unix.SIGTERM, d)
	if r := doctor(t, d); r.Daemon != "not running" || !slices.Equal(r.kinds(netip.Prefix{}), []string{"not-running"}) {
		t.Errorf("without a daemon: %s, %+v", r.Daemon, r.Findings)
	}
	// Neither the driver, nor anything else in its place.
	for put, words := range map[string]string{"true": "no such file", "mkdir /dev/net/tun": "a directory"} {
		r := doctorBy(t, d, []string{"unshare", "--mount", "sh", "-c", "mount -t tmpfs none /dev/net && " + put + ` && exec "$0" "$@"`})
		if f := r.find(t, "no-tun"); f.Severity != "fault" || !strings.Contains(f.Evidence, words) {
			t.Errorf("without the TUN driver: %+v", f)
		}
	}
	d, err := w.Cluster.Start(t.Context(), kb21)
	if err != nil {
		t.Fatal(err)
	}
	e2e.Await(t, "the daemon answers", func() bool { _, err := e2e.TryStatus(t.Context(), d); return err == nil })
	r = doctor(t, d)
	if f := r.find(t, "not-ready"); r.Daemon != "not ready" || f.Severity != "fault" || !strings.Contains(f.Remedy, "start etcd") {
		t.Errorf("a daemon that waits for etcd: %s, %+v", r.Daemon, r.Findings)
	}
	e2e.End(t, unix.SIGTERM, d)
}

// One destination is followed: by its address, its host's or its subnet.
func TestIntegrationDestination(t *testing.T) {
	w := e2e.NewDualWorld(t, e2e.DualConfig, "kb21", "kb22")
	daemons := w.Start("kb21", "kb22")
	d := daemons[0]
	w.DualMesh("kb21", "kb22")
	kb22 := w.Host("kb22")
	if r := doctor(t, d); len(r.Findings) > 0 || len(r.Peers) != 2 {
		t.Errorf("of a cluster that is well: %d peers, %+v", len(r.Peers), r.Findings)
	}
	for destination, words := range map[string]map[string]string{
		kb22.Container.Address.String(): {
			"peer": "192.168.14.22 (172.7.22.0/24), lease ends in", "route": "dev flannel.1", "table entry": "172.7.22.0/24 to 192.168.14.22",
			"path": "vxlan", "next hop": "192.168.14.22 on eth0", "firewall": "lets frames pass both ways", "by the overlay": "5 of 5",
			"beside the overlay": "5 of 5", kb22.Container.Address.String(): "5 of 5",
		},
		kb22.Container.AddressV6.String(): {"peer": "fd00:14::22", "by the overlay": "up to 1430 bytes", kb22.Container.AddressV6.String(): "5 of 5"},
		kb22.Address.String():             {"peer": "172.7.22.0/24"},
		kb22.Subnet.String():              {"peer": "192.168.14.22"},
	} {
		r := doctor(t, d, destination)
		for name, text := range words {
			if !slices.ContainsFunc(r.Steps, func(s struct{ Name, Text string }) bool {
				return s.Name == name && strings.Contains(s.Text, text)
			}) {
				t.Errorf("%s: no step %s with %q in %+v", destination, name, text, r.Steps)
			}
		}
		if len(r.Findings) > 0 {
			t.Errorf("%s: %+v", destination, r.Findings)
		}
	}
	nobody := doctor(t, d, kb22.Container.Address.Next().String())
	if f := nobody.find(t, "container-silent"); f.Severity != "warning" {
		t.Errorf("an address without a container: %+v", f)
	}
	// An IPv6 underlay's trouble isn't that of the IPv4 one.
	e2e.Shell(t, kb22.Node, "ip6tables -A INPUT -p udp --dport 4789 -j DROP")
	e2e.Await(t, "the fast path of the peer is off", func() bool { return !e2e.AskStatus(t, daemons[1]).FastPath.On })
	// Which way is known only if a packet of the peer's own has come meanwhile.
	r := doctor(t, d)
	if got := r.kinds(kb22.IPv6.Subnet); len(got) != 1 || got[0] != "blocked" && got[0] != "port-blocked-out" || len(r.kinds(kb22.Subnet)) > 0 {
		t.Errorf("without IPv6 frames: %+v", r.Findings)
	}
	out, err := d.Host.Run(t.Context(), e2e.CommandBinary, "doctor", "-control-socket", d.ControlSocket(), "172.7.99.1")
	if err == nil || !strings.Contains(string(out), "no host has a lease for it") {
		t.Errorf("an address that nobody has: %v: %s", err, out)
	}
}

// What is wrong with a direct path alone is told apart from what is wrong with the
// overlay.
func TestIntegrationDirect(t *testing.T) {
	w := e2e.NewWorld(t, "kb21", "kb22")
	w.Configure(e2e.HybridConfig)
	daemons := w.Start("kb21", "kb22")
	e2e.AwaitDirect(t, daemons...)
	kb22 := w.Host("kb22")
	// The daemon of the peer would mend its own filter, but not what the network does.
	e2e.Shell(t, kb22.Node, "nft -f - <<'N'\ntable ip doctor {\n chain pre {\n  type filter hook prerouting priority -300;\n  iifname eth0 ip saddr 172.7.21.0/24 drop\n }\n}\nN")
	// Meanwhile the peer sends datagrams that have nothing to do with the overlay, and whose
	// checksums something spoils.
	if err := kb22.SetFeatures("eth0", map[string]bool{"tx-checksum-ip-generic": false}); err != nil {
		t.Fatal(err)
	}
	e2e.Shell(t, kb22.Node, "nft -f - <<'N'\ntable ip spoil {\n chain out {\n  type filter hook output priority 0;\n  udp dport 9 @th,48,16 set 0xdead\n }\n}\nN")
	others := kb22.Command(t.Context(), "bash", "-c", "while sleep 0.05; do echo >/dev/udp/192.168.14.21/9; done")
	if err := others.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = others.Stop(context.Background()) })
	r := doctor(t, daemons[0])
	if got := r.kinds(kb22.Subnet); !slices.Equal(got, []string{"direct-blocked"}) {
		t.Errorf("found %v", got)
	}
	if f := r.find(t, "checksums"); f.Severity != "warning" || len(f.Peers) > 0 {
		t.Errorf("datagrams that are no frames: %+v", f)
	}
	e2e.Shell(t, kb22.Node, "nft delete table ip doctor")
	rules(t, w.Host("kb21").Node, "pre", "filter hook prerouting priority -300", "iifname eth0 ip saddr 172.7.22.0/24 drop")
	r = doctor(t, daemons[0])
	if got := r.kinds(kb22.Subnet); !slices.Equal(got, []string{"own-firewall-in"}) {
		t.Errorf("with a rule of this host's: found %v", got)
	}
	e2e.Shell(t, w.Host("kb21").Node, "nft delete table inet doctor")
	// Rules for marked packets know no way back. The daemon loosens a strict filter, but one
	// that is loose needs a way back, too.
	e2e.Shell(t, w.Host("kb21").Node, "sysctl -qw net.ipv4.conf.eth0.rp_filter=2 net.ipv4.conf.eth0.src_valid_mark=1; ip rule add priority 10 fwmark 0x99 to 172.7.22.0/24 unreachable; "+
		"nft -f - <<'N'\ntable ip doctor {\n chain pre {\n  type filter hook prerouting priority -300;\n  iifname eth0 ip saddr 172.7.22.0/24 meta mark set 0x99\n }\n}\nN")
	r = doctor(t, daemons[0])
	if got := r.kinds(kb22.Subnet); !slices.Equal(got, []string{"reverse-path"}) {
		t.Errorf("without a way back: found %v", got)
	} else if f := r.find(t, "reverse-path"); !strings.Contains(f.Remedy, "ip rule") {
		t.Errorf("the remedy of a loose filter is %q", f.Remedy)
	}
}

// Without an overlay, the hosts themselves are looked at.
func TestIntegrationHostGW(t *testing.T) {
	hosts := lab.DefaultHosts()
	for n := byte(23); n <= 25; n++ {
		hosts = append(hosts, lab.HostSpec{
			Name: fmt.Sprintf("kb%d", n), Underlay: netip.PrefixFrom(netip.AddrFrom4([4]byte{192, 168, 14, n}), 24), Gateway: hosts[0].Gateway,
			Subnet: netip.PrefixFrom(netip.AddrFrom4([4]byte{172, 7, n, 0}), 24),
		})
	}
	w := e2e.NewWorldOf(t, lab.Options{Hosts: hosts}, e2e.HostGWConfig)
	d := w.Start("kb21")[0]
	registry := w.Registry()
	want := map[string]string{"kb22": "loss", "kb23": "silent", "kb24": "no-host", "kb25": "no-route", "kb31": "no-route"}
	for name := range want {
		h := w.Host(name)
		l := lease.Lease{Subnet: h.Subnet, Attrs: lease.Attrs{PublicIP: h.Address, BackendType: lease.TypeHostGW}}
		if _, err := registry.Create(w.Context(), l, time.Hour); err != nil {
			t.Fatal(err)
		}
	}
	rules(t, w.Host("kb22").Node, "in", "filter hook input priority 0", "icmp type echo-request numgen inc mod 3 == 0 drop")
	rules(t, w.Host("kb23").Node, "in", "filter hook input priority 0", "icmp type echo-request drop")
	if err := w.Host("kb24").Unplug(); err != nil {
		t.Fatal(err)
	}
	e2e.Shell(t, w.Host("kb21").Node, "ip route add unreachable "+w.Host("kb25").Address.String())
	e2e.Await(t, "all leases are known", func() bool { return len(e2e.AskPeers(t, d)) == len(want) })
	r := doctor(t, d)
	for name, kind := range want {
		if got := r.kinds(w.Host(name).Subnet); !slices.Equal(got, []string{kind}) {
			t.Errorf("%s: found %v, want %s", name, got, kind)
		}
	}
	for _, words := range []string{"no route to host", "via gateway 192.168.14.1"} {
		if !slices.ContainsFunc(r.Findings, func(f finding) bool { return f.Kind == "no-route" && strings.Contains(f.Evidence, words) }) {
			t.Errorf("no route is missing %q in %+v", words, r.Findings)
		}
	}
}

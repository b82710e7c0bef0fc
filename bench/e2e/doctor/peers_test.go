package doctor_test

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"uvxlan/bench/cluster"
	"uvxlan/bench/e2e"
	"uvxlan/bench/lab"
	"uvxlan/encap"
	"uvxlan/lease"
	"uvxlan/lease/etcd"
	"uvxlan/tunnel"
)

// ward is kb21 with a daemon and a router beyond which each peer has something else
// that is wrong. All of them are looked at in one run.
type ward struct {
	*e2e.World
	registry *etcd.Registry
	daemon   *cluster.Daemon
	ours     lease.Lease
	leases   int      // those of other hosts
	forward  []string // nftables' rules of the router
	source   []string // those of its source NAT
	second   bool     // kb21 has a second link
}

// spec is a host behind the router, on a network of its own.
func spec(n int) lab.HostSpec {
	return lab.HostSpec{
		Name: fmt.Sprintf("kp%d", n), Routed: true,
		Underlay: netip.PrefixFrom(netip.AddrFrom4([4]byte{192, 168, byte(100 + n), 2}), 24),
		Gateway:  netip.AddrFrom4([4]byte{192, 168, byte(100 + n), 1}),
		Subnet:   netip.PrefixFrom(netip.AddrFrom4([4]byte{172, 7, byte(100 + n), 0}), 24),
	}
}

// peer makes a host with kernel VXLAN at a port, and its lease.
func (w *ward) peer(h *lab.Host, port int) *e2e.KernelPeer {
	w.T.Helper()
	p := e2e.NewKernelPeerAt(w.T, h, port)
	p.Learn(w.ours)
	w.lease(p.Lease())
	return p
}

// again makes the peer's device anew, otherwise.
func (w *ward) again(p *e2e.KernelPeer, how string) {
	w.T.Helper()
	e2e.Shell(w.T, p.Host.Node, fmt.Sprintf("ip link del flannel.1 && ip link add flannel.1 address %s type vxlan local %s dstport 4789 nolearning %s && ip addr add %s/32 dev flannel.1 && ip link set flannel.1 up",
		p.Mac, p.Host.Address, how, p.Host.Subnet.Addr()))
	link, err := p.Host.Netlink().LinkByName("flannel.1")
	p.Must("look for flannel.1", err)
	p.Link = link
	p.Learn(w.ours)
}

func (w *ward) lease(l lease.Lease) {
	w.T.Helper()
	if _, err := w.registry.Create(w.Context(), l, time.Hour); err != nil {
		w.T.Fatal(err)
	}
	w.leases++
}

// ghost is a lease whose host isn't there.
func ghost(subnet, publicIP string, vni uint32, mac string) lease.Lease {
	data, _ := json.Marshal(lease.VXLANData{VNI: vni, VtepMAC: mac})
	return lease.Lease{Subnet: netip.MustParsePrefix(subnet), Attrs: lease.Attrs{
		PublicIP: netip.MustParseAddr(publicIP), BackendType: lease.TypeVXLAN, BackendData: data,
	}}
}

// sourcePorts are the ports that the daemon's frames leave from.
func (w *ward) sourcePorts() []string {
	w.T.Helper()
	out, err := w.Host("kb21").Run(w.Context(), "sh", "-c", "ss -Hun4a | awk '{sub(/.*:/, \"\", $4); print $4}' | sort -u")
	ports := strings.Fields(string(out))
	if err != nil || len(ports) == 0 {
		w.T.Fatalf("look for the daemon's ports: %v: %s", err, out)
	}
	return ports
}

// drop has the router drop what matches.
func (w *ward) drop(match string) { w.forward = append(w.forward, match+" drop") }

// secondLink has what the daemon's host sends to a peer leave by a link of its own to the
// router. Answers come by the first one.
func (w *ward) secondLink(h *lab.Host) {
	w.T.Helper()
	if !w.second {
		w.second = true
		e2e.Shell(w.T, w.Host("kb21").Node, "ip link add eth1 type veth peer name second netns "+w.Router().Name+" && ip addr add 192.168.99.21/24 dev eth1 && ip link set eth1 up")
		e2e.Shell(w.T, w.Router(), "ip addr add 192.168.99.1/24 dev second && ip link set second up")
	}
	e2e.Shell(w.T, w.Host("kb21").Node, "ip route add "+h.Address.String()+" via 192.168.99.1 dev eth1")
}

// pinging has a host send packets of its own.
func (w *ward) pinging(h *lab.Host) {
	w.T.Helper()
	pings := h.Command(w.Context(), "ping", "-q", "-i", "0.05", w.ours.Subnet.Addr().String())
	if err := pings.Start(); err != nil {
		w.T.Fatal(err)
	}
	w.T.Cleanup(func() { _ = pings.Stop(context.Background()) })
}

// rules puts a table of nftables on a node.
func rules(t *testing.T, n *lab.Node, chain, hook string, all ...string) {
	t.Helper()
	e2e.Shell(t, n, fmt.Sprintf("nft -f - <<'N'\ntable inet doctor {\n chain %s {\n  type %s;\n  %s\n }\n}\nN", chain, hook, strings.Join(all, "\n  ")))
}

const frames = "udp dport 4789"

// trouble is what is wrong with one peer, and the finding that it makes.
type trouble struct {
	kind, severity string
	// make makes it, of a host that has nothing yet.
	make func(w *ward, h *lab.Host)
}

func network(match string) func(w *ward, h *lab.Host) {
	return func(w *ward, h *lab.Host) {
		w.peer(h, lease.DefaultPort)
		w.drop(strings.ReplaceAll(match, "PEER", h.Address.String()))
	}
}

// clock has a host say another time than it is, as ICMP counts it.
func clock(ahead time.Duration) func(w *ward, h *lab.Host) {
	return func(w *ward, h *lab.Host) {
		const day = 24 * time.Hour
		w.peer(h, lease.DefaultPort)
		now := time.Now().UTC()
		says := (now.Sub(now.Truncate(day)) + day + ahead) % day
		rules(w.T, h.Node, "out", "filter hook output priority 0", fmt.Sprintf("icmp type timestamp-reply @th,96,32 set %d", says.Milliseconds()))
	}
}

var troubles = []trouble{
	{"", "", network("ip daddr 10.0.0.1")},
	{"port-blocked-out", "fault", network("ip daddr PEER " + frames)},
	{"port-blocked-in", "fault", network("ip saddr PEER " + frames)},
	{"blocked", "fault", func(w *ward, h *lab.Host) {
		network("ip saddr PEER "+frames)(w, h)
		w.drop("ip daddr " + h.Address.String() + " " + frames)
	}},
	{"silent", "fault", network("ip daddr PEER")},
	{"port-rejected", "fault", func(w *ward, h *lab.Host) {
		w.peer(h, lease.DefaultPort)
		w.forward = append(w.forward, "ip daddr "+h.Address.String()+" "+frames+" reject with icmp type admin-prohibited")
	}},
	{"no-way", "fault", func(w *ward, h *lab.Host) {
		w.peer(h, lease.DefaultPort)
		w.forward = append(w.forward, "ip daddr "+h.Address.String()+" "+frames+" reject with icmp type host-unreachable")
	}},
	// A firewall that says no more than that nobody listens, as iptables' REJECT does.
	{"port-rejected", "fault", func(w *ward, h *lab.Host) {
		w.peer(h, lease.DefaultPort)
		rules(w.T, h.Node, "in", "filter hook input priority 0", frames+" reject")
	}},
	{"daemon-stopped", "fault", func(w *ward, h *lab.Host) { w.peer(h, lease.DefaultPort).Remove() }},
	{"port-differs", "fault", func(w *ward, h *lab.Host) { w.peer(h, 8472) }},
	{"nat", "fault", func(w *ward, h *lab.Host) {
		w.peer(h, lease.DefaultPort)
		w.source = append(w.source, "ip saddr "+h.Address.String()+" "+frames+" masquerade")
	}},
	{"wrong-public-ip", "fault", func(w *ward, h *lab.Host) {
		w.peer(h, lease.DefaultPort)
		w.source = append(w.source, "ip saddr "+h.Address.String()+" "+frames+" snat ip to "+spec(0).Underlay.Addr().String())
	}},
	{"stale-mac", "fault", func(w *ward, h *lab.Host) {
		p := w.peer(h, lease.DefaultPort)
		old := w.ours
		old.Attrs.BackendData = ghost("172.7.21.0/24", "192.168.14.21", 1, "0e:00:00:00:00:99").Attrs.BackendData
		p.Learn(old)
	}},
	{"large-lost-out", "fault", network("ip daddr PEER " + frames + " udp length > 1000")},
	{"large-lost-in", "fault", network("ip saddr PEER " + frames + " udp length > 1000")},
	// A host that drops datagrams to ports where nobody listens, as many do, can't be asked
	// which way they are lost.
	{"large-lost", "fault", func(w *ward, h *lab.Host) {
		network("ip saddr PEER "+frames+" udp length > 1000")(w, h)
		rules(w.T, h.Node, "in", "filter hook input priority 0", "iifname flannel.1 meta l4proto udp drop")
	}},
	{"mtu", "warning", func(w *ward, h *lab.Host) {
		w.peer(h, lease.DefaultPort)
		e2e.Shell(w.T, w.Router(), "ip link set "+h.Name+" mtu 1400")
	}},
	{"fragments-in", "warning", func(w *ward, h *lab.Host) {
		w.peer(h, lease.DefaultPort)
		e2e.Shell(w.T, h.Node, "ip route replace default via "+h.Gateway.String()+" mtu lock 1400")
	}},
	{"mtu-differs", "warning", func(w *ward, h *lab.Host) {
		w.peer(h, lease.DefaultPort)
		e2e.Shell(w.T, h.Node, "ip link set flannel.1 mtu 1300")
	}},
	{"loss", "fault", network("ip daddr PEER " + frames + " numgen inc mod 3 == 0")},
	{"damaged", "fault", func(w *ward, h *lab.Host) {
		w.peer(h, lease.DefaultPort)
		rules(w.T, h.Node, "out", "filter hook output priority 0", "oifname flannel.1 icmp type echo-reply numgen inc mod 3 == 0 @th,64,16 set 0xdead")
	}},
	// One of several links between the hosts is dead: that which the daemon's frames take.
	{"carrier", "fault", func(w *ward, h *lab.Host) {
		w.peer(h, lease.DefaultPort)
		w.drop("ip daddr " + h.Address.String() + " " + frames + " udp sport { " + strings.Join(w.sourcePorts(), ", ") + " }")
	}},
	{"segmentation", "fault", network("ip daddr PEER " + frames + " ip length > 1600")},
	{"tcp-checksum-out", "fault", func(w *ward, h *lab.Host) {
		w.peer(h, lease.DefaultPort)
		rules(w.T, w.Host("kb21").Node, "out", "filter hook output priority 0", "ip daddr "+h.Subnet.Addr().String()+" tcp doff > 5 @th,128,16 set 0xdead")
	}},
	{"tcp-checksum-in", "fault", func(w *ward, h *lab.Host) {
		w.peer(h, lease.DefaultPort)
		if err := h.SetFeatures("eth0", map[string]bool{"tx-checksum-ip-generic": false}); err != nil {
			w.T.Fatal(err)
		}
		rules(w.T, h.Node, "out", "filter hook output priority 0", "tcp sport 1 @th,128,16 set 0xdead")
	}},
	{"clock", "warning", clock(90 * time.Minute)},
	{"clock", "warning", clock(-time.Hour)},
	{"echo-dropped-there", "warning", func(w *ward, h *lab.Host) {
		w.peer(h, lease.DefaultPort)
		rules(w.T, h.Node, "in", "filter hook input priority 0", "iifname flannel.1 ip saddr 172.7.0.0/16 drop")
	}},
	{"echo-dropped", "warning", func(w *ward, h *lab.Host) {
		w.peer(h, lease.DefaultPort)
		rules(w.T, w.Host("kb21").Node, "in", "filter hook input priority 0", "iifname flannel.1 ip saddr "+h.Subnet.Addr().String()+" icmp type echo-reply drop")
	}},
	// IPsec that only one of the hosts is set up for: of those that drop, but are no
	// firewall.
	{"own-firewall-out", "fault", func(w *ward, h *lab.Host) {
		w.peer(h, lease.DefaultPort)
		e2e.Shell(w.T, w.Host("kb21").Node, "ip xfrm policy add dst "+h.Address.String()+" proto udp dport 4789 dir out action block")
	}},
	{"own-firewall-in", "fault", func(w *ward, h *lab.Host) {
		w.peer(h, lease.DefaultPort)
		e2e.Shell(w.T, w.Host("kb21").Node, "ip xfrm policy add src "+h.Address.String()+" proto udp dport 4789 dir in action block")
	}},
	// Where frames leave, they are dropped without a word to who sends them.
	{"own-firewall-out", "fault", func(w *ward, h *lab.Host) {
		w.peer(h, lease.DefaultPort)
		w.secondLink(h)
		e2e.Shell(w.T, w.Host("kb21").Node, "nft 'table netdev doctor { chain out { type filter hook egress device eth1 priority 0; ip daddr "+h.Address.String()+" "+frames+" drop; }; }'")
	}},
	{"no-route", "fault", func(w *ward, h *lab.Host) {
		w.peer(h, lease.DefaultPort)
		e2e.Shell(w.T, w.Host("kb21").Node, "ip route add unreachable "+h.Address.String())
	}},
	{"no-gateway", "fault", func(w *ward, h *lab.Host) {
		w.peer(h, lease.DefaultPort)
		e2e.Shell(w.T, w.Host("kb21").Node, "ip route add "+h.Address.String()+" via 192.168.14.96")
	}},
	{"no-host", "fault", func(w *ward, h *lab.Host) {
		w.lease(ghost(h.Subnet.String(), "192.168.14.99", 1, "0e:00:00:00:00:01"))
	}},
	{"no-host", "fault", func(w *ward, h *lab.Host) {
		w.peer(h, lease.DefaultPort)
		e2e.Shell(w.T, w.Router(), "ip route add unreachable "+h.Address.String())
	}},
	{"vni-differs", "fault", func(w *ward, h *lab.Host) {
		w.lease(ghost(h.Subnet.String(), h.Address.String(), 5, "0e:00:00:00:00:02"))
	}},
	// Its lease tells one VNI, and its frames have another.
	{"vni-differs", "fault", func(w *ward, h *lab.Host) {
		p := w.peer(h, lease.DefaultPort)
		w.again(p, "id 6")
		w.pinging(h)
	}},
	{"config-differs", "fault", func(w *ward, h *lab.Host) {
		l := ghost(h.Subnet.String(), h.Address.String(), 1, "0e:00:00:00:00:03")
		l.Attrs.BackendType, l.Attrs.BackendData = lease.TypeHostGW, nil
		w.lease(l)
	}},
	// A reservation is no fault, and what a host sends without a lease isn't a peer's.
	{"", "", func(w *ward, h *lab.Host) {
		w.lease(lease.Lease{Subnet: h.Subnet, Permanent: true, Attrs: lease.Attrs{PublicIP: netip.MustParseAddr("192.168.14.97")}})
		e2e.NewKernelPeer(w.T, h).Learn(w.ours)
		w.pinging(h)
	}},
	{"damaged-lease", "warning", func(w *ward, h *lab.Host) {
		key := "/coreos.com/network/subnets/" + strings.ReplaceAll(h.Subnet.String(), "/", "-")
		e2e.Shell(w.T, w.Host("kb21").Node, "ETCDCTL_API=3 etcdctl --endpoints "+w.Cluster.Endpoint+" put "+key+" '{'")
	}},
	{"duplicate-public-ip", "fault", func(w *ward, h *lab.Host) {
		w.peer(h, lease.DefaultPort)
		w.lease(ghost("172.7.201.0/24", h.Address.String(), 1, "0e:00:00:00:00:04"))
	}},
	{"duplicate-mac", "fault", func(w *ward, h *lab.Host) {
		p := w.peer(h, lease.DefaultPort)
		w.lease(ghost("172.7.202.0/24", "192.168.14.98", 1, p.Mac.String()))
	}},
	{"two-leases", "warning", func(w *ward, h *lab.Host) {
		p := w.peer(h, lease.DefaultPort)
		w.lease(ghost("172.7.203.0/24", h.Address.String(), 1, p.Mac.String()))
	}},
}

// Each peer has a trouble of its own, and the doctor finds just that.
func TestIntegrationPeers(t *testing.T) {
	hosts := []lab.HostSpec{lab.DefaultHosts()[0]}
	for n := range troubles {
		hosts = append(hosts, spec(n))
	}
	w := &ward{World: e2e.NewWorldOf(t, lab.Options{Hosts: hosts}, e2e.VXLANConfig)}
	// A router that is asked for many errors tells of few.
	e2e.Shell(t, w.Router(), "sysctl -qw net.ipv4.icmp_ratemask=0")
	w.daemon = w.Start("kb21")[0]
	w.registry, w.ours = w.Registry(), w.LeaseOf("kb21")
	for n, c := range troubles {
		c.make(w, w.Host(spec(n).Name))
	}
	rules(t, w.Router(), "forward", "filter hook forward priority 0", w.forward...)
	rules(t, w.Router(), "source", "nat hook postrouting priority 100", w.source...)
	e2e.Await(t, "frames of nobody's are dropped", func() bool { return e2e.AskStatus(t, w.daemon).Traffic.Drops[tunnel.DropUnknownPeer.String()] > 0 })
	// A kernel that has had no packet to a peer yet asks for the gateway first.
	e2e.Await(t, "all leases are known", func() bool { return len(e2e.AskPeers(t, w.daemon)) == w.leases })
	r := doctor(t, w.daemon)
	if r.Daemon != "ready" {
		t.Errorf("the daemon is %s", r.Daemon)
	}
	for n, c := range troubles {
		var want []string
		if c.kind != "" {
			want = []string{c.kind}
		}
		if got := r.kinds(spec(n).Subnet); !slices.Equal(got, want) {
			t.Errorf("%s: found %v, want %v", spec(n).Name, got, want)
		} else if c.kind != "" && r.find(t, c.kind).Severity != c.severity {
			t.Errorf("%s is a %s, want a %s", c.kind, r.find(t, c.kind).Severity, c.severity)
		}
	}
	for kind, words := range map[string]string{
		"nat": "come from 192.168.14.1, its lease says", "port-differs": "8472", "mtu": "1350", "loss": "were lost",
		"no-host": "nobody answers ARP for 192.168.14.99", "duplicate-public-ip": "172.7.201.0/24 doesn't answer", "clock": "1h",
		"damaged": "came back with other bytes", "carrier": "a frame of the doctor's own was answered",
		"port-rejected": "192.168.14.1 says: administratively prohibited", "no-way": "192.168.14.1 says",
		"wrong-public-ip": "come from 192.168.100.2, its lease says", "unknown-source": "the daemon dropped",
	} {
		if f := r.find(t, kind); !strings.Contains(f.Evidence, words) {
			t.Errorf("%s: the evidence is %q, without %q", kind, f.Evidence, words)
		}
	}
	// What is alike and yet not the same isn't put together.
	for _, what := range []string{"the peer itself rejects", "192.168.14.1, rejects", "clock is ahead", "clock is behind"} {
		if !slices.ContainsFunc(r.Findings, func(f finding) bool { return strings.Contains(f.What, what) && len(f.Peers) == 1 }) {
			t.Errorf("no finding of one peer says %q", what)
		}
	}
	w.checksums()
}

// checksums has checksums filled in before the frames leave, as on most machines, and
// spoils them on the way: those of the daemon's host, and those of a peer. The host's own
// firewall drops what goes to another peer, and what comes from a third, and it translates
// what comes from a fifth. The fast path passes by all these rules, and isn't used with
// them; so it would by the reverse-path filter, which a fourth's frames come against: the
// way back to it is by another interface.
func (w *ward) checksums() {
	for _, node := range []*lab.Node{w.Host("kb21").Node, w.Host("kp0").Node} {
		if err := node.SetFeatures("eth0", map[string]bool{"tx-checksum-ip-generic": false}); err != nil {
			w.T.Fatal(err)
		}
	}
	spoil := func(match string) string { return match + " " + frames + " @th,48,16 != 0 @th,48,16 set 0xdead" }
	e2e.Shell(w.T, w.Router(), "nft flush chain inet doctor forward")
	// kp0's kernel sends frames without checksums unless it is told otherwise.
	w.again(&e2e.KernelPeer{T: w.T, Host: w.Host("kp0"), Mac: encap.MAC{0x0e, 1, 192, 168, 100, 2}}, "id 1 udpcsum")
	rules(w.T, w.Router(), "forward", "filter hook forward priority 0",
		spoil("ip saddr "+w.Host("kp0").Address.String()), spoil("ip daddr "+w.Host("kp1").Address.String()))
	rules(w.T, w.Host("kb21").Node, "own_out", "filter hook output priority 0", "ip daddr "+w.Host("kp2").Address.String()+" "+frames+" drop")
	rules(w.T, w.Host("kb21").Node, "own_in", "filter hook input priority 0", "ip saddr "+w.Host("kp3").Address.String()+" "+frames+" drop")
	w.secondLink(w.Host("kp4"))
	e2e.StrictReversePath(w.T, w.Host("kb21"))
	rules(w.T, w.Host("kb21").Node, "own_nat", "nat hook prerouting priority -100", "ip saddr "+w.Host("kp5").Address.String()+" "+frames+" dnat ip to 192.168.14.21:4790")
	e2e.Await(w.T, "the daemon has noticed the rules", func() bool { return !e2e.AskStatus(w.T, w.daemon).FastPath.On })
	r := doctor(w.T, w.daemon)
	for n, kind := range []string{"checksum-in", "checksum-out", "own-firewall-out", "own-firewall-in", "reverse-path", "own-firewall-in"} {
		if got := r.kinds(spec(n).Subnet); !slices.Equal(got, []string{kind}) {
			w.T.Errorf("%s: found %v, want %s", spec(n).Name, got, kind)
		}
	}
	// What is against one peer isn't what another suffers from.
	for n, c := range troubles {
		if c.kind == "no-host" || c.kind == "own-firewall-in" {
			if got := r.kinds(spec(n).Subnet); !slices.Equal(got, []string{c.kind}) {
				w.T.Errorf("%s: found %v, want %s", spec(n).Name, got, c.kind)
			}
		}
	}
}

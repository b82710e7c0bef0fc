package doctor

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"uvxlan/cmd/internal/control"
	"uvxlan/cmd/internal/firewall"
	"uvxlan/cmd/internal/probe"
	"uvxlan/encap"
	"uvxlan/tunnel"
)

// scene is what the judgements of peers have in common. Its fields are immutable.
type scene struct {
	x *examiner
	// known are all hosts' addresses.
	known map[netip.Addr]bool
	rules []firewall.Obstacle
	// grown are the kernel's counters that have grown meanwhile, and drops the
	// daemon's by reason.
	grown func(name string) uint64
	drops func(tunnel.DropReason) uint64
	// shared are the subnets of leases that share an address or a MAC with another.
	shared map[netip.Prefix]bool
	// peers are the daemon's as they are in the end.
	peers map[netip.Prefix]control.Peer
}

// judge says what is wrong with a peer.
func (s *scene) judge(p *evidence) []Finding {
	j := judgement{scene: s, p: p}
	switch {
	case p.lease != nil && p.lease.VNI != 0 && s.x.vni != 0 && p.lease.VNI != uint32(s.x.vni):
		j.otherVNI(fmt.Sprintf("its lease has VNI %d, this network's is %d", p.lease.VNI, s.x.vni))
	case p.peer.Path == control.PathNone:
		j.leftOut()
	case p.peer.Path == control.PathForeign:
		// The daemon names the route.
	case s.x.status.Device == "":
		j.hostGW()
	case p.overlay.Sent == 0:
		// There is no overlay to look at, which is the host's fault.
	case p.overlay.dead():
		j.dead()
	default:
		j.alive()
	}
	return j.found
}

// judgement gathers what is found of a peer.
type judgement struct {
	*scene
	p     *evidence
	found []Finding
}

func (j *judgement) add(s Severity, kind, what, evidence, remedy string) {
	j.found = append(j.found, Finding{Severity: s, Kind: kind, Peers: []Host{j.p.Host}, What: what, Evidence: evidence, Remedy: remedy})
}

// leftOut is for a lease that the daemon doesn't take as a peer's, or a peer that
// host-gw has no route to.
func (j *judgement) leftOut() {
	if j.x.status.Device == "" {
		j.add(Fault, "no-route", "host-gw has no route to it", j.p.peer.Reason,
			`host-gw needs all hosts on one layer-2 network: use {"Type":"vxlan"} in the network config (`+configuring(&j.x.status)+`), or join their networks`)
		return
	}
	j.add(Fault, "config-differs", "its lease doesn't fit this network, so nothing is sent to it", j.p.peer.Reason,
		"have all hosts use one network config, and restart the daemon there (uvxlan leases shows what each host has); if that host is gone: "+releasing(&j.x.status, j.p.Subnet))
}

// hostGW has no overlay: the kernel's routes do it all.
func (j *judgement) hostGW() {
	if j.p.underlay.dead() {
		j.gone("by a kernel route to it")
	}
}

// gone tells of a peer whose address doesn't answer beside the overlay.
func (j *judgement) gone(path string) {
	p := j.p
	lease := ""
	if p.lease != nil && !p.lease.Expires.IsZero() {
		lease = fmt.Sprintf("; its lease ends in %s", control.Round(time.Until(p.lease.Expires)))
	}
	lost := fmt.Sprintf("%d of %d echoes %s and %d of %d beside it got no answer", p.overlay.lost(), p.overlay.Sent, path, p.underlay.lost(), p.underlay.Sent)
	if p.overlay.Sent == 0 {
		lost = fmt.Sprintf("%d of %d echoes got no answer", p.underlay.lost(), p.underlay.Sent)
	}
	remedy := "start that host, or if it is gone for good: " + releasing(&j.x.status, p.Subnet)
	var icmp *probe.ICMPError
	switch {
	case p.neigh.err != nil:
		j.add(Fault, "no-route", "this host has no route to its address", fmt.Sprintf("ip route get %s: %v", p.PublicIP, p.neigh.err),
			"add a route to it (ip route add), or give the peer a -public-ip that can be reached from here")
	case p.neigh.onLink && p.neigh.failed:
		j.add(Fault, "no-host", "there is no host behind its lease: nobody on the network has its address",
			fmt.Sprintf("nobody answers ARP for %s on %s; %s%s", p.PublicIP, p.neigh.link, lost, lease), remedy)
	case errors.As(p.underlay.err, &icmp) && !icmp.Prohibited():
		j.add(Fault, "no-host", "there is no host behind its lease, or no way to it", fmt.Sprintf("%v; %s%s", icmp, lost, lease), remedy)
	default:
		j.add(Fault, "silent", "it doesn't answer at all: it is down, or a firewall between the hosts drops everything",
			lost+lease, fmt.Sprintf("see whether it runs; if it does, allow UDP port %d and ICMP between the hosts; if it is gone for good: %s", j.x.port, releasing(&j.x.status, p.Subnet)))
	}
}

// dead is for a peer that doesn't answer by the overlay.
func (j *judgement) dead() {
	if j.p.peer.Path == control.PathDirect && j.deadDirect() {
		return
	}
	for _, why := range []func() bool{
		j.duplicate, j.portClosed, j.prohibited, j.masqueraded, j.ownRules, j.translated, j.damagedIn, j.misaddressed, j.notDelivered, j.otherPort, j.damagedOut, j.deaf, j.carrier, j.oneWay,
	} {
		if why() {
			return
		}
	}
	if j.p.underlay.dead() {
		j.gone("by the overlay")
		return
	}
	j.add(Fault, "blocked", "no packet passes by the overlay, though the host itself answers", j.lost()+"; which way they are lost can't be seen from here",
		fmt.Sprintf("allow UDP port %d both ways between the hosts and see that the daemon runs there; then run uvxlan doctor there", j.x.port))
}

// lost says what the echoes came to.
func (j *judgement) lost() string {
	o, u := j.p.overlay, j.p.underlay
	words := fmt.Sprintf("%d of %d echoes by the overlay got no answer, beside it %d of %d were answered", o.lost(), o.Sent, u.Received, u.Sent)
	if t := j.peers[j.p.Subnet].Traffic; t != nil && j.p.peer.Traffic != nil {
		was := j.p.peer.Traffic
		words += fmt.Sprintf("; meanwhile %d packets were sent to it and %d came",
			grownBy(was.Sent.Packets, t.Sent.Packets), grownBy(was.Received.Packets, t.Received.Packets))
	}
	return words
}

// grownBy is how much a counter has grown, which may have begun anew.
func grownBy(was, is uint64) uint64 { return is - min(was, is) }

// ofPeer are sightings of the peer's frames that come, whatever address they are from:
// their inner source tells.
func (j *judgement) ofPeer(more func(*sighting) bool) []sighting {
	return j.x.tap.sightings(func(s *sighting) bool {
		return !s.out && s.frame != nil && !s.message.arp && (j.p.Subnet.Contains(s.frame.src) || s.frame.src == j.p.PublicIP) && (more == nil || more(s))
	})
}

// left tells whether frames to the peer were seen to leave.
func (j *judgement) left() []sighting {
	return j.x.tap.sightings(func(s *sighting) bool {
		return s.out && s.frame != nil && !s.message.arp && s.frame.port == j.x.port && s.dst == j.p.PublicIP
	})
}

// refusals are the ICMP errors that quote our frames to the peer.
func (j *judgement) refusals() []sighting {
	return j.x.tap.sightings(func(s *sighting) bool {
		return !s.out && s.frame == nil && s.message.kind == unreachable && s.message.to == j.p.PublicIP && s.message.port == j.x.port
	})
}

// duplicate: another lease has its address or its MAC, which is a finding already.
func (j *judgement) duplicate() bool { return j.shared[j.p.Subnet] }

// masqueraded: frames to it leave by another address than ours, which is the host's
// finding.
func (j *judgement) masqueraded() bool {
	return slices.ContainsFunc(j.left(), func(s sighting) bool { return s.src != j.x.local })
}

// portClosed: the host says that nobody listens.
func (j *judgement) portClosed() bool {
	for _, s := range j.refusals() {
		if s.message.code != codePort || s.src != j.p.PublicIP {
			continue
		}
		if j.otherPort() {
			return true
		}
		j.add(Fault, "daemon-stopped", "its daemon doesn't run: nobody listens on its VXLAN port",
			fmt.Sprintf("%s answers frames with ICMP port unreachable (UDP %d)", s.src, j.x.port),
			"on the peer: systemctl start uvxland (or flanneld), then look at its log; if it runs, give all hosts the same Port in the network config")
		return true
	}
	return false
}

// prohibited: somebody says that his rules refuse frames.
func (j *judgement) prohibited() bool {
	for _, s := range j.refusals() {
		who := "the peer itself"
		if s.src != j.p.PublicIP {
			who = "a router or firewall on the way, " + s.src.String() + ","
		}
		e := &probe.ICMPError{From: s.src, Type: s.message.kind, Code: s.message.code}
		switch {
		case e.TooBig(), s.message.code == codePort && s.src == j.p.PublicIP:
			continue
		case !e.Prohibited() && j.p.underlay.dead():
			continue // it is gone
		case e.Prohibited(), s.message.code == codePort:
			j.add(Fault, "port-rejected", "the VXLAN port is blocked on the way out: "+who+" rejects the frames", fmt.Sprintf("frames to UDP port %d were answered: %v", j.x.port, e),
				"there: iptables -I INPUT -p udp --dport "+fmt.Sprint(j.x.port)+" -j ACCEPT (on a router: FORWARD)")
		default:
			j.add(Fault, "no-way", "there is no way to it: "+who+" says so", fmt.Sprintf("frames to UDP port %d were answered: %v", j.x.port, e),
				"mend the route on "+s.src.String()+", or start the peer")
		}
		return true
	}
	return false
}

// ownRules: this host's own firewall drops what goes out.
func (j *judgement) ownRules() bool {
	if j.p.refused == nil && len(j.left()) > 0 || j.p.refused == nil && len(j.p.answered) > 0 {
		return false
	}
	for _, r := range j.rules {
		if r.Out && r.Drops {
			if !r.Sure { // otherwise it is the host's
				j.add(Fault, "own-firewall-out", "this host's firewall drops the frames to it", r.What, r.Remedy)
			}
			return true
		}
	}
	if j.p.refused == nil {
		return false
	}
	j.add(Fault, "own-firewall-out", "this host drops the frames to it", "the kernel refuses them: "+words(j.p.refused),
		fmt.Sprintf("look for the rule (nft list ruleset, tc filter show) that drops UDP port %d on the way out", j.x.port))
	return true
}

// translated: frames of the peer come from an address that it doesn't have.
func (j *judgement) translated() bool {
	came := j.ofPeer(func(s *sighting) bool { return s.src != j.p.PublicIP })
	if len(came) == 0 {
		return false
	}
	from, dropped := came[0].src, ""
	if n := j.drops(tunnel.DropUnknownPeer) + j.drops(tunnel.DropInnerSource); n > 0 {
		dropped = fmt.Sprintf("; the daemon dropped %d meanwhile", n)
	}
	evidence := fmt.Sprintf("frames with packets of %s come from %s, its lease says %s%s", j.p.Subnet, from, j.p.PublicIP, dropped)
	if from.Is4() && j.known[from] && from != j.x.local {
		j.add(Fault, "wrong-public-ip", "its frames come from another host's address", evidence,
			"two hosts may use one subnet, or one's -public-ip is the other's: compare uvxlan leases with the hosts' addresses")
		return true
	}
	j.add(Fault, "nat", "its frames come from an address that isn't its PublicIP: a NAT is in between, or its PublicIP is wrong", evidence,
		fmt.Sprintf("exempt UDP port %d from the NAT between the hosts; or on the peer, if %s is its own: uvxland -public-ip %s", j.x.port, from, from))
	return true
}

// damagedIn: frames come with wrong checksums, which the kernel drops.
func (j *judgement) damagedIn() bool {
	came := j.ofPeer(func(s *sighting) bool { return s.frame.checksum == checksumWrong })
	if len(came) == 0 {
		return false
	}
	j.add(Fault, "checksum-in", "its frames come with wrong UDP checksums, so the kernel drops them: an offload spoils them",
		fmt.Sprintf("%d frames with a wrong checksum came from it; the kernel dropped %d datagrams for that meanwhile", len(came), j.grown(udpChecksums)),
		"on the peer: ethtool -K "+j.link()+" tx off (tx-checksum-ip-generic; the interface to this host), or have its driver or hypervisor updated")
	return true
}

// link is the interface that leads to the other hosts.
func (j *judgement) link() string { return j.x.status.Interface }

// misaddressed: frames come that are meant for another VTEP or segment.
func (j *judgement) misaddressed() bool {
	if came := j.ofPeer(func(s *sighting) bool { return s.frame.vni != j.x.vni }); len(came) > 0 {
		j.otherVNI(fmt.Sprintf("its frames have VNI %d, this network's is %d", came[0].frame.vni, j.x.vni))
		return true
	}
	if j.x.mac == (encap.MAC{}) {
		return false
	}
	if came := j.ofPeer(func(s *sighting) bool { return s.frame.mac != j.x.mac && !s.frame.mac.IsGroup() }); len(came) > 0 {
		j.add(Fault, "stale-mac", "it sends to a MAC that this host's VTEP doesn't have: it knows an old lease of ours",
			fmt.Sprintf("its frames are for %s, ours is %s; the daemon dropped %d such frames meanwhile", came[0].frame.mac, j.x.mac, j.drops(tunnel.DropInnerMAC)),
			"on the peer: restart the daemon, and see that it reaches etcd")
		return true
	}
	return false
}

func (j *judgement) otherVNI(evidence string) {
	j.add(Fault, "vni-differs", "it uses another VNI, so neither host takes the other's frames", evidence,
		"have all hosts use one network config, and restart the daemon on the peer")
}

// notDelivered: the answers come to the host, and no further.
func (j *judgement) notDelivered() bool {
	came := j.ofPeer(func(s *sighting) bool {
		return s.message.kind == echoReply && !j.x.isTest(s.message.id) && s.frame.dst == j.x.vtep && s.src == j.p.PublicIP
	})
	if len(came) == 0 {
		return false
	}
	evidence := fmt.Sprintf("%d answers of it came to this host's interface, and none to the overlay", len(came))
	for _, r := range j.rules {
		if !r.Out && r.Drops {
			if !r.Sure {
				j.add(Fault, "own-firewall-in", "this host's firewall drops its frames", r.What+"; "+evidence, r.Remedy)
			}
			return true
		}
	}
	inside := j.x.tap.sightings(func(s *sighting) bool {
		return !s.out && s.link == j.x.device && s.message.kind == echoReply && j.p.Subnet.Contains(s.src)
	})
	if len(inside) > 0 {
		j.add(Warning, "echo-dropped", "its answers come out of the overlay, and a rule of this host drops them: this host doesn't hear it, its containers may",
			fmt.Sprintf("%d answers of it came by %s, and none was delivered", len(inside), j.x.status.Device),
			"look for a rule that drops ICMP on "+j.x.status.Device+" (nft list ruleset)")
		return true
	}
	var reasons []string
	for _, d := range tunnel.DropReasons() {
		if n := j.drops(d); n > 0 {
			reasons = append(reasons, fmt.Sprintf("%s %d", d, n))
		}
	}
	if len(reasons) > 0 {
		evidence += "; the daemon dropped meanwhile: " + strings.Join(reasons, ", ")
	}
	if n := j.grown(reversePathDrop); n > 0 {
		j.add(Fault, "reverse-path", "this host's reverse-path filter drops its frames", fmt.Sprintf("%s; the filter dropped %d packets", evidence, n),
			"sysctl -w net/ipv4/conf/"+j.link()+"/rp_filter=2")
		return true
	}
	j.add(Fault, "own-firewall-in", "its frames come to this host, and don't get to the daemon", evidence,
		fmt.Sprintf("look for a rule (nft list ruleset, tc filter show) that drops UDP port %d on the way in", j.x.port))
	return true
}

// otherPort: the peer's VXLAN has another port.
func (j *judgement) otherPort() bool {
	came := j.ofPeer(func(s *sighting) bool { return s.frame.port != j.x.port })
	if len(came) == 0 {
		return false
	}
	port := came[0].frame.port
	j.add(Fault, "port-differs", fmt.Sprintf("it uses UDP port %d, this host %d", port, j.x.port),
		fmt.Sprintf("a frame to its port %d was answered", port),
		fmt.Sprintf(`set "Port":%d in Backend for all hosts (%s), then restart the daemons`, port, configuring(&j.x.status)))
	return true
}

// damagedOut: frames arrive that have no checksum, and those that have one don't.
func (j *judgement) damagedOut() bool {
	if !j.p.answered[unsummed] || j.p.answered[summed] {
		return false
	}
	j.add(Fault, "checksum-out", "frames with a UDP checksum don't arrive, those without do: an offload of this host's interface, or something on the way, spoils the checksum",
		fmt.Sprintf("of %d frames each, those without a checksum were answered; %s", tries, j.lost()),
		fmt.Sprintf("ethtool -K %s tx off; if that helps, uvxland -offload-disable gso may do as well", j.link()))
	return true
}

// deaf: frames pass both ways, and echoes aren't answered.
func (j *judgement) deaf() bool {
	if !j.p.answered[question] || j.p.answered[summed] {
		return false
	}
	j.add(Warning, "echo-dropped-there", "frames pass both ways, but it answers no echo: a rule of its own drops ICMP that comes by the overlay; its containers may be reached all the same",
		"its VTEP answers ARP in a frame; "+j.lost(), "on the peer: look for a rule that drops what comes by "+j.x.status.Device+" (nft list ruleset); ping a container to be sure")
	return true
}

// carrier: frames of our own are answered, those that carry the packets aren't.
func (j *judgement) carrier() bool {
	if !j.p.answered[summed] {
		return false
	}
	by, remedy := "the daemon's workers send", "systemctl restart uvxland, and look at its log"
	if j.p.peer.Fast {
		by, remedy = "the fast path sends", "uvxland -fast-path=off"
	}
	j.add(Fault, "carrier", "frames that "+by+" get lost, others don't", "a frame of the doctor's own was answered; "+j.lost(),
		remedy+"; or look for a rule between the hosts that picks some UDP source ports")
	return true
}

// oneWay: only one of the ways is blocked.
func (j *judgement) oneWay() bool {
	heard := j.ofPeer(func(s *sighting) bool {
		return s.src == j.p.PublicIP && (s.message.kind == echoRequest || s.message.id == j.x.id(wayBack))
	})
	allow := fmt.Sprintf("allow UDP port %d from %s to %%s (security group, router, or iptables -I INPUT -p udp --dport %d -j ACCEPT on the receiving host)", j.x.port, "%s", j.x.port)
	switch {
	case j.p.answered[wayOut] && len(heard) == 0:
		j.add(Fault, "port-blocked-in", "frames reach it, but its frames don't reach this host: the VXLAN port is blocked on the way in",
			"it answers a frame beside the overlay, and nothing comes by the overlay; "+j.lost(), fmt.Sprintf(allow, "the peer", "this host"))
	case len(heard) > 0 && !j.p.answered[wayOut]:
		j.add(Fault, "port-blocked-out", "its frames reach this host, but ours don't reach it: beyond this host, the VXLAN port is blocked on the way out, or a NAT gives our frames another address",
			fmt.Sprintf("%d frames left this host for it; it answers by the overlay what it is sent beside it; %s", len(j.left()), j.lost()), fmt.Sprintf(allow, "this host", "the peer"))
	default:
		return false
	}
	return true
}

// deadDirect is for a peer on a direct path. It tells whether it knows what is wrong.
func (j *judgement) deadDirect() bool {
	came := j.x.tap.sightings(func(s *sighting) bool {
		return !s.out && s.frame == nil && s.link != j.x.device && s.message.kind == echoReply && !j.x.isTest(s.message.id) && j.p.Subnet.Contains(s.src)
	})
	if len(came) > 0 {
		if n := j.grown(reversePathDrop); n > 0 {
			j.add(Fault, "reverse-path", "this host's reverse-path filter drops what comes from it without VXLAN",
				fmt.Sprintf("%d answers of it came, none was delivered; the filter dropped %d packets", len(came), n),
				"sysctl -w net/ipv4/conf/"+j.link()+"/rp_filter=2 net/ipv4/conf/all/rp_filter=2")
			return true
		}
		j.add(Fault, "own-firewall-in", "what comes from it without VXLAN is dropped on this host", fmt.Sprintf("%d answers of it came, none was delivered", len(came)),
			"look for a rule that drops packets from "+j.p.Subnet.String()+" (nft list ruleset, tc filter show)")
		return true
	}
	if !j.p.answered[summed] {
		return false
	}
	j.add(Fault, "direct-blocked", "it is reached by VXLAN, but not without: the network or the peer drops containers' addresses",
		fmt.Sprintf("a frame was answered; %d of %d echoes by the direct path were not", j.p.overlay.lost(), j.p.overlay.Sent),
		`on the peer: sysctl -w net.ipv4.conf.all.rp_filter=2; if the network checks addresses, as clouds do, set "DirectRouting":false in Backend (`+configuring(&j.x.status)+`)`)
	return true
}

// alive is for a peer that answers by the overlay.
func (j *judgement) alive() {
	j.loss()
	j.size()
	j.pieces()
	j.offloads()
	j.clock()
}

func (j *judgement) loss() {
	o, u := j.p.overlay, j.p.underlay
	if o.lost() == 0 {
		return
	}
	beside := fmt.Sprintf("beside it %d of %d", u.lost(), u.Sent)
	where := "between the hosts, or at the peer"
	if u.Received > 0 && u.lost() == 0 {
		where = "in the overlay, not beside it"
	}
	if o.damaged > 0 {
		j.add(Fault, "damaged", "some of its packets come damaged", fmt.Sprintf("%d of %d echoes came back with other bytes", o.damaged, o.Sent),
			"look for a faulty cable, interface or offload on both hosts (ethtool -S)")
		return
	}
	full := j.drops(tunnel.DropSendBuffer) + j.drops(tunnel.DropTUNQueue) + j.drops(tunnel.DropSocketBuffer) + j.drops(tunnel.DropSend)
	remedy := "look at the interfaces' drops on both hosts (ip -s link; tc -s qdisc) and at the network between"
	if full > 0 {
		where += fmt.Sprintf("; this host's daemon dropped %d packets for want of room", full)
		remedy = "uvxlan status names the queue that was full; " + remedy
	}
	severity := Warning
	if o.lost()*5 >= o.Sent {
		severity = Fault // TCP hardly gets on
	}
	j.add(severity, "loss", "packets are lost", fmt.Sprintf("%d of %d echoes by the overlay were lost, %s; %s", o.lost(), o.Sent, beside, where), remedy)
}

// size judges the longest packets.
func (j *judgement) size() {
	p, mtu := j.p, j.x.status.MTU
	if p.limit == nil || p.overlay.MTU == 0 || p.overlay.MTU >= mtu {
		return
	}
	overhead := int(encap.InnerMTU(0).Outer(p.PublicIP.Is6()))
	if p.peer.Path == control.PathDirect {
		overhead = 0
	}
	outer := p.overlay.MTU + overhead
	beside := ""
	if p.underlay.MTU > 0 {
		beside = fmt.Sprintf("; beside it packets of up to %d bytes pass", p.underlay.MTU)
	}
	var icmp *probe.ICMPError
	told := errors.As(p.limit, &icmp) && icmp.TooBig()
	if !told && p.overlay.lost() > 0 {
		return // a long one may have been lost as short ones are
	}
	remedy := fmt.Sprintf(`raise the MTU on the way to %d, or set "MTU":%d in Backend for all hosts (%s), then restart the daemons and the containers`, mtu+overhead, outer, configuring(&j.x.status))
	evidence := fmt.Sprintf("packets of up to %d bytes are answered, the containers' MTU is %d%s", p.overlay.MTU, mtu, beside)
	if told {
		j.add(Warning, "mtu", "the way to it takes less than the containers' MTU: senders are told and send less, at the cost of a packet lost each time",
			evidence+fmt.Sprintf("; %v", icmp), remedy)
		return
	}
	switch p.bigOut {
	case passes:
		j.add(Fault, "large-lost-in", "large packets from it are lost without a word, small ones pass: connections hang",
			evidence+"; a long packet reaches it, the long answer doesn't come back", remedy)
	case fails:
		j.add(Fault, "large-lost-out", "large packets to it are lost without a word, small ones pass: connections hang",
			evidence+"; a long packet doesn't reach it, a short one does", remedy)
	default:
		j.add(Fault, "large-lost", "large packets are lost without a word, small ones pass: connections hang", evidence+"; which way can't be seen from here", remedy)
	}
}

// pieces judges what comes in fragments.
func (j *judgement) pieces() {
	if j.p.peer.Path != control.PathVXLAN || j.p.overlay.Back >= j.x.status.MTU || j.p.overlay.MTU < j.x.status.MTU {
		return
	}
	outside := j.ofPeer(func(s *sighting) bool { return s.fragmented && s.message.kind == echoReply })
	inside := j.ofPeer(func(s *sighting) bool { return s.frame.fragmented && s.message.kind == echoReply })
	switch {
	case len(outside) > 0:
		j.add(Warning, "fragments-in", "its long frames come in fragments, which is slow and loses more",
			fmt.Sprintf("of its answers, those of up to %d bytes came in one piece, the containers' MTU is %d", j.p.overlay.Back, j.x.status.MTU),
			`raise the MTU on the way from it, or set a smaller "MTU" in Backend for all hosts (`+configuring(&j.x.status)+`)`)
	case len(inside) > 0:
		j.add(Warning, "mtu-differs", "its overlay has a smaller MTU than this host's",
			fmt.Sprintf("its answers of more than %d bytes come in fragments, this host's MTU is %d", j.p.overlay.Back, j.x.status.MTU),
			`give the interfaces between the hosts one MTU, or set "MTU" in Backend for all hosts (`+configuring(&j.x.status)+`)`)
	}
}

// offloads judges what devices do with many packets, or with checksums.
func (j *judgement) offloads() {
	if j.p.segments == fails {
		j.add(Fault, "segmentation", "frames that are sent as one message don't arrive: an offload of this host's interface divides them wrongly",
			fmt.Sprintf("%d frames sent as one message were not all answered, the same frames one by one were", togetherN),
			fmt.Sprintf("uvxland -offload-disable gso, or: ethtool -K %s tx-udp-segmentation off", j.link()))
	}
	if j.p.tcp != fails {
		return
	}
	device := j.x.status.Device
	if j.p.syn.damaged {
		j.add(Fault, "tcp-checksum-in", "its TCP segments come with wrong checksums, echoes pass: an offload of the peer spoils them",
			fmt.Sprintf("its answer to a segment has a wrong checksum; this kernel dropped %d segments for that meanwhile", j.grown(tcpChecksums)),
			fmt.Sprintf("on the peer: ethtool -K %s tx-checksum-ip-generic off", device))
		return
	}
	remedy := fmt.Sprintf("ethtool -K %s tx off", device)
	if j.p.peer.Fast {
		remedy = fmt.Sprintf("uvxland -fast-path=off, or: ethtool -K %s tx off", j.link())
	}
	j.add(Fault, "tcp-checksum-out", "TCP segments to it don't arrive, echoes do: an offload of this host spoils their checksums",
		"a segment of the kernel's got no answer, one with a checksum of the doctor's own got one", remedy)
}

// tolerable is how far clocks may be apart.
const tolerable = 30 * time.Second

func (j *judgement) clock() {
	if j.p.offset == nil || j.p.offset.Abs() < tolerable {
		return
	}
	does := "ahead of"
	if *j.p.offset < 0 {
		does = "behind"
	}
	j.add(Warning, "clock", fmt.Sprintf("its clock is %s this host's: certificates, and leases that are stored, may count as expired", does),
		fmt.Sprintf("its ICMP timestamp is %s %s ours", control.Round(j.p.offset.Abs()), does), "have both hosts follow one clock: timedatectl set-ntp true")
}

// backs is the longest answer that came in one piece.
func (s *scene) back(p *evidence) (longest int) {
	for _, a := range s.x.tap.sightings(func(a *sighting) bool {
		return !a.out && a.link != s.x.device && !a.fragmented && slices.Contains([]byte{echoReply, echoReplyV6}, a.message.kind)
	}) {
		switch {
		case a.frame != nil && a.frame.src == p.vtep() && !a.frame.fragmented:
			longest = max(longest, a.frame.length)
		case a.frame == nil && a.src == p.vtep():
			longest = max(longest, a.length)
		}
	}
	return longest
}

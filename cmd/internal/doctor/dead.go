package doctor

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"uvxlan/cmd/internal/control"
	"uvxlan/cmd/internal/probe"
	"uvxlan/encap"
	"uvxlan/tunnel"
)

// dead is for a peer that doesn't answer by the overlay.
func (j *judgement) dead() {
	if j.p.peer.Path == control.PathDirect && j.deadDirect() {
		return
	}
	for _, why := range []func() bool{
		j.duplicate, j.unrouted, j.portClosed, j.prohibited, j.masqueraded, j.ownRules, j.translated, j.damagedIn, j.misaddressed, j.notDelivered, j.otherPort, j.damagedOut, j.deaf, j.carrier, j.oneWay,
	} {
		if why() {
			return
		}
	}
	if j.p.underlay.dead() {
		j.gone("by the overlay")
		return
	}
	j.blocked()
}

// blocked is for a peer of which no more is known.
func (j *judgement) blocked() {
	j.add(Fault, "blocked", "no packet passes by the overlay, though the host itself answers", j.lost()+"; in which direction can't be seen from here",
		fmt.Sprintf("allow UDP port %d both ways between the hosts, and see that the peer's daemon runs; then run uvxlan doctor there", j.x.port))
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
	return slices.ContainsFunc(j.left(), func(s sighting) bool { return s.src != j.x.localOf(s.src) })
}

// portClosed: the host says that nobody listens. A firewall of its own may say so as
// well, but then it sends frames.
func (j *judgement) portClosed() bool {
	for _, s := range j.refusals() {
		if s.message.code != codePort || s.src != j.p.PublicIP {
			continue
		}
		if j.otherPort() {
			return true
		}
		if len(j.ofPeer(func(s *sighting) bool { return s.src == j.p.PublicIP })) > 0 {
			return false
		}
		j.add(Fault, "daemon-stopped", "its daemon doesn't run: nobody listens on its VXLAN port",
			fmt.Sprintf("%s answers frames with ICMP port unreachable (UDP %d)", s.src, j.x.port),
			"on the peer: systemctl start uvxland (or flanneld), then look at its log; if it runs, see that no rule there rejects the port, and give all hosts the same Port in the network config")
		return true
	}
	return false
}

// prohibited: somebody says that his rules refuse frames.
func (j *judgement) prohibited() bool {
	for _, s := range j.refusals() {
		who, at, chain := "the peer itself", "the peer", "INPUT"
		if s.src != j.p.PublicIP {
			who, at, chain = "a router or firewall on the way, "+s.src.String()+",", s.src.String(), "FORWARD"
		}
		e := &probe.ICMPError{From: s.src, Type: s.message.kind, Code: s.message.code}
		switch {
		case e.TooBig():
			continue
		case !e.Prohibited() && j.p.underlay.dead():
			continue // it is gone
		case e.Prohibited(), s.message.code == codePort:
			j.add(Fault, "port-rejected", "the VXLAN port is blocked on the way out: "+who+" rejects the frames", fmt.Sprintf("frames to UDP port %d were answered: %v", j.x.port, e),
				fmt.Sprintf("on %s: iptables -I %s -p udp --dport %d -j ACCEPT", at, chain, j.x.port))
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
	arrived := slices.ContainsFunc([]test{summed, unsummed, wayOut, question}, func(t test) bool { return j.p.answered[t] })
	if j.p.refused == nil && (arrived || len(j.left()) > 0 || j.p.neigh.failed) {
		return false // without a neighbour, none leaves whatever the rules say
	}
	if j.firewalled(true, "own-firewall-out", "this host's firewall drops or changes the frames to it", "") {
		return true
	}
	evidence := "none of them leaves by any interface"
	switch {
	case j.p.refused != nil:
		evidence = "the kernel refuses them: " + words(j.p.refused)
	case !j.p.sent, j.missed, mayEncrypt():
		return false // they may leave unseen
	}
	j.add(Fault, "own-firewall-out", "this host drops the frames to it", evidence,
		fmt.Sprintf("look for what drops UDP port %d on the way out (nft list ruleset, tc filter show, ip xfrm policy)", j.x.port))
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
	if j.known[from] && from != j.x.localOf(from) {
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
		"give all hosts the same network config, and restart the daemon on the peer")
}

// notDelivered: the answers come to the host, and no further.
func (j *judgement) notDelivered() bool {
	came := j.ofPeer(func(s *sighting) bool {
		return s.message.isReply() && !j.x.isTest(s.message.id) && s.frame.dst == j.x.vtepOf(s.frame.dst) && s.src == j.p.PublicIP
	})
	if len(came) == 0 {
		return false
	}
	inside := j.x.tap.sightings(func(s *sighting) bool {
		return !s.out && s.link == j.x.device && s.message.isReply() && j.p.Subnet.Contains(s.src)
	})
	if len(inside) > 0 {
		j.add(Warning, "echo-dropped", "a rule of this host drops its answers as they come out of the overlay; this host's containers may hear it all the same",
			fmt.Sprintf("%d of its answers came by %s, but none was delivered", len(inside), j.x.status.Device),
			"look for a rule that drops ICMP on "+j.x.status.Device+" (nft list ruleset)")
		return true
	}
	evidence := fmt.Sprintf("%d of its answers came to this host's interface, but none to the overlay", len(came))
	if j.firewalled(false, "own-firewall-in", "this host's firewall drops or changes its frames", "; "+evidence) {
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
	if n := j.filtered(came); n > 0 {
		j.add(Fault, "reverse-path", "this host's reverse-path filter drops its frames", fmt.Sprintf("%s; the filter dropped %d packets", evidence, n),
			j.loosening())
		return true
	}
	j.add(Fault, "own-firewall-in", "its frames come to this host, but not to the daemon", evidence,
		fmt.Sprintf("look for what drops UDP port %d on the way in (nft list ruleset, tc filter show, ip xfrm policy)", j.x.port))
	return true
}

// filtered is how many packets the reverse-path filter has dropped, if those that came
// are among them. The kernel doesn't say so of packets that a rule has marked since: it
// is believed of them unless others account for the number.
func (j *judgement) filtered(came []sighting) uint64 {
	n := j.grown(reversePathDrop)
	if n == 0 || filters(&came[0]) {
		return n
	}
	type way struct {
		src, dst netip.Addr
		link     int
	}
	asked := map[way]bool{}
	others := j.x.tap.sightings(func(s *sighting) bool {
		w := way{s.src, s.dst, s.link}
		if s.out || asked[w] {
			return false
		}
		asked[w] = true
		return filters(s)
	})
	if len(others) > 0 {
		return 0
	}
	return n
}

// loosening helps against the reverse-path filter. A loose one still wants a route back.
func (j *judgement) loosening() string {
	return fmt.Sprintf("sysctl -w net/ipv4/conf/%s/rp_filter=2; if it is 2 already, a rule (ip rule) leaves such packets without a way back: mend the rule, or see that the filter is 0 there and in net/ipv4/conf/all", j.link())
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
	comes := len(heard) > 0
	if t := j.peers[j.p.Subnet].Traffic; t != nil && j.p.peer.Traffic != nil && grownBy(j.p.peer.Traffic.Received.Packets, t.Received.Packets) > 0 {
		comes = true // its containers' packets do
	}
	allow := fmt.Sprintf("allow UDP port %d from %s to %%s (security group, router, or iptables -I INPUT -p udp --dport %d -j ACCEPT on the receiving host)", j.x.port, "%s", j.x.port)
	switch {
	case j.p.answered[wayOut] && !comes:
		j.add(Fault, "port-blocked-in", "frames reach it, but its frames don't reach this host: the VXLAN port is blocked on the way in",
			"it answers a frame beside the overlay, and nothing comes by the overlay; "+j.lost(), fmt.Sprintf(allow, "the peer", "this host"))
	case comes && !j.p.answered[wayOut]:
		j.add(Fault, "port-blocked-out", "its frames reach this host, but ours don't reach it: beyond this host, the VXLAN port is blocked on the way out, or a NAT gives our frames another address",
			fmt.Sprintf("%d frames left this host for it, and %d came from it meanwhile; %s", len(j.left()), len(j.ofPeer(nil)), j.lost()), fmt.Sprintf(allow, "this host", "the peer"))
	default:
		return false
	}
	return true
}

// deadDirect is for a peer on a direct path. It tells whether it knows what is wrong.
func (j *judgement) deadDirect() bool {
	came := j.x.tap.sightings(func(s *sighting) bool {
		return !s.out && s.frame == nil && s.link != j.x.device && s.message.isReply() && !j.x.isTest(s.message.id) && j.p.Subnet.Contains(s.src)
	})
	if len(came) > 0 {
		if n := j.filtered(came); n > 0 {
			j.add(Fault, "reverse-path", "this host's reverse-path filter drops what comes from it without VXLAN",
				fmt.Sprintf("%d of its answers came, but none was delivered; the filter dropped %d packets", len(came), n),
				j.loosening())
			return true
		}
		j.add(Fault, "own-firewall-in", "what comes from it without VXLAN is dropped on this host", fmt.Sprintf("%d of its answers came, but none was delivered", len(came)),
			"look for a rule that drops packets from "+j.p.Subnet.String()+" (nft list ruleset, tc filter show, ip xfrm policy)")
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

package doctor

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"uvxlan/cmd/internal/control"
	"uvxlan/cmd/internal/firewall"
	"uvxlan/cmd/internal/probe"
	"uvxlan/tunnel"
)

// scene is what the judgements of peers have in common. Its fields are immutable.
type scene struct {
	x *examiner
	// known are all hosts' addresses.
	known map[netip.Addr]bool
	rules map[bool][]firewall.Obstacle // of all frames, by whether they are of IPv6
	// rulesFor are the rules in the way of one peer's frames.
	rulesFor func(netip.Addr) []firewall.Obstacle
	// grown are the kernel's counters that have grown meanwhile, and drops the
	// daemon's by reason.
	grown func(name string) uint64
	drops func(tunnel.DropReason) uint64
	// shared are the subnets of leases that share an address or a MAC with another.
	shared map[netip.Prefix]bool
	// peers are the daemon's as they are in the end, nil if it doesn't say.
	peers map[netip.Prefix]control.Peer
	// missed says that packets may have passed unseen.
	missed bool
}

// judge says what is wrong with a peer.
func (s *scene) judge(p *evidence) []Finding {
	j := judgement{scene: s, p: p}
	switch {
	case p.peer.Unclaimed:
		// There is no host yet.
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

// firewalled tells whether this host's firewall drops the peer's frames, out or in, or
// else changes them, and adds which rule does. One that does it to all peers' is told as
// the host's.
func (j *judgement) firewalled(out bool, kind, what, evidence string) bool {
	rules := j.rulesFor(j.p.PublicIP)
	for _, drops := range []bool{true, false} {
		at := slices.IndexFunc(rules, func(r firewall.Obstacle) bool { return r.Out == out && r.Drops == drops })
		if at < 0 {
			continue
		}
		r := rules[at]
		isHosts := slices.ContainsFunc(j.rules[j.p.PublicIP.Is6()], func(all firewall.Obstacle) bool {
			return all.Sure && all.Out == r.Out && all.What == r.What
		})
		if !isHosts {
			j.add(Fault, kind, what, r.What+evidence, r.Remedy)
		}
		return true
	}
	return false
}

func (j *judgement) add(s Severity, kind, what, evidence, remedy string) {
	j.found = append(j.found, Finding{Severity: s, Kind: kind, Peers: []Host{j.p.Host}, What: what, Evidence: evidence, Remedy: remedy})
}

// leftOut is for a lease that the daemon doesn't take as a peer's, or a peer that
// host-gw has no route to.
func (j *judgement) leftOut() {
	switch {
	case j.x.status.Device == "" && j.unrouted():
		return
	case j.x.status.Device == "":
		j.add(Fault, "no-route", "host-gw has no route to it", j.p.peer.Reason,
			`host-gw needs all hosts on one layer-2 network: use {"Type":"vxlan"} in the network config (`+configuring(&j.x.status)+`), or join their networks`)
		return
	}
	j.add(Fault, "config-differs", "its lease doesn't fit this network, so nothing is sent to it", j.p.peer.Reason,
		"give all hosts the same network config, and restart the daemon there (uvxlan leases shows what each host has); if that host is gone: "+releasing(&j.x.status, j.p.Subnet))
}

// hostGW has no overlay: the kernel's routes do it all.
func (j *judgement) hostGW() {
	u := j.p.underlay
	switch {
	case j.unrouted():
	case u.dead():
		j.gone("")
	case u.lost() > 0:
		j.lossy(u, "its address")
	}
}

// lossy is for echoes of which some got no answer.
func (j *judgement) lossy(o outcome, to string) {
	severity := Warning
	if o.lost()*5 >= o.Sent {
		severity = Fault // TCP hardly gets on
	}
	j.add(severity, "loss", "packets are lost", fmt.Sprintf("%d of %d echoes to %s were lost", o.lost(), o.Sent, to),
		"look at the interfaces' drops on both hosts (ip -s link; tc -s qdisc) and at the network between")
}

// allowing is what has frames and echoes pass between the hosts.
func (j *judgement) allowing() string {
	if j.x.port == 0 {
		return "allow ICMP, and the containers' packets, between the hosts"
	}
	return fmt.Sprintf("allow UDP port %d and ICMP between the hosts", j.x.port)
}

// unrouted: this host has no route to its address. The kernel is asked without a mark or
// ports: packets that rules route by those may leave all the same.
func (j *judgement) unrouted() bool {
	if j.p.neigh.err == nil || !j.p.underlay.dead() || len(j.left()) > 0 {
		return false
	}
	j.add(Fault, "no-route", "this host has no route to its address", fmt.Sprintf("ip route get %s: %v", j.p.PublicIP, j.p.neigh.err),
		"add a route to it (ip route add), or give the peer a -public-ip that can be reached from here")
	return true
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
	case p.neigh.onLink && p.neigh.failed:
		j.add(Fault, "no-host", "there is no host behind its lease: nobody on the network has its address",
			fmt.Sprintf("nobody answers ARP for %s on %s; %s%s", p.PublicIP, p.neigh.link, lost, lease), remedy)
	case p.neigh.failed:
		j.add(Fault, "no-gateway", "the gateway on the way to it doesn't answer", fmt.Sprintf("nobody answers ARP for %s on %s; %s%s", p.neigh.hop, p.neigh.link, lost, lease),
			fmt.Sprintf("see that the gateway %s runs, or mend the route by it (ip route)", p.neigh.hop))
	case errors.As(p.underlay.err, &icmp) && !icmp.Prohibited():
		j.add(Fault, "no-host", "there is no host behind its lease, or no way to it", fmt.Sprintf("%v; %s%s", icmp, lost, lease), remedy)
	default:
		j.add(Fault, "silent", "it doesn't answer at all: it is down, or a firewall between the hosts drops everything",
			lost+lease, fmt.Sprintf("see whether it runs; if it does, %s; if it is gone for good: %s", j.allowing(), releasing(&j.x.status, p.Subnet)))
	}
}

// back is the longest answer that came in one piece.
func (s *scene) back(p *evidence) (longest int) {
	for _, a := range s.x.tap.sightings(func(a *sighting) bool {
		return !a.out && a.link != s.x.device && !a.fragmented && a.message.isReply()
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

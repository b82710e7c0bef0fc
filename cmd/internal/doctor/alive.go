package doctor

import (
	"errors"
	"fmt"
	"time"

	"uvxlan/cmd/internal/control"
	"uvxlan/cmd/internal/probe"
	"uvxlan/encap"
	"uvxlan/tunnel"
)

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
		j.add(Fault, "damaged", "some of its packets arrive damaged", fmt.Sprintf("%d of %d echoes came back with other bytes", o.damaged, o.Sent),
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
		j.add(Fault, "large-lost", "large packets are lost without a word, small ones pass: connections hang", evidence+"; in which direction can't be seen from here", remedy)
	}
}

// pieces judges what comes in fragments.
func (j *judgement) pieces() {
	if j.p.peer.Path != control.PathVXLAN || j.p.overlay.Back >= j.x.status.MTU || j.p.overlay.MTU < j.x.status.MTU {
		return
	}
	outside := j.ofPeer(func(s *sighting) bool { return s.fragmented && s.message.isReply() })
	inside := j.ofPeer(func(s *sighting) bool { return s.frame.fragmented && s.message.isReply() })
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
		j.add(Fault, "tcp-checksum-in", "its TCP segments come with wrong checksums, though echoes pass: an offload of the peer's spoils the checksums",
			fmt.Sprintf("its answer to a segment has a wrong checksum; this kernel dropped %d segments for that meanwhile", j.grown(tcpChecksums)),
			fmt.Sprintf("on the peer: ethtool -K %s tx-checksum-ip-generic off", device))
		return
	}
	remedy := fmt.Sprintf("ethtool -K %s tx off", device)
	if j.p.peer.Fast {
		remedy = fmt.Sprintf("uvxland -fast-path=off, or: ethtool -K %s tx off", j.link())
	}
	j.add(Fault, "tcp-checksum-out", "TCP segments to it don't arrive, though echoes do: an offload of this host's spoils their checksums",
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

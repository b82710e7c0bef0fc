package doctor

import (
	"net/netip"

	"uvxlan/encap"
)

// frameTo is an echo request to the peer's VTEP, in a frame.
func (x *examiner) frameTo(p *evidence) overlayEcho {
	mac, _ := encap.ParseMAC(p.peer.MAC) // a peer without one gets no answer
	return overlayEcho{
		to: netip.AddrPortFrom(p.PublicIP, x.port), vni: x.vni, mac: mac,
		src: x.vtep, dst: p.vtep(), seq: p.seq(),
	}
}

// seq is the first of the peer's sequence numbers.
func (p *evidence) seq() uint16 { return p.index << 3 }

// answers tells whether a packet that came answers a test of ours.
func (x *examiner) answers(s *sighting, t test, p *evidence) bool {
	if t == question {
		return !s.out && s.message.arp && s.frame.src == p.vtep() && s.src == p.PublicIP
	}
	from := s.src // of the echo's answer
	if s.frame != nil {
		from = s.frame.src
	}
	return (from == p.vtep() || from == p.PublicIP) && !s.out && !s.message.arp && s.link != x.device && s.message.id == x.id(t) && s.message.seq>>3 == p.index<<3>>3 &&
		(s.message.kind == echoReply || s.message.kind == timestampReply)
}

// dig finds out what becomes of packets to and from a peer that doesn't answer.
func (x *examiner) dig(p *evidence) {
	p.answered = map[test]bool{}
	if x.sender == nil || !p.vtep().Is4() || !p.PublicIP.Is4() || p.peer.MAC == "" {
		return
	}
	p.sent = true
	for range tries {
		x.sendTests(p)
		x.tap.await(int(question)+1, patience/2, func(s *sighting) bool {
			for t := summed; t <= question; t++ {
				if x.answers(s, t, p) && (t != wayBack || s.frame != nil) {
					first := !p.answered[t]
					p.answered[t] = true
					return first
				}
			}
			return false
		})
	}
}

func (x *examiner) sendTests(p *evidence) {
	e := x.frameTo(p)
	e.id = x.id(summed)
	if err := x.sender.sendFrame(e, true); err != nil {
		p.refused = err
	}
	e.id = x.id(unsummed)
	_ = x.sender.sendFrame(e, false) // as before
	for _, port := range x.others {
		o := e
		o.id, o.to = x.id(otherPort), netip.AddrPortFrom(p.PublicIP, port)
		_ = x.sender.sendFrame(o, true)
	}
	if x.mac != (encap.MAC{}) {
		_ = x.sender.ask(e, x.mac)
	}
	e.id, e.src = x.id(wayOut), x.local
	_ = x.sender.sendFrame(e, true)
	_ = x.sender.sendMessage(x.vtep, p.PublicIP, echoRequest, x.id(wayBack), p.seq())
}

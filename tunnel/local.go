package tunnel

import (
	"net/netip"
	"time"

	"uvxlan/encap"
)

const (
	// icmpRate and icmpBurst bound the ICMP errors a worker sends, in errors a
	// second and at once, as RFC 1812, section 4.3.2.8 asks.
	icmpRate  = 1000
	icmpBurst = 50
)

// answer holds a frame that answers a question about our own address: an ARP
// reply or a neighbour advertisement behind its frame header.
type answer [encap.FrameHeaderLen + max(encap.ARPLen, encap.NeighborAdvertisementLen)]byte

// local speaks for our own VTEP: it answers what is asked of its addresses and
// reports what cannot be delivered. Each worker has its own.
type local struct {
	vni    encap.VNI
	mac    encap.MAC
	v4, v6 netip.Addr
	errors bucket
}

func newLocal(c *Config) *local {
	l := &local{vni: c.VNI, mac: c.MAC, errors: bucket{rate: icmpRate, burst: icmpBurst}}
	for _, a := range c.Link.Addresses {
		switch {
		case a.Is4() && !l.v4.IsValid():
			l.v4 = a
		case a.Is6() && !l.v6.IsValid():
			l.v6 = a
		}
	}
	return l
}

// arpReply writes the answer to an ARP request for our address and returns the
// frame's length, 0 when the question isn't for us.
func (l *local) arpReply(out *answer, f *encap.Frame) int {
	n := encap.ARPReply(out[encap.FrameHeaderLen:], f.Payload, l.v4, l.mac)
	return l.address(out, n, f, encap.EtherTypeARP)
}

// advertise is arpReply for neighbour solicitations (RFC 4861).
func (l *local) advertise(out *answer, f *encap.Frame) int {
	if !l.v6.IsValid() {
		return 0
	}
	n := encap.NeighborAdvertisement(out[encap.FrameHeaderLen:], f.Payload, l.v6, l.mac)
	return l.address(out, n, f, encap.EtherTypeIPv6)
}

func (l *local) address(out *answer, n int, f *encap.Frame, etherType uint16) int {
	if n == 0 {
		return 0
	}
	header := encap.MakeFrameHeader(l.vni, f.Src, l.mac, etherType)
	return copy(out[:], header[:]) + n
}

// unreachable writes the ICMP error that tells packet's sender that there is no
// route, and returns its length, 0 when none may be sent.
func (l *local) unreachable(out, packet []byte) int {
	if !l.errors.allow(time.Now()) {
		return 0
	}
	if packet[0]>>4 == 6 {
		return encap.ICMPv6Unreachable(out, packet, l.v6, encap.ICMPv6NoRoute)
	}
	return encap.ICMPUnreachable(out, packet, l.v4, encap.ICMPNetUnreachable)
}

// tooBig is unreachable for a packet that is longer than mtu.
func (l *local) tooBig(out, packet []byte, mtu encap.InnerMTU) int {
	if !l.errors.allow(time.Now()) {
		return 0
	}
	if packet[0]>>4 == 6 {
		return encap.ICMPv6PacketTooBig(out, packet, l.v6, mtu)
	}
	return encap.ICMPFragmentationNeeded(out, packet, l.v4, mtu)
}

// bucket is a token bucket that starts full.
type bucket struct {
	rate, burst float64
	spent       float64
	last        time.Time
}

func (b *bucket) allow(now time.Time) bool {
	b.spent = max(0, b.spent-now.Sub(b.last).Seconds()*b.rate)
	b.last = now
	if b.spent+1 > b.burst {
		return false
	}
	b.spent++
	return true
}

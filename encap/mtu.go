package encap

// Bytes that encapsulation adds in front of the inner IP packet: the outer IP
// and UDP headers, the VXLAN header and the inner Ethernet header.
const (
	OverheadIPv4 = IPv4HeaderLen + udpHeaderLen + FrameHeaderLen // 50
	OverheadIPv6 = IPv6HeaderLen + udpHeaderLen + FrameHeaderLen // 70
)

// OuterMTU is the largest IP packet of the underlay, in bytes.
type OuterMTU int

// InnerMTU is the largest IP packet of the overlay, in bytes.
type InnerMTU int

// Inner returns the largest inner packet that fits m unfragmented, as RFC 7348
// section 4.3 requires of a VTEP; zero when none does.
func (m OuterMTU) Inner(v6Underlay bool) InnerMTU {
	return max(0, InnerMTU(m)-InnerMTU(overhead(v6Underlay)))
}

// Outer returns the underlay MTU that carries inner packets of m bytes.
func (m InnerMTU) Outer(v6Underlay bool) OuterMTU {
	return OuterMTU(m) + OuterMTU(overhead(v6Underlay))
}

func overhead(v6 bool) int {
	if v6 {
		return OverheadIPv6
	}
	return OverheadIPv4
}

package encap

import "net/netip"

const maxICMPv6Len = 1280 // the minimum IPv6 MTU, RFC 4443 section 2.4(c)

// ICMPv6 types (RFC 4443 section 2.1, RFC 4861 section 4.5). Types below 128
// are errors.
const (
	icmpv6Unreachable = 1
	icmpv6FirstInfo   = 128
	icmpv6Redirect    = 137
)

// Codes for ICMPv6Unreachable (RFC 4443 section 3.1).
const (
	ICMPv6NoRoute            uint8 = 0
	ICMPv6Prohibited         uint8 = 1
	ICMPv6AddressUnreachable uint8 = 3
)

// ICMPv6Unreachable is ICMPUnreachable for IPv6 (RFC 4443 section 3.1): type 1,
// quoting as much of orig as fits in 1280 bytes. RFC 4443 section 2.4(e) names
// the packets that get no answer: ICMPv6 errors and redirects, and those from
// or to an address that names no single host. A later fragment could be part of
// either and gets none too.
func ICMPv6Unreachable(dst, orig []byte, from netip.Addr, code uint8) int {
	p, err := ParseIPv6(orig)
	if err != nil || !from.Is6() || !p.answerable() {
		return 0
	}
	n := min(IPv6HeaderLen+icmpHeaderLen+len(p), maxICMPv6Len)
	if len(dst) < n {
		return 0
	}
	reply := putIPv6(dst[:n], from, p.Src(), ProtoICMPv6, icmpHopLimit)
	message := reply.Payload()
	clear(message[:icmpHeaderLen])
	message[0], message[1] = icmpv6Unreachable, code
	copy(message[icmpHeaderLen:], p)
	reply.sealICMP()
	return n
}

// answerable reports whether an ICMPv6 error may be sent about p.
func (p IPv6) answerable() bool {
	c, ok := p.walk()
	if !ok || c.later || !single6(p.Src()) || !single6(p.Dst()) {
		return false
	}
	if c.proto != ProtoICMPv6 {
		return true
	}
	message := p[c.offset:]
	return len(message) > 0 && message[0] >= icmpv6FirstInfo && message[0] != icmpv6Redirect
}

func single6(a netip.Addr) bool {
	return !a.IsUnspecified() && !a.IsMulticast() && !a.IsLoopback()
}

package encap

import "net/netip"

const maxICMPv6Len = 1280 // the minimum IPv6 MTU, RFC 4443 section 2.4(c)

// ICMPv6 types (RFC 4443 section 2.1, RFC 4861 section 4.5). Types below 128
// are errors.
const (
	icmpv6Unreachable  = 1
	icmpv6PacketTooBig = 2
	icmpv6FirstInfo    = 128
	icmpv6Redirect     = 137
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
	return putICMPv6Error(dst, orig, from, icmpv6Unreachable, code, 0)
}

// ICMPv6PacketTooBig is [ICMPv6Unreachable] for a packet that is longer than mtu,
// the next link's, in bytes (RFC 4443 section 3.2): type 2. Packets to groups get
// no answer, although section 2.4(e.3) would allow one.
func ICMPv6PacketTooBig(dst, orig []byte, from netip.Addr, mtu InnerMTU) int {
	return putICMPv6Error(dst, orig, from, icmpv6PacketTooBig, 0, uint32(mtu))
}

// putICMPv6Error writes an ICMPv6 error whose second word is rest.
func putICMPv6Error(dst, orig []byte, from netip.Addr, kind, code uint8, rest uint32) int {
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
	putICMPHeader(message, kind, code, rest)
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

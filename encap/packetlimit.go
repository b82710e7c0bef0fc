package encap

import "encoding/binary"

const (
	tcpSYN = 0x02
	// TCP options (RFC 9293 section 3.2).
	tcpOptionEnd = 0
	tcpOptionNop = 1
	tcpOptionMSS = 2
)

const (
	// defaultMSS4 and defaultMSS6 hold where a SYN announces no MSS (RFC 9293
	// section 3.7.1).
	defaultMSS4 = 536
	defaultMSS6 = 1220
	// minMSS is the least that Linux goes by (net.ipv4.tcp_min_snd_mss): with
	// none, options would leave no room for payload.
	minMSS = 48
	// minPathMTU4 and minPathMTU6 are the least MTUs that an ICMP error is
	// believed, Linux's net.ipv4.route.min_pmtu and that of RFC 8200 section 5.
	minPathMTU4 = 552
	minPathMTU6 = 1280
)

// PacketLimit is how long the packets of a TCP flow may be on their way to whoever
// receives them.
type PacketLimit struct {
	// Flow is the [FlowHash] of the flow's packets.
	Flow uint32
	// Length is that of the longest packet in bytes, all its headers included.
	Length int
	// Handshake tells that the flow begins, so that what was known of it before
	// doesn't count.
	Handshake bool
}

// ReadPacketLimit reads from a packet what it tells of the packets that are to
// come the other way: by the MSS in a SYN or SYN-ACK (RFC 9293 section 3.7.1), or
// as an ICMP error about a packet that was too long (RFC 1191 section 4, RFC 4443
// section 3.2). ok is false if it tells nothing, as most do. Checksums aren't
// looked at.
func ReadPacketLimit(packet []byte) (l PacketLimit, ok bool) {
	if len(packet) < IPv4HeaderLen+icmpHeaderLen {
		return l, false
	}
	switch {
	case packet[0] == plainIPv4:
		if proto := packet[9]; proto != ProtoICMP && (proto != ProtoTCP || !hasSYN(packet, IPv4HeaderLen)) {
			return l, false
		}
	case packet[0]>>4 == 6:
		if proto := packet[6]; proto == ProtoUDP || proto == ProtoTCP && !hasSYN(packet, IPv6HeaderLen) {
			return l, false
		}
	}
	return readPacketLimit(packet)
}

// hasSYN tells whether the TCP header at l4 has SYN set.
func hasSYN(packet []byte, l4 int) bool {
	return l4+tcpFlagsOffset < len(packet) && packet[l4+tcpFlagsOffset]&tcpSYN != 0
}

// readPacketLimit is ReadPacketLimit for what may tell something.
func readPacketLimit(packet []byte) (l PacketLimit, ok bool) {
	if p, err := ParseIPv4(packet); err == nil {
		switch {
		case p.FragmentOffset() != 0:
			return l, false
		case p.Protocol() == ProtoTCP:
			return handshakeLimit(p, p.Payload(), IPv4HeaderLen, defaultMSS4)
		case p.Protocol() == ProtoICMP:
			return p.quotedLimit()
		}
		return l, false
	}
	p, err := ParseIPv6(packet)
	if err != nil {
		return l, false
	}
	c, ok := p.walk()
	switch {
	case !ok || c.later:
		return l, false
	case c.proto == ProtoTCP:
		return handshakeLimit(p, p[c.offset:], IPv6HeaderLen, defaultMSS6)
	case c.proto == ProtoICMPv6:
		return p.quotedLimit(p[c.offset:])
	}
	return l, false
}

// handshakeLimit reads a SYN. The MSS counts neither IP nor TCP options (RFC 6691).
func handshakeLimit(p, segment []byte, ipHeader, mss int) (l PacketLimit, ok bool) {
	if len(segment) < tcpHeaderLen || segment[tcpFlagsOffset]&tcpSYN == 0 {
		return l, false
	}
	end := int(segment[12]>>4) * 4
	if end < tcpHeaderLen || end > len(segment) {
		return l, false
	}
	if n := mssOption(segment[tcpHeaderLen:end]); n != 0 {
		mss = n
	}
	l = PacketLimit{Flow: reverseHash(p, segment), Length: ipHeader + tcpHeaderLen + max(mss, minMSS), Handshake: true}
	return l, true
}

// mssOption is the maximum segment size among options, 0 if there is none.
func mssOption(options []byte) int {
	for len(options) > 0 && options[0] != tcpOptionEnd {
		if options[0] == tcpOptionNop {
			options = options[1:]
			continue
		}
		if len(options) < 2 || options[1] < 2 || int(options[1]) > len(options) {
			return 0
		}
		if options[0] == tcpOptionMSS && options[1] == 4 {
			return int(binary.BigEndian.Uint16(options[2:]))
		}
		options = options[options[1]:]
	}
	return 0
}

// reverseHash is the FlowHash of the packets that come the other way than the TCP
// segment of p.
func reverseHash(p, segment []byte) uint32 {
	var b [IPv6HeaderLen + 4]byte
	ports := b[IPv4HeaderLen:]
	if p[0]>>4 == 4 {
		b[0], b[9] = plainIPv4, ProtoTCP
		copy(b[12:16], p[16:20])
		copy(b[16:20], p[12:16])
	} else {
		b[0], b[6] = 6<<4, ProtoTCP
		copy(b[8:24], p[24:40])
		copy(b[24:40], p[8:24])
		ports = b[IPv6HeaderLen:]
	}
	copy(ports[:2], segment[2:4])
	copy(ports[2:4], segment[:2])
	return FlowHash(b[:])
}

// quotedLimit reads an ICMP error: the packet it quotes was on its way from whom
// it is sent to.
func (p IPv4) quotedLimit() (l PacketLimit, ok bool) {
	message := p.Payload()
	const least = icmpHeaderLen + IPv4HeaderLen + 4 // up to the ports
	if len(message) < least || message[0] != icmpUnreachable || message[1] != icmpFragmentationNeeded {
		return l, false
	}
	mtu, quoted := binary.BigEndian.Uint16(message[6:]), IPv4(message[icmpHeaderLen:])
	switch {
	case mtu == 0: // of a router that doesn't tell (RFC 1191 section 5)
		return l, false
	case quoted[0]>>4 != 4, quoted.HeaderLen() < IPv4HeaderLen, len(quoted) < quoted.HeaderLen()+4:
		return l, false
	case quoted.Protocol() != ProtoTCP, quoted.IsFragment(), quoted.Src() != p.Dst():
		return l, false
	}
	return PacketLimit{Flow: FlowHash(quoted), Length: max(int(mtu), minPathMTU4)}, true
}

func (p IPv6) quotedLimit(message []byte) (l PacketLimit, ok bool) {
	const least = icmpHeaderLen + IPv6HeaderLen + 4
	if len(message) < least || message[0] != icmpv6PacketTooBig {
		return l, false
	}
	mtu, quoted := binary.BigEndian.Uint32(message[4:]), IPv6(message[icmpHeaderLen:])
	c, sound := quoted.walk()
	switch {
	case mtu > maxTotal:
		return l, false
	case quoted[0]>>4 != 6, !sound, c.proto != ProtoTCP, c.fragment, len(quoted) < c.offset+4, quoted.Src() != p.Dst():
		return l, false
	}
	return PacketLimit{Flow: FlowHash(quoted), Length: max(int(mtu), minPathMTU6)}, true
}

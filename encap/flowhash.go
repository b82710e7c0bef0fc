package encap

import "encoding/binary"

// FlowHash returns a well-mixed hash of the flow that ip, an IPv4 or IPv6
// packet or its headers, belongs to: both addresses, the protocol and, for
// TCP, UDP and SCTP, both ports. RFC 7348 section 5 wants the outer source port
// drawn from such a hash. The two directions of a flow hash differently, and
// the value is the same in every process.
//
// All fragments of a packet hash alike, so they are hashed without ports. The
// IPv6 flow label isn't used: senders may change it within a connection.
// Anything that is no IP header is hashed as far as it goes, up to 40 bytes.
func FlowHash(ip []byte) uint32 {
	switch {
	case len(ip) >= IPv4HeaderLen && ip[0]>>4 == 4:
		return hashIPv4(ip)
	case len(ip) >= IPv6HeaderLen && ip[0]>>4 == 6:
		return hashIPv6(ip)
	}
	h := uint64(hashSeed)
	for _, octet := range ip[:min(len(ip), IPv6HeaderLen)] {
		h = mix(h ^ uint64(octet))
	}
	return uint32(h >> 32)
}

func hashIPv4(p IPv4) uint32 {
	last := uint64(p.Protocol())
	if start := p.HeaderLen(); !p.IsFragment() && start >= IPv4HeaderLen {
		last |= ports(p, start, p.Protocol())
	}
	h := mix(hashSeed ^ binary.BigEndian.Uint64(p[12:]))
	return uint32(mix(h^last) >> 32)
}

func hashIPv6(p IPv6) uint32 {
	h := uint64(hashSeed)
	for i := 8; i < IPv6HeaderLen; i += 8 {
		h = mix(h ^ binary.BigEndian.Uint64(p[i:]))
	}
	return uint32(mix(h^lastIPv6(p)) >> 32)
}

// lastIPv6 returns protocol and ports. A later fragment doesn't tell which
// transport it belongs to, so all fragments count as one protocol.
func lastIPv6(p IPv6) uint64 {
	c, ok := p.walk()
	switch {
	case !ok:
		return uint64(p.NextHeader())
	case c.fragment:
		return protoFragment
	}
	return uint64(c.proto) | ports(p, c.offset, c.proto)
}

// ports returns both ports of the transport header at start above the eight
// bits of the protocol, zero if there are none.
func ports(b []byte, start int, proto uint8) uint64 {
	switch proto {
	case ProtoTCP, ProtoUDP, ProtoSCTP:
		if len(b) >= start+4 {
			return uint64(binary.BigEndian.Uint32(b[start:])) << 8
		}
	}
	return 0
}

// hashSeed keeps the all-zero input off the fixed point of mix.
const hashSeed = 0x9e3779b97f4a7c15

// mix is a bijection in which every input bit moves about half of the output
// bits: the finalizer of SplitMix64 (Steele, Lea and Flood, 2014).
func mix(x uint64) uint64 {
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}

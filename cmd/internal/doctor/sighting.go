package doctor

import (
	"encoding/binary"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"

	"uvxlan/encap"
)

// message is an ICMP message, or an ARP reply in a frame.
type message struct {
	arp        bool // an ARP reply, which has nothing else
	kind, code byte
	id, seq    uint16
	// times are what an answer to a timestamp request has (RFC 792, page 16).
	times [3]uint32
	// Of an error, whom the packet was for that it quotes, and to which UDP port; 0 if
	// it wasn't UDP.
	to   netip.Addr
	port uint16
}

// isReply tells whether it answers an echo request, of either family.
func (m *message) isReply() bool { return !m.arp && (m.kind == echoReply || m.kind == echoReplyV6) }

// frame is a VXLAN frame's outside.
type frame struct {
	port     uint16 // where it goes to
	vni      encap.VNI
	mac      encap.MAC // of the inner destination
	checksum checksum
	// src and dst are the inner packet's.
	src, dst   netip.Addr
	length     int  // the inner packet's, in bytes
	fragmented bool // the inner packet is a fragment
}

// checksum is what is known of a datagram's checksum.
type checksum int

const (
	checksumUnknown checksum = iota
	checksumRight
	checksumWrong
)

// sighting is a packet that was seen.
type sighting struct {
	at         time.Time
	out        bool // it leaves the host
	link       int  // the interface's number
	src, dst   netip.Addr
	length     int // of the IP packet, in bytes
	fragmented bool
	frame      *frame // nil for a plain ICMP message
	message    message
}

// Types of ICMP messages (RFC 792) and of ICMPv6 ones (RFC 4443).
const (
	echoReply      = 0
	unreachable    = 3
	echoRequest    = 8
	timestamp      = 13
	timestampReply = 14

	unreachableV6 = 1
	echoRequestV6 = 128
	echoReplyV6   = 129

	codePort = 3 // of unreachable; 4 with ICMPv6
)

// parse reads an IP packet, without a link's header. s has what is known of it
// already. There may be several frames in one packet, if it is one that the interface
// is to divide, or has put together.
func (s sighting) parse(b []byte, inPlace bool) (all []sighting) {
	packet, ok := parseIP(b)
	if !ok {
		return nil
	}
	s.src, s.dst, s.length, s.fragmented = packet.src, packet.dst, packet.length, packet.fragmented
	switch packet.protocol {
	case unix.IPPROTO_ICMP, unix.IPPROTO_ICMPV6:
		if s.message.parse(packet.payload, packet.v6) {
			all = append(all, s)
		}
	case unix.IPPROTO_UDP:
		for next := udpHeaderLen; next < len(packet.payload); {
			one := s
			n := one.parseFrame(packet, packet.payload[next:])
			if n == 0 {
				break
			}
			if next += n; next == udpHeaderLen+n && next == len(packet.payload) {
				one.frame.checksum = packet.checksum(inPlace)
			}
			all = append(all, one)
		}
	}
	return all
}

const udpHeaderLen = 8

// parseFrame reads the first of the frames, and returns its length, 0 if it is none
// with an ICMP message inside.
func (s *sighting) parseFrame(p packet, frames []byte) int {
	var f encap.Frame
	if f.Decode(frames) != nil {
		return 0
	}
	if f.EtherType == encap.EtherTypeARP {
		return s.parseARP(p, &f)
	}
	inner, ok := parseIP(f.Payload)
	if !ok || inner.protocol != unix.IPPROTO_ICMP && inner.protocol != unix.IPPROTO_ICMPV6 || !s.message.parse(inner.payload, inner.v6) {
		return 0
	}
	s.frame = &frame{
		port: binary.BigEndian.Uint16(p.payload[2:]), vni: f.VNI, mac: f.Dst,
		src: inner.src, dst: inner.dst, length: inner.length, fragmented: inner.fragmented,
	}
	return encap.FrameHeaderLen + inner.length
}

// parseARP reads a frame with an ARP reply (RFC 826), and returns the rest's length.
func (s *sighting) parseARP(p packet, f *encap.Frame) int {
	const length, operation, sender, target, reply = 28, 6, 14, 24, 2
	b := f.Payload
	if len(b) < length || binary.BigEndian.Uint16(b[operation:]) != reply {
		return 0
	}
	s.message.arp = true
	s.frame = &frame{
		port: binary.BigEndian.Uint16(p.payload[2:]), vni: f.VNI, mac: f.Dst, length: len(b),
		src: netip.AddrFrom4([4]byte(b[sender:])), dst: netip.AddrFrom4([4]byte(b[target:])),
	}
	return encap.FrameHeaderLen + len(b)
}

// checksum judges a whole datagram.
func (p *packet) checksum(inPlace bool) checksum {
	length := int(binary.BigEndian.Uint16(p.payload[4:]))
	switch sum := binary.BigEndian.Uint16(p.payload[6:]); {
	case !inPlace || p.fragmented || length != len(p.payload) || sum == 0:
		return checksumUnknown
	case encap.Checksum(p.payload, encap.PseudoHeaderSum(p.src, p.dst, unix.IPPROTO_UDP, length)) == 0:
		return checksumRight
	}
	return checksumWrong
}

func (m *message) parse(b []byte, v6 bool) bool {
	const headerLen = 8
	if len(b) < headerLen {
		return false
	}
	m.kind, m.code = b[0], b[1]
	m.id, m.seq = binary.BigEndian.Uint16(b[4:]), binary.BigEndian.Uint16(b[6:])
	switch {
	case !v6 && m.kind == timestampReply && len(b) >= headerLen+12:
		for i := range m.times {
			m.times[i] = binary.BigEndian.Uint32(b[headerLen+4*i:])
		}
	case !v6 && m.kind == unreachable, v6 && m.kind == unreachableV6:
		quoted, ok := parseIP(b[headerLen:])
		if !ok {
			return true
		}
		m.to = quoted.dst
		if quoted.protocol == unix.IPPROTO_UDP && len(quoted.payload) >= 4 {
			m.port = binary.BigEndian.Uint16(quoted.payload[2:])
		}
	}
	return true
}

// packet is an IP packet's parts. Payload may be less than the packet's, as in an
// ICMP error.
type packet struct {
	v6         bool
	src, dst   netip.Addr
	protocol   int
	length     int // as its header says, in bytes
	fragmented bool
	payload    []byte
}

func parseIP(b []byte) (p packet, ok bool) {
	switch {
	case len(b) >= encap.IPv4HeaderLen && b[0]>>4 == 4:
		h := encap.IPv4(b)
		start := h.HeaderLen()
		if start < encap.IPv4HeaderLen || len(b) < start || h.FragmentOffset() > 0 {
			return p, false
		}
		end := min(max(h.TotalLen(), start), len(b))
		return packet{false, h.Src(), h.Dst(), int(h.Protocol()), h.TotalLen(), h.IsFragment(), b[start:end]}, true
	case len(b) >= encap.IPv6HeaderLen && b[0]>>4 == 6:
		h := encap.IPv6(b)
		p = packet{true, h.Src(), h.Dst(), int(h.NextHeader()), encap.IPv6HeaderLen + h.PayloadLen(), false, b[encap.IPv6HeaderLen:]}
		const fragmentHeaderLen = 8
		if p.protocol == unix.IPPROTO_FRAGMENT && len(p.payload) >= fragmentHeaderLen {
			if binary.BigEndian.Uint16(p.payload[2:])&^7 != 0 {
				return p, false // not the first
			}
			p.fragmented, p.protocol, p.payload = true, int(p.payload[0]), p.payload[fragmentHeaderLen:]
		}
		return p, true
	}
	return p, false
}

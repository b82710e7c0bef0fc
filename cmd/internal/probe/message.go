package probe

import (
	"encoding/binary"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"

	"uvxlan/encap"
)

const (
	// echoHeaderLen is the length of an echo's header (RFC 792, page 14; RFC 4443,
	// section 4.1), and of an ICMP error's.
	echoHeaderLen = 8
	// markLen is the length of the mark at the beginning of a request's payload.
	markLen = 8
)

// Types of messages (RFC 792; RFC 4443, section 2.1).
const (
	typeEchoReply    = 0
	typeUnreachable  = 3
	typeEcho         = 8
	typeTimeExceeded = 11
	typeBadParameter = 12

	typeUnreachableV6  = 1
	typeTooBigV6       = 2
	typeTimeExceededV6 = 3
	typeBadParameterV6 = 4
	typeEchoV6         = 128
	typeEchoReplyV6    = 129
)

// format is what ICMP and ICMPv6 differ in.
type format struct {
	family, protocol int
	headerLen        int // the IP header's, without options
	echo, echoReply  byte
	errors           []byte // types that quote a packet
}

var (
	formatV4 = &format{
		family: unix.AF_INET, protocol: unix.IPPROTO_ICMP, headerLen: encap.IPv4HeaderLen, echo: typeEcho, echoReply: typeEchoReply,
		errors: []byte{typeUnreachable, typeTimeExceeded, typeBadParameter},
	}
	formatV6 = &format{
		family: unix.AF_INET6, protocol: unix.IPPROTO_ICMPV6, headerLen: encap.IPv6HeaderLen, echo: typeEchoV6, echoReply: typeEchoReplyV6,
		errors: []byte{typeUnreachableV6, typeTooBigV6, typeTimeExceededV6, typeBadParameterV6},
	}
)

func formatOf(a netip.Addr) *format {
	if a.Unmap().Is4() {
		return formatV4
	}
	return formatV6
}

// appendRequest appends an echo request. Its checksum is for IPv4; that of ICMPv6 is
// filled in by the kernel (RFC 3542, section 3.1).
func (f *format) appendRequest(b []byte, id, seq uint16, mark uint64, size int) []byte {
	start := len(b)
	b = append(b, f.echo, 0, 0, 0)
	b = binary.BigEndian.AppendUint16(b, id)
	b = binary.BigEndian.AppendUint16(b, seq)
	b = binary.BigEndian.AppendUint64(b, mark)
	for i := markLen; i < size; i++ {
		b = append(b, byte(i))
	}
	if f == formatV4 {
		binary.BigEndian.PutUint16(b[start+2:], encap.Checksum(b[start:], 0))
	}
	return b
}

func hasMark(payload []byte, mark uint64) bool {
	return len(payload) >= markLen && binary.BigEndian.Uint64(payload) == mark
}

// isEcho tells whether payload is that of a request.
func isEcho(payload []byte, mark uint64, size int) bool {
	if len(payload) != size || !hasMark(payload, mark) {
		return false
	}
	for i, b := range payload[markLen:] {
		if b != byte(i+markLen) {
			return false
		}
	}
	return true
}

// message is an answer to a request.
type message struct {
	from netip.Addr
	seq  uint16
	// of a reply
	payload []byte    // the caller's buffer
	damaged bool      // the checksum is wrong
	kernel  time.Time // when the kernel had it, zero if it doesn't say
	read    time.Time // when we had it
	// of an error
	to      netip.Addr // whom the request was for
	failure *ICMPError // nil for a reply
}

// since is the time from when a request was sent until the answer came. The kernel's
// time is the wall clock's, which may have been set meanwhile.
func (m *message) since(sent time.Time) time.Duration {
	rtt := m.read.Sub(sent)
	if !m.kernel.IsZero() {
		if k := m.kernel.Sub(sent.Round(0)); k > 0 && k < rtt {
			return k
		}
	}
	return rtt
}

// parse reads an ICMP message, without the IP header, to the requests of an ID.
func (f *format) parse(b []byte, from netip.Addr, id uint16) (m message, ok bool) {
	if len(b) < echoHeaderLen {
		return message{}, false
	}
	m.from = from
	if b[0] == f.echoReply {
		m.seq, m.payload = binary.BigEndian.Uint16(b[6:]), b[echoHeaderLen:]
		m.damaged = f == formatV4 && encap.Checksum(b, 0) != 0 // of ICMPv6 the kernel has checked it
		return m, binary.BigEndian.Uint16(b[4:]) == id
	}
	for _, t := range f.errors {
		if b[0] != t {
			continue
		}
		quoted, to, ok := f.parseQuoted(b[echoHeaderLen:])
		if !ok || quoted[0] != f.echo || binary.BigEndian.Uint16(quoted[4:]) != id {
			return message{}, false
		}
		m.seq, m.to = binary.BigEndian.Uint16(quoted[6:]), to
		m.failure = &ICMPError{From: from, Type: b[0], Code: b[1]}
		m.failure.setMTU(binary.BigEndian.Uint32(b[4:]))
		return m, true
	}
	return message{}, false
}

// parseQuoted finds the ICMP header in a packet that an error quotes the beginning
// of, and whom it was for.
func (f *format) parseQuoted(b []byte) (icmp []byte, to netip.Addr, ok bool) {
	const (
		protocolV4, addressV4 = 9, 16
		nextHeaderV6, toV6    = 6, 24
		fragmentHeaderLen     = 8 // RFC 8200, section 4.5
	)
	if len(b) < f.headerLen {
		return nil, to, false
	}
	var at, protocol int
	if f == formatV4 {
		at, protocol = int(b[0]&0xf)*4, int(b[protocolV4])
		to = netip.AddrFrom4([4]byte(b[addressV4:]))
	} else {
		at, protocol = encap.IPv6HeaderLen, int(b[nextHeaderV6])
		to = netip.AddrFrom16([16]byte(b[toV6:]))
		if protocol == unix.IPPROTO_FRAGMENT && len(b) > at+fragmentHeaderLen {
			at, protocol = at+fragmentHeaderLen, int(b[at])
		}
	}
	if protocol != f.protocol || len(b) < at+echoHeaderLen {
		return nil, to, false
	}
	return b[at:], to, true
}

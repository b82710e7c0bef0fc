package trace

import (
	"encoding/binary"
	"slices"

	"golang.org/x/sys/unix"
)

// state is what is known of a packet on its way through the rules. Numbers are
// as the kernel has them: those of the network in network byte order, those of
// the host in the host's.
type state struct {
	v6       bool
	src, dst value
	in, out  port
	protocol value // IP's
	sport    value
	dport    value
	flags    value // TCP's
	mark     value
	connmark value
	ctState  value
	ctStatus value
	// srcType and dstType are what the routes make of the addresses
	// (rtnetlink(7), rtm_type).
	srcType, dstType uint32
	// sameWay says that the route back to the source leaves by the interface that
	// the packet came by.
	sameWay bool

	// What a rule's steps have told of the rule.
	matched    tri  // whether it holds for the packet
	acts       bool // it does more than to match, to count and to give a verdict
	translates bool // it gives the packet another address or port
	untracks   bool // it keeps conntrack from knowing the packet
}

// port is an interface by its name and by its number.
type port struct{ name, index value }

const (
	nameSize = 16 // linux/if.h, IFNAMSIZ
	tcp      = 6
	udp      = 17
	syn      = 2
	stateNew = 8 // of conntrack's states, as nftables and iptables number them
	// Ports that no rule is about. Both are from the range that clients use.
	clientPort, serverPort = 51413, 52747
)

// newState returns the state of a packet at a hook. The packet is of any
// protocol. With common it begins a TCP connection to a port that no rule
// names.
func newState(p Packet, h hook, common bool) *state {
	s := &state{
		v6: !p.Src.In.Addr().Is4(), src: p.Src.value(), dst: p.Dst.value(), in: p.In.port(), out: p.Out.port(),
		protocol: anything(1), sport: anything(2), dport: anything(2), flags: anything(1),
		mark: exactly(native(0)), connmark: exactly(native(0)),
		ctState: exactly(native(stateNew)), ctStatus: exactly(native(0)),
		srcType: unix.RTN_UNICAST, dstType: unix.RTN_UNICAST,
	}
	if h == preRouting { // it isn't routed yet, and its connection perhaps not known
		s.out = port{exactly(name("")), exactly(native(0))}
		s.ctState, s.ctStatus, s.connmark = value{}, value{}, value{}
	}
	if common {
		s.protocol, s.flags = exactly([]byte{tcp}), exactly([]byte{syn})
		s.sport, s.dport = exactly(network(clientPort)), exactly(network(serverPort))
	}
	return s
}

func (r Range) value() value {
	v := value{span: addresses(r.In)}
	if r.NotIn.IsValid() {
		not := addresses(r.NotIn)
		v.except = &not
	}
	return v
}

func (i Interface) port() port {
	n, x := name(i.Name), native(uint32(i.Index))
	if !i.Not {
		return port{exactly(n), exactly(x)}
	}
	p := port{anything(nameSize), anything(len(x))}
	p.name.except, p.index.except = &span{n, n}, &span{x, x}
	return p
}

// name returns an interface's name as the kernel has it.
func name(s string) []byte {
	return append([]byte(s), make([]byte, max(nameSize-len(s), 0))...)
}

func native(n uint32) []byte { return binary.NativeEndian.AppendUint32(nil, n) }

func network(n uint16) []byte { return binary.BigEndian.AppendUint16(nil, n) }

// header returns n bytes of the IP header.
func (s *state) header(offset, n int) []value {
	source, destination, protocol, size := 12, 16, 9, 4
	if s.v6 {
		source, destination, protocol, size = 8, 24, 6, 16
	}
	end := offset + n
	switch {
	case offset == protocol && n == 1:
		return []value{s.protocol}
	case offset == source && end == destination+size:
		return []value{s.src, s.dst}
	case offset >= source && end <= source+size:
		return []value{s.src.slice(offset-source, n)}
	case offset >= destination && end <= destination+size:
		return []value{s.dst.slice(offset-destination, n)}
	}
	return []value{anything(n)}
}

// transport returns n bytes of the TCP or UDP header.
func (s *state) transport(offset, n int) value {
	switch {
	case offset == 0 && n == 2:
		return s.sport
	case offset == 2 && n == 2:
		return s.dport
	case offset == 0 && n == 4: // a rule that compares both
		return value{span: span{slices.Concat(s.sport.lo, s.dport.lo), slices.Concat(s.sport.hi, s.dport.hi)}, met: s.dport.met}
	case offset == 13 && n == 1:
		return s.flags
	}
	return anything(n)
}

package trace

import (
	"encoding/binary"
	"slices"
)

// matches tells whether an iptables match holds. It reads the kernel's
// structures in linux/netfilter/xt_*.h.
func matches(name string, revision uint32, info []byte, s *state) tri {
	switch name {
	case "comment":
		return yes
	case "conntrack":
		return conntrack(revision, info, s)
	case "state": // struct xt_state_info
		return stateOf(info, s)
	case "mark":
		return marked(revision, info, s.mark)
	case "connmark":
		return marked(revision, info, s.connmark)
	case "addrtype":
		return addrtype(revision, info, s)
	case "rpfilter":
		return rpfilter(info, s)
	case "physdev":
		return physdev(info)
	case "tcp":
		return matchTCP(info, s)
	case "udp":
		return matchUDP(info, s)
	case "udplite", "sctp", "dccp", "icmp", "icmp6", "ah", "esp":
		return s.protocol.is([]byte{tcp}).or(s.protocol.is([]byte{udp})).not().and(maybe)
	case "multiport":
		return multiport(revision, info, s)
	}
	return maybe
}

// stateOf compares conntrack's state with a mask of 4 bytes.
func stateOf(info []byte, s *state) tri {
	if len(info) < 4 || !s.ctState.exact() {
		return maybe
	}
	return sure(binary.NativeEndian.Uint32(info)&binary.NativeEndian.Uint32(s.ctState.lo) != 0)
}

// The fields of struct xt_conntrack_mtinfo3, and what its flags say.
const (
	conntrackMatch      = 8*16 + 2*4 + 5*2 // offset of match_flags
	conntrackInvert     = conntrackMatch + 2
	conntrackState      = conntrackInvert + 2
	conntrackStatus     = conntrackState + 2
	conntrackWantState  = 1 << 0
	conntrackWantStatus = 1 << 6
)

// conntrack compares only the states. The packets that are followed here are
// neither translated nor expected.
func conntrack(revision uint32, info []byte, s *state) tri {
	wide := revision >= 2
	if revision < 1 || len(info) < conntrackStatus {
		return maybe
	}
	match, invert := binary.NativeEndian.Uint16(info[conntrackMatch:]), binary.NativeEndian.Uint16(info[conntrackInvert:])
	states, statuses := uint16(info[conntrackState]), uint16(info[conntrackState+1])
	if wide {
		if len(info) < conntrackStatus+2 {
			return maybe
		}
		states, statuses = binary.NativeEndian.Uint16(info[conntrackState:]), binary.NativeEndian.Uint16(info[conntrackStatus:])
	}
	is := yes
	if match&conntrackWantState != 0 {
		has := stateOf(native(uint32(states)), s)
		if invert&conntrackWantState != 0 {
			has = has.not()
		}
		is = is.and(has)
	}
	if match&conntrackWantStatus != 0 {
		has := sure(statuses == 0)
		if !s.ctStatus.exact() {
			has = maybe
		}
		if invert&conntrackWantStatus != 0 {
			has = has.not()
		}
		is = is.and(has)
	}
	if match&^(conntrackWantState|conntrackWantStatus) != 0 {
		is = is.and(maybe)
	}
	return is
}

// marked compares a mark by struct xt_mark_mtinfo1, which xt_connmark_mtinfo1
// equals.
func marked(revision uint32, info []byte, mark value) tri {
	if revision != 1 || len(info) < 9 || !mark.exact() {
		return maybe
	}
	want, mask := binary.NativeEndian.Uint32(info), binary.NativeEndian.Uint32(info[4:])
	is := sure(binary.NativeEndian.Uint32(mark.lo)&mask == want)
	if info[8] != 0 {
		return is.not()
	}
	return is
}

// addrtype compares the types of the addresses (struct xt_addrtype_info and
// xt_addrtype_info_v1).
func addrtype(revision uint32, info []byte, s *state) tri {
	if len(info) < 8 {
		return maybe
	}
	source, dest := binary.NativeEndian.Uint16(info), binary.NativeEndian.Uint16(info[2:])
	flags := binary.NativeEndian.Uint32(info[4:])
	notSource, notDest := flags&1 != 0, flags&2 != 0
	if revision == 0 {
		notSource, notDest = flags != 0, len(info) >= 12 && binary.NativeEndian.Uint32(info[8:]) != 0
	}
	is := true
	if source != 0 {
		is = is && (source&(1<<s.srcType) != 0) != notSource
	}
	if dest != 0 {
		is = is && (dest&(1<<s.dstType) != 0) != notDest
	}
	return sure(is)
}

// rpfilter tells whether the route back to the source leaves by the interface
// that the packet came by (struct xt_rpfilter_info).
func rpfilter(info []byte, s *state) tri {
	const invert = 1 << 3
	if len(info) < 1 || !s.sameWay {
		return maybe
	}
	return sure(info[0]&invert == 0)
}

// physdev looks for bridged packets. A routed packet isn't one (struct
// xt_physdev_info).
func physdev(info []byte) tri {
	const invert, mask, bridged = 4 * nameSize, 4*nameSize + 1, 4
	if len(info) > mask && info[mask]&bridged != 0 && info[invert]&bridged == 0 {
		return no
	}
	return maybe
}

// matchTCP compares ports and flags: struct xt_tcp.
func matchTCP(info []byte, s *state) tri {
	if len(info) < 12 {
		return maybe
	}
	const notSource, notDest, notFlags, notOption = 1, 2, 4, 8
	option, mask, want, invert := info[8], info[9], info[10], info[11]
	is := s.protocol.is([]byte{tcp})
	inverted := func(t tri, flag byte) tri {
		if invert&flag != 0 {
			return t.not()
		}
		return t
	}
	is = is.and(inverted(s.sport.in(portsAt(info, 0)), notSource))
	is = is.and(inverted(s.dport.in(portsAt(info, 4)), notDest))
	if mask != 0 || want != 0 || invert&notFlags != 0 {
		is = is.and(inverted(s.flags.masked([]byte{mask}, []byte{0}).is([]byte{want}), notFlags))
	}
	if option != 0 || invert&notOption != 0 {
		is = is.and(maybe)
	}
	return is
}

// matchUDP compares ports: struct xt_udp.
func matchUDP(info []byte, s *state) tri {
	if len(info) < 9 {
		return maybe
	}
	const notSource, notDest = 1, 2
	source, dest := yes, yes
	if ports := portsAt(info, 0); !ports.all() || info[8]&notSource != 0 {
		source = s.sport.in(ports)
	}
	if ports := portsAt(info, 4); !ports.all() || info[8]&notDest != 0 {
		dest = s.dport.in(ports)
	}
	if info[8]&notSource != 0 {
		source = source.not()
	}
	if info[8]&notDest != 0 {
		dest = dest.not()
	}
	return s.protocol.is([]byte{udp}).and(source).and(dest)
}

// portsAt reads the first and the last of a range of ports.
func portsAt(info []byte, at int) span {
	return span{network(binary.NativeEndian.Uint16(info[at:])), network(binary.NativeEndian.Uint16(info[at+2:]))}
}

// all tells whether every field of the span's length is in it.
func (s span) all() bool { return zero(s.lo) && ones(s.hi) }

// mostPorts is how many ports a multiport match may list.
const mostPorts = 15

// multiport compares a list of ports: struct xt_multiport_v1.
func multiport(revision uint32, info []byte, s *state) tri {
	if revision != 1 || len(info) < 2+3*mostPorts+1 || int(info[1]) > mostPorts {
		return maybe
	}
	var values []value
	switch info[0] {
	case 0:
		values = []value{s.sport}
	case 1:
		values = []value{s.dport}
	default:
		values = []value{s.sport, s.dport}
	}
	is := no
	for _, ports := range multiportPorts(info) {
		for _, v := range values {
			is = is.or(v.in(ports))
		}
	}
	if info[2+3*mostPorts] != 0 {
		is = is.not()
	}
	return is
}

// multiportPorts returns the listed ports and ranges of ports.
func multiportPorts(info []byte) (all []span) {
	ranges := info[2+2*mostPorts : 2+3*mostPorts]
	for i := 0; i < int(info[1]); i++ {
		ports := portsAt(info, 2+2*i)
		if ranges[i] != 0 && i+1 < int(info[1]) {
			i++
		} else {
			ports.hi = ports.lo
		}
		all = append(all, ports)
	}
	return all
}

// passing are the iptables targets after which a packet goes on.
var passing = []string{
	"LOG", "NFLOG", "ULOG", "MARK", "CONNMARK", "CONNSECMARK", "SECMARK", "CT", "NOTRACK", "TRACE", "TCPMSS", "TCPOPTSTRIP", "TOS", "DSCP", "ECN",
	"TTL", "HL", "CLASSIFY", "SET", "TEE", "RATEEST", "CHECKSUM", "AUDIT", "IDLETIMER", "LED", "HMARK", "FLOWOFFLOAD",
}

// translating are the iptables targets that give a packet another address or port
// than its own interface's.
var translating = []string{"SNAT", "DNAT", "NETMAP", "REDIRECT", "TPROXY"}

// untracking are those after which conntrack doesn't know the packet.
var untracking = []string{"CT", "NOTRACK"}

// target returns what an iptables target does, nil if the packet goes on.
func target(name string, s *state, m tri) []step {
	s.translates = s.translates || slices.Contains(translating, name)
	s.untracks = s.untracks || slices.Contains(untracking, name)
	s.acts = s.acts || slices.Contains(passing, name) && !slices.Contains(untracking, name)
	switch {
	case name == "MASQUERADE":
		return []step{{match: m, verdict: accepts}}
	case name == "MARK":
		s.mark = value{}
	case name == "CONNMARK":
		s.mark, s.connmark = value{}, value{}
	case name == "REJECT", name == "DROP", name == "TARPIT":
		return []step{{match: m, verdict: drops}}
	case !slices.Contains(passing, name):
		return []step{{match: m, verdict: leaves}}
	}
	return nil
}

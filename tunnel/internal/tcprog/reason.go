package tcprog

// Reason says why a program left a packet to the workers.
type Reason uint8

// The reasons, in the order of the program's.
const (
	// NotIP: neither IPv4 nor IPv6, or not all of it.
	NotIP Reason = iota + 1
	// Options: IPv4 options.
	Options
	// Fragment: a part of an inner packet, or the first part of an outer one.
	Fragment
	// Protocol: not TCP, UDP or ICMP, or neighbour discovery, or IPv6 extension
	// headers.
	Protocol
	// NoPeer: the destination is none of the programs' peers', or an excluded one's.
	NoPeer
	// SYN: the first packet of a TCP connection, of which workers learn the segment
	// size.
	SYN
	// PathMTU: an ICMP error that says how long packets may be, of which workers learn
	// that, too.
	PathMTU
	// Superpacket: of TCP, which the underlay would not pass unsplit.
	Superpacket
	// UDPSuperpacket: of UDP, whose segment size a receiver that gets it unsplit
	// isn't told.
	UDPSuperpacket
	// TooLong: for the path to the peer.
	TooLong
	// Checksum: the inner packet has none or that of its header is wrong, or the outer
	// one doesn't match it.
	Checksum
	// Flowlet: other packets of the flow were left just before, or may have been.
	Flowlet
	// NoRoute: there is no plain route to the peer, or the device doesn't forward.
	NoRoute
	// OtherLink: the route leaves by another interface.
	OtherLink
	// NoNeighbour: the next hop's MAC isn't known.
	NoNeighbour
	// ForeignVNI: a frame of another segment, or without a VNI.
	ForeignVNI
	// InnerMAC: not our VTEP's.
	InnerMAC
	// InnerSource: not a peer's whose address the frame came from.
	InnerSource
	// ECN: a congestion mark to be carried inward.
	ECN
	// Aggregate: datagrams that were joined on the way up, or padding.
	Aggregate
	// Bulk: full-size packets of TCP, which workers join.
	Bulk
	// Error: a helper refused, or there was no memory for the peer's counters.
	Error
	// Lost isn't left: a helper refused half-way, and the packet is dropped.
	Lost

	reasons
)

var reasonNames = [reasons]string{
	"carried", "not_ip", "options", "fragment", "protocol", "no_peer", "syn", "path_mtu", "superpacket", "udp_superpacket",
	"too_long", "checksum", "flowlet", "no_route", "other_link", "no_neighbour", "foreign_vni", "inner_mac",
	"inner_source", "ecn", "aggregate", "bulk", "error", "lost",
}

// String is the reason in the form of a metric's label, such as "too_long".
func (r Reason) String() string {
	if r >= reasons {
		return "unknown"
	}
	return reasonNames[r]
}

// Reasons lists every reason.
func Reasons() []Reason {
	all := make([]Reason, 0, reasons-1)
	for r := NotIP; r < reasons; r++ {
		all = append(all, r)
	}
	return all
}

package control

import (
	"fmt"
	"net/netip"
	"time"
)

// Source says how a daemon is. Its methods may be called at any time, from any
// goroutine.
type Source interface {
	// Status says how the daemon is at the moment.
	Status() Status
	// Peers lists the other hosts' subnets, in order.
	Peers() []Peer
}

// Status is a daemon's state at a moment. A part that isn't known yet is left
// away in JSON.
type Status struct {
	// Version and PID are the daemon's.
	Version string `json:"version"`
	PID     int    `json:"pid"`
	// Started is when the daemon started, and Now when it said all this.
	Started time.Time `json:"started"`
	Now     time.Time `json:"now"`
	// Ready says that the host's containers are connected; otherwise Reasons
	// say why not, in words.
	Ready   bool     `json:"ready"`
	Reasons []string `json:"reasons,omitempty"`
	// Notes say what needs looking at although packets flow.
	Notes []string `json:"notes,omitempty"`
	// Faults are what isn't as it should be on the host, those that stop packets
	// first. Reasons and Notes tell of them in words.
	Faults []Fault `json:"faults,omitempty"`
	// HostParts are the parts of the host that are looked after; each may have
	// Faults.
	HostParts []string `json:"host_parts,omitempty"`
	// Model is how packets travel: "vxlan", "vxlan, direct by socket", "vxlan,
	// direct by route" or "host-gw".
	Model string `json:"model,omitempty"`
	// Interface leads to the other hosts, which know this one by PublicIP, and for
	// IPv6 by PublicIPv6.
	Interface  string     `json:"interface,omitempty"`
	PublicIP   netip.Addr `json:"public_ip,omitzero"`
	PublicIPv6 netip.Addr `json:"public_ipv6,omitzero"`
	// Network is the overlay's, and NetworkV6 its IPv6 one, if it has that.
	Network   netip.Prefix `json:"network,omitzero"`
	NetworkV6 netip.Prefix `json:"ipv6_network,omitzero"`
	// Device is the overlay's interface, which host-gw has none of.
	Device string `json:"device,omitempty"`
	// Port is the UDP port that the other hosts' frames come to, at the addresses
	// Local and LocalV6. Host-gw has none.
	Port    uint16     `json:"port,omitempty"`
	Local   netip.Addr `json:"local_ip,omitzero"`
	LocalV6 netip.Addr `json:"local_ipv6,omitzero"`
	// MTU is that of the containers, in bytes.
	MTU int `json:"mtu,omitempty"`
	// Lease is the host's own.
	Lease *Lease `json:"lease,omitempty"`
	// Etcd is the way to etcd. Where the leases are in Kubernetes it is the zero
	// Registry, and Kubernetes is the way there.
	Etcd       Registry  `json:"etcd,omitzero"`
	Kubernetes *Registry `json:"kubernetes,omitempty"`
	Watch      Watch     `json:"watch"`
	// Peers is how many other hosts' subnets there are, of both families.
	Peers int `json:"peers"`
	// Silent is how many of them don't answer, and NotProbed why none is asked, empty
	// if they are.
	Silent    int    `json:"silent"`
	NotProbed string `json:"not_probed,omitempty"`
	// FastPath tells of the fast path, nil with host-gw, which has none.
	FastPath *FastPath `json:"fast_path,omitempty"`
	// Traffic is what passed the device. The kernel counts what takes its own
	// routes, as all does with host-gw.
	Traffic *Traffic `json:"traffic,omitempty"`
}

// Fault is something on the host that isn't as it should be.
type Fault struct {
	// Part is what it is a fault of, such as "route".
	Part string `json:"part"`
	// What is wrong, in words, and what the operator can do about it; the Remedy is
	// empty where the daemon mends it.
	What   string `json:"what"`
	Remedy string `json:"remedy,omitempty"`
	// Stops says that the containers' packets don't pass.
	Stops bool `json:"stops"`
	// Since is when the fault was first seen.
	Since time.Time `json:"since"`
}

// Lease is the host's claim on its subnet.
type Lease struct {
	Subnet netip.Prefix `json:"subnet"`
	// SubnetV6 is the IPv6 subnet, if the network has IPv6.
	SubnetV6 netip.Prefix `json:"ipv6_subnet,omitzero"`
	// Renewed is when this daemon last took, renewed or restored it.
	Renewed time.Time `json:"renewed"`
	// Expires is when the other hosts forget it unless it is renewed.
	Expires time.Time `json:"expires,omitzero"`
	// Reserved marks one that never expires.
	Reserved bool `json:"reserved,omitempty"`
	// Node is the name of the host's Node where Kubernetes has given it its subnets;
	// then it doesn't expire either.
	Node string `json:"node,omitempty"`
}

// Subnets are both subnets in words.
func (l *Lease) Subnets() string {
	if !l.SubnetV6.IsValid() {
		return l.Subnet.String()
	}
	return l.Subnet.String() + " and " + l.SubnetV6.String()
}

// Leases tells where the leases are, "etcd" or "Kubernetes", and of the way there.
func (s *Status) Leases() (name string, way Registry) {
	if s.Kubernetes != nil {
		return "Kubernetes", *s.Kubernetes
	}
	return "etcd", s.Etcd
}

// Registry is the way to where the leases are.
type Registry struct {
	// Up says whether it answered last time, and Since from when on; zero before
	// the first attempt.
	Up    bool      `json:"up"`
	Since time.Time `json:"since,omitzero"`
	// Errors counts the attempts that failed. LastError is why the last of them
	// did, and LastErrorAt when.
	Errors      uint64    `json:"errors"`
	LastError   string    `json:"last_error,omitempty"`
	LastErrorAt time.Time `json:"last_error_at,omitzero"`
	// Skipped counts entries among the leases that are none.
	Skipped uint64 `json:"skipped"`
}

// Watch is the following of the other hosts' leases.
type Watch struct {
	// Alive says that nothing is missed, and Since from when on.
	Alive bool      `json:"alive"`
	Since time.Time `json:"since,omitzero"`
	// Heard is when a lease was last heard of.
	Heard time.Time `json:"heard,omitzero"`
	// AsOf is the moment whose leases are in force while none are watched, and
	// Stored says that an earlier run of the daemon left them.
	AsOf   time.Time `json:"as_of,omitzero"`
	Stored bool      `json:"stored,omitempty"`
}

// FastPath is what carries packets in the kernel, past the workers.
type FastPath struct {
	// On says that it is attached; otherwise Reason says why not.
	On     bool   `json:"on"`
	Reason string `json:"reason,omitempty"`
	// Link is the interface to the other hosts that it is attached to, with its kind,
	// such as "veth eth0".
	Link string `json:"link,omitempty"`
	// Superpackets says that tunnels' superpackets pass this interface whole.
	Superpackets bool `json:"superpackets"`
	// Relay is the interface by which superpackets for bridges lose the marks of their
	// tunnel, if there is one. NoRelay says why there can't be one where there should:
	// they are the workers'.
	Relay   string `json:"relay,omitempty"`
	NoRelay string `json:"no_relay,omitempty"`
	// Sent and Received are what it has carried.
	Sent     FastDirection `json:"sent"`
	Received FastDirection `json:"received"`
}

// FastDirection is a fast path's traffic of one direction.
type FastDirection struct {
	// Packets are IP packets, superpackets as one, and Bytes are theirs.
	Packets uint64 `json:"packets"`
	Bytes   uint64 `json:"bytes"`
	// Left counts packets that it left to the workers, by reason.
	Left map[string]uint64 `json:"left"`
}

// Words tell of the fast path.
func (f *FastPath) Words() string {
	switch {
	case !f.On:
		return "off: " + f.Reason
	case f.Superpackets && f.NoRelay != "":
		return fmt.Sprintf("on (%s, superpackets whole, but for bridges by the workers: %s)", f.Link, f.NoRelay)
	case f.Superpackets:
		return fmt.Sprintf("on (%s, superpackets whole)", f.Link)
	}
	return fmt.Sprintf("on (%s, superpackets by the workers)", f.Link)
}

// Traffic is what the packets' workers and the fast path have counted since the
// device was made.
type Traffic struct {
	Sent     Direction `json:"sent"`
	Received Direction `json:"received"`
	// Direct is how many of the packets sent left without VXLAN.
	Direct uint64 `json:"direct"`
	// Fallbacks counts superpackets that the kernel refused.
	Fallbacks uint64 `json:"fallbacks"`
	// Answers counts ARP replies, neighbour advertisements and ICMP errors.
	Answers uint64 `json:"answers"`
	// Drops counts dropped packets by reason; every reason is there.
	Drops map[string]uint64 `json:"drops"`
	// Offloads tells of each way to move many packets at once whether it is in
	// use.
	Offloads map[string]bool `json:"offloads"`
}

// Direction is the traffic of one direction.
type Direction struct {
	// Packets are IP packets as they passed the device, superpackets as one, and
	// Bytes are theirs.
	Packets uint64 `json:"packets"`
	Bytes   uint64 `json:"bytes"`
	// Datagrams are VXLAN frames on the wire, and Messages the calls' worth of
	// them: fewer where many are sent or received as one.
	Datagrams uint64 `json:"datagrams"`
	Messages  uint64 `json:"messages"`
	// Batches are the rounds in which a worker moved something.
	Batches uint64 `json:"batches"`
}

// Dropped is how many packets were dropped for any reason.
func (t *Traffic) Dropped() (n uint64) {
	for _, v := range t.Drops {
		n += v
	}
	return n
}

// Ways of packets to a peer.
const (
	// PathVXLAN: in VXLAN frames.
	PathVXLAN = "vxlan"
	// PathDirect: as they are, over the peers' common network.
	PathDirect = "direct"
	// PathForeign: by a route of somebody else's, past the overlay.
	PathForeign = "foreign"
	// PathNone: not at all; only host-gw has nothing to fall back on.
	PathNone = "none"
)

// Peer is another host's subnet and the way to it.
type Peer struct {
	Subnet   netip.Prefix `json:"subnet"`
	PublicIP netip.Addr   `json:"public_ip"`
	// MAC is the peer's VTEP's; host-gw has none.
	MAC string `json:"mac,omitempty"`
	// Path is PathVXLAN, PathDirect, PathForeign or PathNone.
	Path string `json:"path"`
	// Link is where a direct path leaves, and NextMAC where it arrives, if that
	// isn't the kernel's business.
	Link    string `json:"link,omitempty"`
	NextMAC string `json:"next_mac,omitempty"`
	// Reason says why the path isn't direct, if it might be.
	Reason string `json:"reason,omitempty"`
	// Unclaimed is a lease that is reserved for a host that hasn't taken it yet.
	Unclaimed bool `json:"unclaimed,omitempty"`
	// PathMTU is the longest packet, in bytes, that travels to the peer in one
	// piece by VXLAN: the containers' MTU, or less where the network between the
	// hosts takes less. 0 if the path isn't PathVXLAN.
	PathMTU int `json:"path_mtu,omitempty"`
	// Fast says that the fast path carries the peer's packets. Where it could,
	// FastReason says why it doesn't.
	Fast       bool   `json:"fast"`
	FastReason string `json:"fast_reason,omitempty"`
	// Since is when the path became what it is, zero if it can't change.
	Since time.Time `json:"since,omitzero"`
	// Traffic is what passed between the hosts by way of the device, nil where
	// there is none, as with host-gw.
	Traffic *PeerTraffic `json:"traffic,omitempty"`
	// Health is what the peer has answered, nil if it isn't asked.
	Health *Health `json:"health,omitempty"`
	// LastHeard is when the peer's last packet or answer came, zero if none has.
	LastHeard time.Time `json:"last_heard,omitzero"`
	// AsOf is when the peer's lease was last known to be in etcd, while leases
	// aren't watched.
	AsOf time.Time `json:"as_of,omitzero"`
}

// SetLastHeard sets LastHeard by Traffic and Health.
func (p *Peer) SetLastHeard() {
	p.LastHeard = time.Time{}
	if p.Traffic != nil {
		p.LastHeard = p.Traffic.LastSeen
	}
	if p.Health != nil && p.Health.LastAnswer.After(p.LastHeard) {
		p.LastHeard = p.Health.LastAnswer
	}
}

// PeerTraffic counts for one peer, since its subnet is known. What arrives
// directly, and all that takes routes of the kernel's, is the kernel's to count.
type PeerTraffic struct {
	Sent     Count `json:"sent"`
	Received Count `json:"received"`
	// LastSeen is when the last packet came from the peer.
	LastSeen time.Time `json:"last_seen,omitzero"`
}

// Count is an amount of IP packets, each segment of a superpacket one, and their
// bytes.
type Count struct {
	Packets uint64 `json:"packets"`
	Bytes   uint64 `json:"bytes"`
}

// States of a peer's health.
const (
	// HealthUnknown: it wasn't asked yet, or can't be.
	HealthUnknown = "unknown"
	// HealthAnswers: it answers.
	HealthAnswers = "answers"
	// HealthSilent: the last three requests had no answer.
	HealthSilent = "silent"
)

// NoAnswer is the problem of a peer from which nothing came.
const NoAnswer = "no answer"

// What becomes of packets as long as the path allows.
const (
	FullSizePasses = "passes"
	// FullSizeLost: they get lost, while short ones pass.
	FullSizeLost = "lost"
)

// Health is what has become of the daemon's echo requests to a peer's VTEP or, with
// host-gw, to its host.
type Health struct {
	// State is HealthUnknown, HealthAnswers or HealthSilent, and Since is since when.
	State string    `json:"state"`
	Since time.Time `json:"since"`
	// Problem is what came instead of the last answer, in words; empty while there
	// are answers.
	Problem string `json:"problem,omitempty"`
	// RTTSeconds is the last round-trip time; 0 unless the peer answers.
	RTTSeconds float64 `json:"rtt_seconds,omitempty"`
	Loss       Loss    `json:"loss"`
	// Sent and Answered count short requests since the peer is known, or since the
	// daemon was started or reloaded.
	Sent     uint64 `json:"sent"`
	Answered uint64 `json:"answered"`
	// LastAnswer is when the last answer came, zero if none has.
	LastAnswer time.Time `json:"last_answer,omitzero"`
	// FullSize is FullSizePasses or FullSizeLost, for packets of FullSizeBytes to the
	// peer and back; empty if they weren't tried yet.
	FullSize      string `json:"full_size,omitempty"`
	FullSizeBytes int    `json:"full_size_bytes,omitempty"`
}

// Loss is how many of the last requests had no answer.
type Loss struct {
	Missed int `json:"missed"`
	Of     int `json:"of"`
}

package tunnel

import (
	"fmt"
	"net/netip"
	"strings"

	"uvxlan/encap"
	"uvxlan/lease"
)

// Peer is another VTEP and the subnet behind it.
type Peer struct {
	// Subnet is the container subnet the peer owns.
	Subnet netip.Prefix
	// Underlay is the address its datagrams come from and go to.
	Underlay netip.Addr
	// MAC is its VTEP's address, the inner destination of every frame to it.
	MAC encap.MAC
}

// PeerError says why a lease or a peer is left out of those that packets are sent to.
type PeerError struct {
	// Subnet and Underlay are the peer's, each invalid if it has none.
	Subnet   netip.Prefix
	Underlay netip.Addr
	// Err is the reason.
	Err error
}

func leftOut(subnet netip.Prefix, underlay netip.Addr, format string, args ...any) error {
	return &PeerError{subnet, underlay, fmt.Errorf(format, args...)}
}

// Error names the peer and the reason.
func (e *PeerError) Error() string {
	return fmt.Sprintf("peer %s at %s: %v", e.Subnet, e.Underlay, e.Err)
}

// Unwrap returns the reason.
func (e *PeerError) Unwrap() error { return e.Err }

// backendVXLAN is the lease type that this data path speaks.
const backendVXLAN = "vxlan"

// PeerFromLease reads the IPv4 peer out of a lease of flannel's vxlan backend.
func PeerFromLease(l lease.Lease) (Peer, error) { return vxlanPeer(side{l, ipv4}) }

// PeerV6FromLease reads the IPv6 peer out of such a lease: its IPv6 subnet, which
// it may have none of, behind its IPv6 address.
func PeerV6FromLease(l lease.Lease) (Peer, error) { return vxlanPeer(side{l, ipv6}) }

func vxlanPeer(s side) (Peer, error) {
	if !strings.EqualFold(s.Attrs.BackendType, backendVXLAN) {
		return Peer{}, leftOut(s.subnet(), s.host(), "its backend is %q, not %q", s.Attrs.BackendType, backendVXLAN)
	}
	data, err := s.vxlan()
	if err != nil {
		return Peer{}, leftOut(s.subnet(), s.host(), "%w", err)
	}
	mac, err := encap.ParseMAC(data.VtepMAC)
	if err != nil {
		return Peer{}, leftOut(s.subnet(), s.host(), "VtepMAC: %w", err)
	}
	return Peer{Subnet: s.subnet(), Underlay: s.host(), MAC: mac}, nil
}

// check refuses a peer that could not be reached by the underlay or whose outer
// packets would come back into the device.
func (p Peer) check(networks []netip.Prefix, reach [families]bool) error {
	switch {
	case !p.Subnet.IsValid():
		return leftOut(p.Subnet, p.Underlay, "no subnet")
	case !p.Underlay.IsValid() || p.Underlay.IsUnspecified() || p.Underlay.IsMulticast():
		return leftOut(p.Subnet, p.Underlay, "that is no host's address")
	case !reach[familyOf(p.Underlay)]:
		return leftOut(p.Subnet, p.Underlay, "the underlay has no address of that family")
	case p.MAC == encap.MAC{} || p.MAC.IsGroup():
		return leftOut(p.Subnet, p.Underlay, "%s is no VTEP's MAC", p.MAC)
	}
	for _, n := range networks {
		if n.Contains(p.Underlay) {
			return leftOut(p.Subnet, p.Underlay, "its address lies inside the overlay network %s, packets to it would loop", n)
		}
	}
	return nil
}

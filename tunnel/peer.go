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

// backendVXLAN is the lease type that this data path speaks.
const backendVXLAN = "vxlan"

// PeerFromLease reads the IPv4 peer out of a lease of flannel's vxlan backend.
func PeerFromLease(l lease.Lease) (Peer, error) { return vxlanPeer(side{l, ipv4}) }

// PeerV6FromLease reads the IPv6 peer out of such a lease: its IPv6 subnet, which
// it may have none of, behind its IPv6 address.
func PeerV6FromLease(l lease.Lease) (Peer, error) { return vxlanPeer(side{l, ipv6}) }

func vxlanPeer(s side) (Peer, error) {
	if !strings.EqualFold(s.Attrs.BackendType, backendVXLAN) {
		return Peer{}, fmt.Errorf("peer %s at %s: its backend is %q, not %q",
			s.subnet(), s.host(), s.Attrs.BackendType, backendVXLAN)
	}
	data, err := s.vxlan()
	if err != nil {
		return Peer{}, fmt.Errorf("peer %s at %s: %w", s.subnet(), s.host(), err)
	}
	mac, err := encap.ParseMAC(data.VtepMAC)
	if err != nil {
		return Peer{}, fmt.Errorf("peer %s at %s: VtepMAC: %w", s.subnet(), s.host(), err)
	}
	return Peer{Subnet: s.subnet(), Underlay: s.host(), MAC: mac}, nil
}

// check refuses a peer that could not be reached by the underlay or whose outer
// packets would come back into the device.
func (p Peer) check(networks []netip.Prefix, reach [families]bool) error {
	switch {
	case !p.Subnet.IsValid():
		return fmt.Errorf("peer at %s: no subnet", p.Underlay)
	case !p.Underlay.IsValid() || p.Underlay.IsUnspecified() || p.Underlay.IsMulticast():
		return fmt.Errorf("peer %s: %s is no host's address", p.Subnet, p.Underlay)
	case !reach[familyOf(p.Underlay)]:
		return fmt.Errorf("peer %s: %s is of a family that the underlay has no address of", p.Subnet, p.Underlay)
	case p.MAC == encap.MAC{} || p.MAC.IsGroup():
		return fmt.Errorf("peer %s at %s: %s is no VTEP's MAC", p.Subnet, p.Underlay, p.MAC)
	}
	for _, n := range networks {
		if n.Contains(p.Underlay) {
			return fmt.Errorf("peer %s: its address %s lies inside the overlay network %s, packets to it would loop",
				p.Subnet, p.Underlay, n)
		}
	}
	return nil
}

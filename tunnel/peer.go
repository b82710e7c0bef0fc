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
func PeerFromLease(l lease.Lease) (Peer, error) {
	if !strings.EqualFold(l.Attrs.BackendType, backendVXLAN) {
		return Peer{}, fmt.Errorf("peer %s at %s: its backend is %q, not %q",
			l.Subnet, l.Attrs.PublicIP, l.Attrs.BackendType, backendVXLAN)
	}
	data, err := l.Attrs.VXLAN()
	if err != nil {
		return Peer{}, fmt.Errorf("peer %s at %s: %w", l.Subnet, l.Attrs.PublicIP, err)
	}
	mac, err := encap.ParseMAC(data.VtepMAC)
	if err != nil {
		return Peer{}, fmt.Errorf("peer %s at %s: VtepMAC: %w", l.Subnet, l.Attrs.PublicIP, err)
	}
	return Peer{Subnet: l.Subnet, Underlay: l.Attrs.PublicIP, MAC: mac}, nil
}

// check refuses a peer that could not be reached or whose outer packets would
// come back into the device.
func (p Peer) check(networks []netip.Prefix) error {
	switch {
	case !p.Subnet.IsValid():
		return fmt.Errorf("peer at %s: no subnet", p.Underlay)
	case !p.Underlay.IsValid() || p.Underlay.IsUnspecified() || p.Underlay.IsMulticast():
		return fmt.Errorf("peer %s: %s is no host's address", p.Subnet, p.Underlay)
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

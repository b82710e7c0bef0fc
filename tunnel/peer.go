package tunnel

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"uvxlan/encap"
	"uvxlan/lease"
	"uvxlan/tunnel/internal/family"
	"uvxlan/tunnel/internal/leasepeer"
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
	return vxlanPeer(leasepeer.Side{Lease: l, Family: family.IPv4})
}

// PeerV6FromLease reads the IPv6 peer out of such a lease: its IPv6 subnet, which
// it may have none of, behind its IPv6 address.
func PeerV6FromLease(l lease.Lease) (Peer, error) {
	return vxlanPeer(leasepeer.Side{Lease: l, Family: family.IPv6})
}

func vxlanPeer(s leasepeer.Side) (Peer, error) {
	if s.Unclaimed() {
		return Peer{}, s.Refused("%w", lease.ErrUnclaimed)
	}
	if !strings.EqualFold(s.Attrs.BackendType, backendVXLAN) {
		return Peer{}, s.Refused("its backend is %q, not %q", s.Attrs.BackendType, backendVXLAN)
	}
	data, err := s.VXLAN()
	if err != nil {
		return Peer{}, s.Refused("%w", err)
	}
	mac, err := encap.ParseMAC(data.VtepMAC)
	if err != nil {
		return Peer{}, s.Refused("VtepMAC: %w", err)
	}
	return Peer{Subnet: s.Subnet(), Underlay: s.Host(), MAC: mac}, nil
}

func (p Peer) refused(format string, args ...any) error {
	return &lease.PeerError{Subnet: p.Subnet, Underlay: p.Underlay, Err: fmt.Errorf(format, args...)}
}

// check refuses a peer that could not be reached by the underlay or whose outer
// packets would come back into the device.
func (p Peer) check(routes []netip.Prefix, locals []netip.AddrPort) error {
	is := func(like func(netip.Addr) bool) bool {
		return slices.ContainsFunc(locals, func(l netip.AddrPort) bool { return like(l.Addr()) })
	}
	switch {
	case !p.Subnet.IsValid():
		return p.refused("no subnet")
	case !p.Underlay.IsValid() || p.Underlay.IsUnspecified() || p.Underlay.IsMulticast():
		return p.refused("that is no host's address")
	case p.Underlay.IsLinkLocalUnicast() && p.Underlay.Is6():
		return p.refused("a link-local address doesn't say by which interface")
	case is(func(l netip.Addr) bool { return l == p.Underlay }):
		return p.refused("that is our own address, packets to it would loop")
	case !is(func(l netip.Addr) bool { return family.Of(l) == family.Of(p.Underlay) }):
		return p.refused("the underlay has no address of that family")
	case p.MAC == encap.MAC{} || p.MAC.IsGroup():
		return p.refused("%s is no VTEP's MAC", p.MAC)
	}
	for _, n := range routes {
		if n.Contains(p.Underlay) {
			return p.refused("its address lies inside the overlay network %s, packets to it would loop", n)
		}
	}
	return nil
}

package lease

import (
	"errors"
	"fmt"
	"net/netip"
)

// ErrUnclaimed says that a lease is reserved for a host that hasn't taken it yet. Packets
// are sent there once it has.
var ErrUnclaimed = errors.New("it is reserved, and its host hasn't taken it yet")

// PeerError says why a lease or a peer is left out of those that packets are sent to.
type PeerError struct {
	// Subnet and Underlay are the peer's, each invalid if it has none.
	Subnet   netip.Prefix
	Underlay netip.Addr
	// Err is the reason.
	Err error
}

// Error names the peer and the reason.
func (e *PeerError) Error() string {
	return fmt.Sprintf("peer %s at %s: %v", e.Subnet, e.Underlay, e.Err)
}

// Unwrap returns the reason.
func (e *PeerError) Unwrap() error { return e.Err }

// Package offload names the ways in which a device and the sockets move many
// packets in one step.
package offload

import (
	"fmt"
	"strings"
)

// Set is a set of ways to move many packets in one step. What the kernel
// refuses is left out, for good.
type Set uint8

// The ways, each with the oldest kernel that knows it.
const (
	// TSO: the device hands over TCP superpackets (2.6.27).
	TSO Set = 1 << iota
	// USO: the device hands over UDP superpackets (6.2).
	USO
	// GSO: one send carries many datagrams, UDP_SEGMENT (4.18).
	GSO
	// GRO: one receive takes many datagrams, UDP_GRO (5.0).
	GRO
	// TCP: received TCP segments are written to the device together (2.6.27).
	TCP
	// UDP: received UDP datagrams are written to the device together (6.2).
	UDP

	// All is every way there is.
	All = TSO | USO | GSO | GRO | TCP | UDP
)

var labels = []string{"tso", "uso", "gso", "gro", "tcp", "udp"}

// Has tells whether all of want are in the set.
func (o Set) Has(want Set) bool { return o&want == want }

// String is the names in the set, such as "tso,gso,gro", or "none".
func (o Set) String() string {
	var names []string
	for i, name := range labels {
		if o.Has(1 << i) {
			names = append(names, name)
		}
	}
	if len(names) == 0 {
		return "none"
	}
	return strings.Join(names, ",")
}

// Parse reads what String writes, and "all".
func Parse(s string) (o Set, err error) {
	switch s {
	case "", "none":
		return 0, nil
	case "all":
		return All, nil
	}
	for name := range strings.SplitSeq(s, ",") {
		bit, err := named(name)
		if err != nil {
			return 0, err
		}
		o |= bit
	}
	return o, nil
}

func named(name string) (Set, error) {
	for i, known := range labels {
		if strings.EqualFold(strings.TrimSpace(name), known) {
			return 1 << i, nil
		}
	}
	return 0, fmt.Errorf("offload %q: there are %s", name, All)
}

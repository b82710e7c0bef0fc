package tunnel

import (
	"fmt"
	"strings"
)

// Offloads is a set of ways to move many packets in one step. What the kernel
// refuses is left out, for good.
type Offloads uint8

// The ways, each with the oldest kernel that knows it.
const (
	// OffloadTSO: the device hands over TCP superpackets (2.6.27).
	OffloadTSO Offloads = 1 << iota
	// OffloadUSO: the device hands over UDP superpackets (6.2).
	OffloadUSO
	// OffloadGSO: one send carries many datagrams, UDP_SEGMENT (4.18).
	OffloadGSO
	// OffloadGRO: one receive takes many datagrams, UDP_GRO (5.0).
	OffloadGRO
	// OffloadTCP: received TCP segments are written to the device together (2.6.27).
	OffloadTCP
	// OffloadUDP: received UDP datagrams are written to the device together (6.2).
	OffloadUDP

	// AllOffloads is every way there is.
	AllOffloads = OffloadTSO | OffloadUSO | OffloadGSO | OffloadGRO | OffloadTCP | OffloadUDP
)

var offloadNames = []string{"tso", "uso", "gso", "gro", "tcp", "udp"}

// Has tells whether all of want are in the set.
func (o Offloads) Has(want Offloads) bool { return o&want == want }

// String is the names in the set, such as "tso,gso,gro", or "none".
func (o Offloads) String() string {
	var names []string
	for i, name := range offloadNames {
		if o.Has(1 << i) {
			names = append(names, name)
		}
	}
	if len(names) == 0 {
		return "none"
	}
	return strings.Join(names, ",")
}

// ParseOffloads reads what String writes, and "all".
func ParseOffloads(s string) (o Offloads, err error) {
	switch s {
	case "", "none":
		return 0, nil
	case "all":
		return AllOffloads, nil
	}
	for name := range strings.SplitSeq(s, ",") {
		bit, err := offloadNamed(name)
		if err != nil {
			return 0, err
		}
		o |= bit
	}
	return o, nil
}

func offloadNamed(name string) (Offloads, error) {
	for i, known := range offloadNames {
		if strings.EqualFold(strings.TrimSpace(name), known) {
			return 1 << i, nil
		}
	}
	return 0, fmt.Errorf("offload %q: there are %s", name, AllOffloads)
}

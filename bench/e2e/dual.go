package e2e

import (
	"net/netip"
	"testing"

	"uvxlan/bench/cluster"
	"uvxlan/bench/lab"
)

// NewDualWorld makes hosts that have both families.
func NewDualWorld(t *testing.T, config string, hosts ...string) *World {
	t.Helper()
	return NewWorldOf(t, lab.Options{Hosts: named(lab.DualHosts(), hosts), ContainerMTU: DualMTU}, config)
}

// AddressesOf are the container's, of both families.
func AddressesOf(h *lab.Host) []netip.Addr {
	return []netip.Addr{h.Container.Address, h.Container.AddressV6}
}

// DualMesh waits until the containers of the hosts reach each other by both
// families, with the longest packets.
func (w *World) DualMesh(names ...string) {
	w.T.Helper()
	for _, from := range names {
		for _, to := range names {
			if from == to {
				continue
			}
			for _, at := range AddressesOf(w.Host(to)) {
				if _, err := cluster.ReachAt(w.Context(), w.Container(from).Node, w.Container(to).Node, at, DualMTU); err != nil {
					w.T.Fatal(err)
				}
			}
		}
	}
}

// DualTransfer sends bytes both ways and by both families.
func (w *World) DualTransfer(t *testing.T, a, b string, size int64) {
	t.Helper()
	for _, ends := range [][2]string{{a, b}, {b, a}} {
		for _, at := range AddressesOf(w.Host(ends[1])) {
			if err := checkedTransferTo(w.Container(ends[0]).Node, w.Container(ends[1]).Node, at, size); err != nil {
				t.Fatal(err)
			}
		}
	}
}

package encap_test

import (
	"testing"

	"uvxlan/encap"
)

func TestDecapsulateECN(t *testing.T) {
	const (
		not  = encap.ECNNotECT
		ect0 = encap.ECNECT0
		ect1 = encap.ECNECT1
		ce   = encap.ECNCE
		drop = 0xff
	)
	// The rows and columns of RFC 6040 figure 4, in its order.
	outers := [4]uint8{not, ect0, ect1, ce}
	for _, row := range []struct {
		inner uint8
		want  [4]uint8
	}{
		{not, [4]uint8{not, not, not, drop}},
		{ect0, [4]uint8{ect0, ect0, ect1, ce}},
		{ect1, [4]uint8{ect1, ect1, ect1, ce}},
		{ce, [4]uint8{ce, ce, ce, ce}},
	} {
		for i, outer := range outers {
			for _, dscp := range []uint8{0, 0xb8, 0xfc} {
				ecn, dropped := encap.DecapsulateECN(outer|dscp, row.inner|dscp)
				if want := row.want[i]; dropped != (want == drop) || !dropped && ecn != want {
					t.Errorf("outer %02b, inner %02b: %02b, drop %v", outer, row.inner, ecn, dropped)
				}
			}
		}
	}
}

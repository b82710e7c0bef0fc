package encap

// ECN codepoints, the two low bits of the IPv4 TOS and the IPv6 traffic class
// (RFC 3168 section 5).
const (
	ECNNotECT uint8 = 0b00 // not ECN-capable
	ECNECT1   uint8 = 0b01
	ECNECT0   uint8 = 0b10
	ECNCE     uint8 = 0b11 // congestion experienced
)

const (
	ecnMask = 0b11
	ecnDrop = 0xff
)

// decapsulated is RFC 6040 figure 4, [inner][outer] in codepoint order.
var decapsulated = [4][4]uint8{
	ECNNotECT: {ECNNotECT: ECNNotECT, ECNECT1: ECNNotECT, ECNECT0: ECNNotECT, ECNCE: ecnDrop},
	ECNECT1:   {ECNNotECT: ECNECT1, ECNECT1: ECNECT1, ECNECT0: ECNECT1, ECNCE: ECNCE},
	ECNECT0:   {ECNNotECT: ECNECT0, ECNECT1: ECNECT1, ECNECT0: ECNECT0, ECNCE: ECNCE},
	ECNCE:     {ECNNotECT: ECNCE, ECNECT1: ECNCE, ECNECT0: ECNCE, ECNCE: ECNCE},
}

// DecapsulateECN returns the codepoint that the inner packet leaves the tunnel
// with (RFC 6040 section 4.2). Only the two low bits of outer and inner count,
// so a whole TOS or traffic class may be passed. drop is true for congestion
// on a packet whose sender would not understand the mark: loss is its signal.
func DecapsulateECN(outer, inner uint8) (ecn uint8, drop bool) {
	ecn = decapsulated[inner&ecnMask][outer&ecnMask]
	return ecn & ecnMask, ecn == ecnDrop
}

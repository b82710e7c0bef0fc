package encap_test

import (
	"encoding/binary"
	"fmt"
	"slices"

	"uvxlan/encap"
)

// The header of a frame is made once per peer and copied in front of each
// packet.
func ExampleMakeFrameHeader() {
	peer, err := encap.ParseMAC("0a:11:22:33:44:55")
	if err != nil {
		fmt.Println(err)
		return
	}
	own := encap.MAC{0x0a, 0x66, 0x77, 0x88, 0x99, 0xaa}
	header := encap.MakeFrameHeader(1, peer, own, encap.EtherTypeIPv4)
	datagram := slices.Concat(header[:], goldenUDP4)

	var frame encap.Frame
	if err := frame.Decode(datagram); err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(frame.VNI, frame.Dst, len(frame.Payload))
	// Output: 1 0a:11:22:33:44:55 31
}

// At the tunnel's end the outer congestion mark moves onto the inner packet.
func ExampleDecapsulateECN() {
	packet, err := encap.ParseIPv4(slices.Clone(goldenUDP4))
	if err != nil {
		fmt.Println(err)
		return
	}
	ecn, drop := encap.DecapsulateECN(encap.ECNCE, packet.ECN())
	if !drop && ecn != packet.ECN() {
		packet.SetECN(ecn)
	}
	fmt.Printf("%02b %v\n", packet.ECN(), packet.HeaderChecksumOK())
	// Output: 11 true
}

// A packet whose checksum was left to an offload gets it from Checksum.
func ExampleTransportChecksum() {
	packet := slices.Clone(goldenTCP4)
	binary.BigEndian.PutUint16(packet[36:], 0x8333)

	state, start, offset := encap.TransportChecksum(packet)
	fmt.Println(state)
	if state == encap.ChecksumPartial {
		// The field holds the pseudo-header's sum already.
		binary.BigEndian.PutUint16(packet[start+offset:], encap.Checksum(packet[start:], 0))
	}
	state, _, _ = encap.TransportChecksum(packet)
	fmt.Println(state)
	// Output:
	// partial
	// good
}

// The overlay's MTU follows from the underlay's.
func ExampleOuterMTU_Inner() {
	fmt.Println(encap.OuterMTU(1500).Inner(false), encap.OuterMTU(1500).Inner(true))
	// Output: 1450 1430
}

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

// A superpacket, as a TUN device hands it over, becomes the packets that it stands
// for; their payload isn't copied.
func ExampleSegmenter() {
	super := append(slices.Clone(goldenTCP4[:40]), make([]byte, 2500)...)
	encap.IPv4(super).SetTotalLen(len(super))

	var segmenter encap.Segmenter
	err := segmenter.Start(super, encap.Offload{NeedsChecksum: true, GSO: encap.GSOTCPv4, SegmentSize: 1000})
	if err != nil {
		fmt.Println(err)
		return
	}
	var header [encap.MaxHeaderLen]byte
	for {
		n, payload := segmenter.Next(header[:])
		if n == 0 {
			break
		}
		packet := slices.Concat(header[:n], payload)
		state, _, _ := encap.TransportChecksum(packet)
		fmt.Println(len(packet), binary.BigEndian.Uint32(packet[24:]), state)
	}
	// Output:
	// 1040 16909060 good
	// 1040 16910060 good
	// 540 16911060 good
}

// The packets of a flow that came in one batch are passed on as one.
func ExampleCoalescer() {
	coalescer := encap.NewCoalescer(1450)
	for i := range uint32(3) { // continuing each other by 5 bytes
		packet := encap.IPv4(slices.Clone(goldenTCP4))
		binary.BigEndian.PutUint32(packet[24:], 100+5*i)
		packet[33] = 0x10 // ACK alone
		packet[36], packet[37] = 0, 0
		packet.SetID(uint16(i))
		packet.UpdateChecksum()
		sum := encap.Checksum(packet.Payload(), packet.PseudoHeaderSum(encap.ProtoTCP, 25))
		binary.BigEndian.PutUint16(packet[36:], sum)
		if coalescer.Add(packet) == 0 {
			fmt.Println("the batch is full")
		}
	}
	for i := range coalescer.Len() {
		c := coalescer.Packet(i)
		fmt.Println(c.Packets, c.Len, c.Offload.GSO == encap.GSOTCPv4)
	}
	coalescer.Reset()
	// Output: 3 55 true
}

package encap_test

import (
	"testing"

	"uvxlan/encap"
)

func TestNoAllocation(t *testing.T) {
	var f encap.Frame
	dst := make([]byte, encap.MaxICMPLen)
	v4, v6 := mustIPv4(t, edit(goldenUDP4, nil)), mustIPv6(t, edit(goldenUDP6, nil))
	for name, call := range map[string]func(){
		"Frame.Decode":          func() { _ = f.Decode(goldenFrame) },
		"MakeFrameHeader":       func() { _ = encap.MakeFrameHeader(1, ourMAC, peerMAC, encap.EtherTypeIPv4) },
		"ParseIPv4":             func() { _, _ = encap.ParseIPv4(goldenUDP4) },
		"ParseIPv6":             func() { _, _ = encap.ParseIPv6(goldenUDP6) },
		"IPv4 addresses":        func() { _, _ = v4.Src(), v4.Dst() },
		"IPv6 addresses":        func() { _, _ = v6.Src(), v6.Dst() },
		"SetECN":                func() { v4.SetECN(encap.ECNCE); v6.SetECN(encap.ECNCE) },
		"Transport":             func() { _, _, _, _ = v6.Transport() },
		"Checksum":              func() { _ = encap.Checksum(goldenUDP6, 0) },
		"PseudoHeaderSum":       func() { _ = encap.PseudoHeaderSum(from4, ours4, 6, 20) },
		"PseudoHeaderSum, v6":   func() { _ = encap.PseudoHeaderSum(from6, ours6, 6, 20) },
		"TransportChecksum":     func() { _, _, _ = encap.TransportChecksum(goldenTCP4) },
		"TransportChecksum, v6": func() { _, _, _ = encap.TransportChecksum(goldenUDP6) },
		"FlowHash":              func() { _ = encap.FlowHash(goldenTCP4) },
		"FlowHash, v6":          func() { _ = encap.FlowHash(goldenUDP6) },
		"DecapsulateECN":        func() { _, _ = encap.DecapsulateECN(3, 1) },
		"ARPReply":              func() { encap.ARPReply(dst, goldenARPRequest, ours4, ourMAC) },
		"NeighborAdvertisement": func() { encap.NeighborAdvertisement(dst, goldenNS, ours6, ourMAC) },
		"ICMPUnreachable":       func() { encap.ICMPUnreachable(dst, goldenUDP4, from4, 1) },
		"ICMPv6Unreachable":     func() { encap.ICMPv6Unreachable(dst, goldenUDP6, from6, 3) },
	} {
		if n := testing.AllocsPerRun(100, call); n != 0 {
			t.Errorf("%s allocates %v times", name, n)
		}
	}
}

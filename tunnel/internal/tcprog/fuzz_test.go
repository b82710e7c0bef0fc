package tcprog

import (
	"slices"
	"testing"

	"uvxlan/encap"
)

// goldenPackets are inner packets whose checksums were computed apart from this code:
// UDP and TCP over IPv4, UDP over IPv6.
var goldenPackets = [][]byte{
	{
		0x45, 0x02, 0x00, 0x1f, 0x12, 0x34, 0x40, 0x00, 0x40, 0x11, 0xa5, 0x84, 172, 7, 21, 2, 172, 7, 22, 3,
		0x9c, 0x40, 0x00, 0x35, 0x00, 0x0b, 0x56, 0xe5, 'h', 'i', '!',
	},
	{
		0x45, 0x00, 0x00, 0x2d, 0x12, 0x34, 0x40, 0x00, 0x40, 0x06, 0xa5, 0x83, 172, 7, 21, 2, 172, 7, 22, 3,
		0x9c, 0x40, 0x14, 0x51, 0x01, 0x02, 0x03, 0x04, 0x05, 0x06, 0x07, 0x08, 0x50, 0x18, 0x02, 0x00,
		0x70, 0x4b, 0x00, 0x00, 'd', 'a', 't', 'a', '!',
	},
	{
		0x6b, 0xa1, 0x23, 0x45, 0x00, 0x0b, 0x11, 0x40, 0xfd, 0, 0, 0x07, 0, 0x21, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2,
		0xfd, 0, 0, 0x07, 0, 0x22, 0, 0, 0, 0, 0, 0, 0, 0, 0, 3,
		0x9c, 0x40, 0x00, 0x35, 0x00, 0x0b, 0xdf, 0xa1, 'h', 'i', '!',
	},
}

// FuzzIngressVerdicts runs frames through the ingress program; with mend the outer
// lengths and checksums are right.
func FuzzIngressVerdicts(f *testing.F) {
	in := newInbound(f)
	golden := goldenPeers(testPeers[0].MAC)
	must(f, in.Put(golden))
	in.peers = append(slices.Clone(in.peers), golden...)
	for _, p := range goldenPackets {
		h := encap.MakeFrameHeader(testVNI, testMAC, testPeers[0].MAC, etherTypeOf(p))
		f.Add(datagram(golden[0].Underlay, encap.MAC{}, innerTOS(p)&3, h, p), true)
	}
	g := newGenerator(6)
	for i := range 50 {
		frame, _ := g.frame()
		f.Add(frame, i%2 == 0)
	}
	f.Fuzz(func(t *testing.T, frame []byte, mend bool) {
		if !runs(frame) || len(frame) > 1600 {
			return
		}
		in.tb = t
		frame = slices.Clone(frame)
		if mend && len(frame) >= udpAt(frame)+8 && (frame[14] == 0x45 || frame[14]>>4 == 6 && udpAt(frame) > 34) {
			sum := frame[udpAt(frame)+6:]
			finish(frame, sum[0]|sum[1] != 0)
		}
		in.check(frame)
	})
}

// goldenPeers have both ends of the golden packets.
func goldenPeers(mac encap.MAC) (peers []Peer) {
	for _, subnet := range []string{"172.7.21.0/24", "172.7.22.0/24", "fd00:7:21::/48", "fd00:7:22::/48"} {
		peers = append(peers, Peer{Subnet: prefix(subnet), Underlay: testPeers[0].Underlay, MAC: mac, MaxPacket: testMTU})
	}
	return peers
}

// FuzzEgressVerdicts passes packets through the egress program of a real device.
func FuzzEgressVerdicts(f *testing.F) {
	r := newRig(f)
	golden := goldenPeers(testPeers[0].MAC)
	must(f, r.Put(golden))
	r.peers = append(r.peers, golden...)
	for _, p := range goldenPackets {
		f.Add(p)
	}
	g := newGenerator(7)
	for range 50 {
		v6 := g.one(3)
		f.Add(g.packet(g.ours(v6), g.address(v6)).packet)
	}
	f.Fuzz(func(t *testing.T, packet []byte) {
		if len(packet) == 0 || len(packet) > 1600 {
			return
		}
		r.tb = t
		r.check(packet, etherTypeOf(packet))
	})
}

// The golden packets pass both ways as they are.
func TestGoldenIngress(t *testing.T) {
	in := newInbound(t)
	in.peers = goldenPeers(testPeers[0].MAC)
	must(t, in.Put(in.peers))
	for _, p := range goldenPackets {
		h := encap.MakeFrameHeader(testVNI, testMAC, testPeers[0].MAC, etherTypeOf(p))
		if !in.check(datagram(in.peers[0].Underlay, encap.MAC{}, innerTOS(p)&3, h, p)) {
			t.Errorf("left alone (%s): % x", in.reasons(), p)
		}
	}
}

func TestIntegrationGoldenEgress(t *testing.T) {
	r := newRig(t)
	r.peers = goldenPeers(testPeers[0].MAC)
	must(t, r.Put(r.peers))
	for _, p := range goldenPackets {
		if !r.check(p, etherTypeOf(p)) {
			t.Errorf("left alone (%s): % x", r.reasons(), p)
		}
	}
}

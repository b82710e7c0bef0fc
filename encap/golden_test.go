package encap_test

import (
	"net/netip"
	"slices"

	"uvxlan/encap"
)

// Golden packets. Their checksums were computed apart from this package.

var (
	ourMAC  = encap.MAC{0x0a, 0x66, 0x77, 0x88, 0x99, 0xaa}
	peerMAC = encap.MAC{0x0a, 0x11, 0x22, 0x33, 0x44, 0x55}

	goldenUDP4 = []byte{
		0x45,       // version 4, IHL 5
		0x02,       // DSCP 0, ECN 0b10
		0x00, 0x1f, // total length 31
		0x12, 0x34, // ID
		0x40, 0x00, // DF, offset 0
		0x40,       // TTL 64
		0x11,       // UDP
		0xa5, 0x84, // header checksum
		172, 7, 21, 2, // source
		172, 7, 22, 3, // destination
		0x9c, 0x40, // source port 40000
		0x00, 0x35, // destination port 53
		0x00, 0x0b, // length 11
		0x56, 0xe5, // checksum
		'h', 'i', '!',
	}
	goldenTCP4 = []byte{
		0x45, 0x00, 0x00, 0x2d, // version, IHL, TOS, total length 45
		0x12, 0x34, 0x40, 0x00, // ID, DF
		0x40, 0x06, 0xa5, 0x83, // TTL, TCP, header checksum
		172, 7, 21, 2,
		172, 7, 22, 3,
		0x9c, 0x40, 0x14, 0x51, // ports 40000, 5201
		0x01, 0x02, 0x03, 0x04, // sequence
		0x05, 0x06, 0x07, 0x08, // acknowledgement
		0x50, 0x18, 0x02, 0x00, // data offset 5, PSH|ACK, window 512
		0x70, 0x4b, 0x00, 0x00, // checksum, urgent pointer
		'd', 'a', 't', 'a', '!',
	}
	goldenUDP6 = []byte{
		0x6b, 0xa1, 0x23, 0x45, // version 6, traffic class 0xba, flow label 0x12345
		0x00, 0x0b, // payload length 11
		0x11,                                                    // UDP
		0x40,                                                    // hop limit 64
		0xfd, 0, 0, 0x07, 0, 0x21, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2, // fd00:7:21::2
		0xfd, 0, 0, 0x07, 0, 0x22, 0, 0, 0, 0, 0, 0, 0, 0, 0, 3, // fd00:7:22::3
		0x9c, 0x40, 0x00, 0x35, // ports 40000, 53
		0x00, 0x0b, 0xdf, 0xa1, // length 11, checksum
		'h', 'i', '!',
	}

	goldenFrame = slices.Concat([]byte{
		0x08, 0, 0, 0, // flags: I
		0x00, 0x00, 0x01, 0x00, // VNI 1, reserved
		0x0a, 0x66, 0x77, 0x88, 0x99, 0xaa, // inner destination
		0x0a, 0x11, 0x22, 0x33, 0x44, 0x55, // inner source
		0x08, 0x00, // IPv4
	}, goldenUDP4)

	goldenARPRequest = []byte{
		0x00, 0x01, // Ethernet
		0x08, 0x00, // IPv4
		6, 4, // address lengths
		0x00, 0x01, // request
		0x0a, 0x11, 0x22, 0x33, 0x44, 0x55, // sender
		172, 7, 21, 2,
		0, 0, 0, 0, 0, 0, // target, asked for
		172, 7, 22, 1,
	}
	goldenARPReply = []byte{
		0x00, 0x01, 0x08, 0x00, 6, 4, // Ethernet, IPv4, address lengths
		0x00, 0x02, // reply
		0x0a, 0x66, 0x77, 0x88, 0x99, 0xaa, // sender, the answer
		172, 7, 22, 1,
		0x0a, 0x11, 0x22, 0x33, 0x44, 0x55, // target, who asked
		172, 7, 21, 2,
	}

	// goldenNS asks for fd00:7:22::1 on behalf of fd00:7:21::1.
	goldenNS = []byte{
		0x60, 0, 0, 0,
		0x00, 0x20, 0x3a, 0xff, // payload length 32, ICMPv6, hop limit 255
		0xfd, 0, 0, 0x07, 0, 0x21, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1,
		0xff, 0x02, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff, 0, 0, 1, // ff02::1:ff00:1
		135, 0, 0x0e, 0xb0, // type, code, checksum
		0, 0, 0, 0, // reserved
		0xfd, 0, 0, 0x07, 0, 0x22, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, // target
		1, 1, 0x0a, 0x11, 0x22, 0x33, 0x44, 0x55, // source link-layer address
	}
	goldenNA = []byte{
		0x60, 0, 0, 0,
		0x00, 0x20, 0x3a, 0xff,
		0xfd, 0, 0, 0x07, 0, 0x22, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1,
		0xfd, 0, 0, 0x07, 0, 0x21, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1,
		136, 0, 0x02, 0x8b,
		0x60, 0, 0, 0, // Solicited, Override
		0xfd, 0, 0, 0x07, 0, 0x22, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1,
		2, 1, 0x0a, 0x66, 0x77, 0x88, 0x99, 0xaa, // target link-layer address
	}

	// goldenProbe is the same question by a host that has no address yet.
	goldenProbe = []byte{
		0x60, 0, 0, 0,
		0x00, 0x18, 0x3a, 0xff,
		0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
		0xff, 0x02, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff, 0, 0, 1,
		135, 0, 0x7d, 0x7c,
		0, 0, 0, 0,
		0xfd, 0, 0, 0x07, 0, 0x22, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1,
	}
	goldenProbeNA = []byte{
		0x60, 0, 0, 0,
		0x00, 0x20, 0x3a, 0xff,
		0xfd, 0, 0, 0x07, 0, 0x22, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1,
		0xff, 0x02, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, // all nodes
		136, 0, 0x40, 0xb1,
		0x20, 0, 0, 0, // Override
		0xfd, 0, 0, 0x07, 0, 0x22, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1,
		2, 1, 0x0a, 0x66, 0x77, 0x88, 0x99, 0xaa,
	}

	// goldenICMP is the host-unreachable answer of 172.7.21.0 to goldenUDP4.
	goldenICMP = slices.Concat([]byte{
		0x45, 0xc0, 0x00, 0x3b, // precedence 6, total length 59
		0x00, 0x00, 0x40, 0x00, // ID 0, DF
		0x40, 0x01, 0xb7, 0xf1, // TTL 64, ICMP, header checksum
		172, 7, 21, 0,
		172, 7, 21, 2,
		3, 1, 0x80, 0x2f, // type, code, checksum
		0, 0, 0, 0, // unused
	}, goldenUDP4)
	// goldenTooLong is the answer of 172.7.21.0 to goldenUDP4 for an MTU of 1350.
	goldenTooLong = slices.Concat(goldenICMP[:20], []byte{
		3, 4, 0x7a, 0xe6, // type, code, checksum
		0, 0, 0x05, 0x46, // unused, MTU of the next hop
	}, goldenUDP4)
	// goldenICMPv6 is the address-unreachable answer of fd00:7:21::1 to
	// goldenUDP6.
	goldenICMPv6 = slices.Concat([]byte{
		0x60, 0, 0, 0,
		0x00, 0x3b, 0x3a, 0x40, // payload length 59, ICMPv6, hop limit 64
		0xfd, 0, 0, 0x07, 0, 0x21, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1,
		0xfd, 0, 0, 0x07, 0, 0x21, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2,
		1, 3, 0x64, 0x1d,
		0, 0, 0, 0,
	}, goldenUDP6)
	// goldenTooBig is the answer of fd00:7:21::1 to goldenUDP6 for an MTU of 1350.
	goldenTooBig = slices.Concat(goldenICMPv6[:40], []byte{
		2, 0, 0x5d, 0xda, // type, code, checksum
		0, 0, 0x05, 0x46, // MTU
	}, goldenUDP6)
)

var (
	ours4 = netip.MustParseAddr("172.7.22.1")
	ours6 = netip.MustParseAddr("fd00:7:22::1")
	from4 = netip.MustParseAddr("172.7.21.0")
	from6 = netip.MustParseAddr("fd00:7:21::1")
)

// edit returns a copy of b with the bytes from each offset on replaced.
func edit(b []byte, edits map[int][]byte) []byte {
	b = slices.Clone(b)
	for offset, with := range edits {
		copy(b[offset:], with)
	}
	return b
}

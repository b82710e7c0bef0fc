package tcprog

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"uvxlan/encap"
	"uvxlan/tunnel/batch"
	"uvxlan/tunnel/device"
	"uvxlan/tunnel/offload"
)

// check passes a packet through the egress program and compares what comes out with
// what a worker would send, or with the packet itself.
func (r *rig) check(packet []byte, etherType uint16) (carried bool) {
	r.tb.Helper()
	c := r.pass(packet, etherType, encap.Offload{})
	if !c.carried {
		if !bytes.Equal(c.packet, packet) || c.offload != (encap.Offload{}) {
			r.tb.Fatalf("left alone, but changed:\n% x to %+v\n% x", packet, c.offload, c.packet)
		}
		return false
	}
	want := r.frameOf(packet)
	if want == nil {
		r.tb.Fatalf("carried what no peer is for: % x", packet)
	}
	got := r.withoutID(c.packet)
	if !transportHolds(packet) {
		// Then the outer checksum is wrong as well, and the peer drops what the
		// receiver would.
		field := udpAt(got) + 6
		if sumHolds(got, got[udpAt(got):]) {
			r.tb.Fatalf("the inner checksum is wrong, the outer isn't: % x", packet)
		}
		copy(got[field:field+2], want[field:])
	}
	if !bytes.Equal(got, want) {
		r.tb.Fatalf("% x\nbecame\n% x, a worker makes of it\n% x", packet, got, want)
	}
	return true
}

func TestIntegrationEgressVerdicts(t *testing.T) {
	r := newRig(t)
	g := newGenerator(3)
	const n = 40000
	carried, plains := 0, 0
	for range n {
		v6 := g.one(3)
		dst := g.address(v6)
		s := g.packet(g.ours(v6), dst)
		_, ok := peerOf(r.peers, dst)
		plain := s.plain && !s.learnt && ok
		etherType := etherTypeOf(s.packet)
		if g.one(5) {
			s.packet, plain = g.spoil(s.packet), false
		}
		if len(s.packet) == 0 {
			continue
		}
		got := r.check(s.packet, etherType)
		if got {
			carried++
		}
		if plain {
			plains++
			if !got {
				t.Fatalf("left a plain packet alone (%s): % x", r.reasons(), s.packet)
			}
		}
	}
	r.done()
	if carried < n/4 || plains < n/4 {
		t.Errorf("%d of %d packets carried, %d were plain", carried, n, plains)
	}
	l, err := r.Left()
	must(t, err)
	for _, reason := range []Reason{NotIP, Options, Fragment, Protocol, NoPeer, SYN, PathMTU, Checksum} {
		if l.Tx[reason] == 0 {
			t.Errorf("no packet was left because of %s", reason)
		}
	}
	totals, err := r.Totals()
	must(t, err)
	if totals.TxPackets != uint64(carried) || totals.TxDatagrams != uint64(carried) || l.Tx[Lost] != 0 {
		t.Errorf("%d packets carried, totals %+v, %d lost", carried, totals, l.Tx[Lost])
	}
}

// The frames of the workers' own sockets are the same, byte for byte but for the IP
// ID.
func TestIntegrationEgressAsWorkers(t *testing.T) {
	r := newRig(t)
	u := r.workersSockets()
	conn, err := u.Open(0, false)
	must(t, err)
	defer conn.Close()
	g := newGenerator(4)
	seen := map[uint16]bool{}
	for n := 0; n < 500; {
		v6 := g.one(3)
		dst := g.address(v6)
		s := g.packet(g.ours(v6), dst)
		peer, ok := peerOf(r.peers, dst)
		if !ok || !s.plain || s.learnt {
			continue
		}
		n++
		h := encap.MakeFrameHeader(testVNI, peer.MAC, testMAC, etherTypeOf(s.packet))
		to := batch.NewDestination(netip.AddrPortFrom(peer.Underlay, testPort))
		if !conn.Begin(to, nil, encap.FlowHash(s.packet), innerTOS(s.packet)&3, 1, len(s.packet)) {
			t.Fatal("no room")
		}
		conn.Append(h[:], s.packet)
		conn.Flush(0)
		var want []byte
		for want == nil {
			fds := []unix.PollFd{{Fd: int32(r.wire), Events: unix.POLLIN}}
			if n, _ := unix.Poll(fds, int(patience.Milliseconds())); n == 0 {
				t.Fatal("a worker's frame is gone")
			}
			if c, ok := r.receive(r.wire); ok {
				want = slices.Clone(c.packet)
				if c.offload.NeedsChecksum { // veth leaves it undone
					fill(want, c.offload)
				}
			}
		}
		c := r.pass(s.packet, etherTypeOf(s.packet), encap.Offload{})
		if !c.carried {
			t.Fatalf("left a plain packet alone (%s): % x", r.reasons(), s.packet)
		}
		if got, want := r.withoutID(c.packet), r.withoutID(want); !bytes.Equal(got, want) {
			t.Fatalf("% x\nbecame\n% x, a worker's frame is\n% x", s.packet, got, want)
		}
		seen[binary.BigEndian.Uint16(c.packet[udpAt(c.packet):])] = true
	}
	r.done()
	if all := len(r.settings.IPv4.SourcePorts) + len(r.settings.IPv6.SourcePorts); len(seen) != all {
		t.Errorf("%d source ports of %d", len(seen), all)
	}
}

// fill computes the checksum of a datagram that was left undone.
func fill(frame []byte, o encap.Offload) {
	udp := frame[udpAt(frame):]
	udp[6], udp[7] = 0, 0
	sum := encap.Checksum(udp, outerPseudo(frame, len(udp)))
	if sum == 0 {
		sum = 0xffff
	}
	binary.BigEndian.PutUint16(udp[o.ChecksumOffset:], sum)
}

// tcpPacket is one of TCP, complete, or a superpacket's if size isn't 0.
func tcpPacket(dst string, flags byte, payload, size int) (p []byte, o encap.Offload) {
	to := netip.MustParseAddr(dst)
	tcp := make([]byte, 20+payload)
	for i := range payload {
		tcp[20+i] = byte(i * 7)
	}
	binary.BigEndian.PutUint16(tcp, 40000)
	binary.BigEndian.PutUint16(tcp[2:], 5201)
	tcp[12], tcp[13] = 0x50, flags
	return transportPacket(to, encap.ProtoTCP, tcp, size)
}

func udpPacket(dst string, payload, size int) (p []byte, o encap.Offload) {
	udp := make([]byte, 8+payload)
	binary.BigEndian.PutUint16(udp, 40000)
	binary.BigEndian.PutUint16(udp[2:], 5201)
	binary.BigEndian.PutUint16(udp[4:], uint16(len(udp)))
	return transportPacket(netip.MustParseAddr(dst), encap.ProtoUDP, udp, size)
}

// transportPacket puts an IP header before a transport header. With a size, which may
// be -1 for a packet that isn't segmented, the checksum is left undone.
func transportPacket(to netip.Addr, proto byte, l4 []byte, size int) (p []byte, o encap.Offload) {
	var pseudo uint64
	if to.Is6() {
		p = make([]byte, encap.IPv6HeaderLen, encap.IPv6HeaderLen+len(l4))
		p[0], p[6], p[7] = 0x60, proto, 64
		src, dst := netip.MustParseAddr("fd00:0:0:1::9").As16(), to.As16()
		copy(p[8:], src[:])
		copy(p[24:], dst[:])
		binary.BigEndian.PutUint16(p[4:], uint16(len(l4)))
		pseudo = encap.IPv6(p).PseudoHeaderSum(proto, len(l4))
	} else {
		p = slices.Grow(ping("10.0.1.9", to.String(), 0)[:20:20], len(l4))
		p[9] = proto
		encap.IPv4(p).SetTotalLen(20 + len(l4))
		encap.IPv4(p).UpdateChecksum()
		pseudo = encap.IPv4(p).PseudoHeaderSum(proto, len(l4))
	}
	at := checksumAt(proto)
	if size != 0 {
		o = encap.Offload{NeedsChecksum: true, ChecksumStart: uint16(len(p)), ChecksumOffset: uint16(at)}
		binary.BigEndian.PutUint16(l4[at:], encap.Fold(pseudo))
	} else {
		binary.BigEndian.PutUint16(l4[at:], encap.Checksum(l4, pseudo))
	}
	if size > 0 {
		o.SegmentSize, o.HeaderLen, o.GSO = uint16(size), uint16(len(p)+20), encap.GSOTCPv4
		switch {
		case proto == encap.ProtoUDP:
			o.GSO, o.HeaderLen = encap.GSOUDP, uint16(len(p)+8)
		case to.Is6():
			o.GSO = encap.GSOTCPv6
		}
	}
	return append(p, l4...), o
}

// What is left has its reason, and is unchanged with what its sender left undone.
func TestIntegrationEgressLeaves(t *testing.T) {
	r := newRig(t)
	more := []Peer{
		{Subnet: netip.MustParsePrefix("10.0.21.0/24"), Underlay: netip.MustParseAddr("10.78.0.1"), MaxPacket: testMTU},
		{Subnet: netip.MustParsePrefix("10.0.22.0/24"), Underlay: netip.MustParseAddr("10.79.0.1"), MaxPacket: testMTU},
		{Subnet: netip.MustParsePrefix("10.0.23.0/24"), Underlay: netip.MustParseAddr("10.99.0.1"), MaxPacket: testMTU},
		{Subnet: netip.MustParsePrefix("10.0.24.0/24"), Underlay: netip.MustParseAddr("10.80.0.2"), MaxPacket: testMTU},
		{Subnet: netip.MustParsePrefix("10.0.25.0/24"), Underlay: netip.MustParseAddr("10.66.0.77"), MaxPacket: testMTU},
		{Subnet: netip.MustParsePrefix("10.0.26.0/24"), Underlay: netip.MustParseAddr("10.66.0.2"), MaxPacket: 700},
		{Subnet: netip.MustParsePrefix("10.0.27.0/24"), Underlay: netip.MustParseAddr("10.66.0.1"), MaxPacket: testMTU},
		{Subnet: prefix("10.0.31.0/24"), Underlay: addr("fd78::1"), MaxPacket: testMTU},
		{Subnet: prefix("10.0.32.0/24"), Underlay: addr("fd79::1"), MaxPacket: testMTU},
		{Subnet: prefix("10.0.33.0/24"), Underlay: addr("fd99::1"), MaxPacket: testMTU},
		{Subnet: prefix("10.0.34.0/24"), Underlay: addr("fd80::2"), MaxPacket: testMTU},
		{Subnet: prefix("10.0.35.0/24"), Underlay: addr("fd66::77"), MaxPacket: testMTU},
		{Subnet: prefix("10.0.36.0/24"), Underlay: addr("fd66::6"), MaxPacket: 700},
		{Subnet: prefix("10.0.37.0/24"), Underlay: addr("fd66::1"), MaxPacket: testMTU},
	}
	r.peers = append(r.peers, more...)
	must(t, r.Put(more))
	tcp := func(dst string, flags byte, payload, size int) func() ([]byte, encap.Offload) {
		return func() ([]byte, encap.Offload) { return tcpPacket(dst, flags, payload, size) }
	}
	udp := func(dst string, payload, size int) func() ([]byte, encap.Offload) {
		return func() ([]byte, encap.Offload) { return udpPacket(dst, payload, size) }
	}
	const ack, syn = 0x10, 0x02
	able := r.options
	for _, c := range []struct {
		name         string
		packet       func() ([]byte, encap.Offload)
		superpackets bool
		want         Reason // 0 if it is carried
	}{
		{"single", tcp("10.0.2.9", ack, 100, 0), false, 0},
		{"single, undone", tcp("10.0.2.9", ack, 100, -1), false, 0},
		{"single, undone, IPv6", tcp("fd00:0:0:2::9", ack, 100, -1), false, 0},
		{"SYN", tcp("10.0.2.9", syn, 0, 0), true, SYN},
		{"TCP superpacket that would be split", tcp("10.0.2.9", ack, 5000, 1400), false, Superpacket},
		{"TCP superpacket", tcp("10.0.2.9", ack, 5000, 1400), true, 0},
		{"TCP superpacket, IPv6", tcp("fd00:0:0:2::9", ack, 5000, 1390), true, 0},
		{"TCP superpacket by a gateway", tcp("10.0.3.9", ack, 64000, 1400), true, 0},
		{"TCP superpacket of too long segments", tcp("10.0.2.9", ack, 5000, 1411), true, TooLong},
		{"TCP superpacket, IPv6, of too long segments", tcp("fd00:0:0:2::9", ack, 5000, 1391), true, TooLong},
		{"TCP superpacket with no room for headers", tcp("10.0.2.9", ack, 65450, 1400), true, Superpacket},
		{"single, Linux 5.10", tcp("10.0.2.9", ack, 100, 0), false, 0},
		{"single, undone, Linux 5.10", tcp("10.0.2.9", ack, 100, -1), false, 0},
		{"TCP superpacket, Linux 5.10", tcp("10.0.2.9", ack, 5000, 1400), true, Superpacket},
		{"UDP superpacket", udp("10.0.2.9", 5000, 1400), true, UDPSuperpacket},
		{"too long for the peer", udp("10.0.26.9", 700-27, 0), false, TooLong},
		{"as long as the peer takes", udp("10.0.26.9", 700-28, 0), false, 0},
		{"too long for the route", udp("10.0.21.9", 950-27, 0), false, TooLong},
		{"as long as the route takes", udp("10.0.21.9", 950-28, 0), false, 0},
		{"superpacket of too long segments for the route", tcp("10.0.21.9", ack, 5000, 911), true, TooLong},
		{"superpacket of as long segments as the route takes", tcp("10.0.21.9", ack, 5000, 910), true, 0},
		{"unreachable", udp("10.0.22.9", 9, 0), false, NoRoute},
		{"no route", udp("10.0.23.9", 9, 0), false, NoRoute},
		{"another link", udp("10.0.24.9", 9, 0), false, NoNeighbour}, // Linux asks for it first
		{"no neighbour", udp("10.0.25.9", 9, 0), false, NoNeighbour},
		{"our own address", udp("10.0.27.9", 9, 0), false, NoRoute},
		{"nobody's", udp("10.0.99.9", 9, 0), false, NoPeer},
		{"over IPv6, single, undone", tcp("10.0.6.9", ack, 100, -1), true, 0},
		{"over IPv6, single, undone, IPv6", tcp("fd00:0:0:6::9", ack, 100, -1), true, 0},
		{"over IPv6, single, by a gateway, Linux 5.10", tcp("10.0.7.9", ack, 100, -1), true, 0},
		{"over IPv6, SYN", tcp("10.0.6.9", syn, 0, 0), true, SYN},
		{"over IPv6, TCP superpacket", tcp("10.0.6.9", ack, 5000, 1400), true, Superpacket},
		{"over IPv6, TCP superpacket, IPv6", tcp("fd00:0:0:6::9", ack, 5000, 1390), true, Superpacket},
		{"over IPv6, UDP superpacket", udp("10.0.6.9", 5000, 1400), true, UDPSuperpacket},
		{"over IPv6, too long for the peer", udp("10.0.36.9", 700-27, 0), false, TooLong},
		{"over IPv6, as long as the peer takes", udp("10.0.36.9", 700-28, 0), false, 0},
		{"over IPv6, too long for the route", udp("10.0.31.9", 1330-27, 0), false, TooLong},
		{"over IPv6, as long as the route takes", udp("10.0.31.9", 1330-28, 0), false, 0},
		{"over IPv6, unreachable", udp("10.0.32.9", 9, 0), false, NoRoute},
		{"over IPv6, no route", udp("10.0.33.9", 9, 0), false, NoRoute},
		{"over IPv6, another link", udp("10.0.34.9", 9, 0), false, NoNeighbour},
		{"over IPv6, no neighbour", udp("10.0.35.9", 9, 0), false, NoNeighbour},
		{"over IPv6, our own address", udp("10.0.37.9", 9, 0), false, NoRoute},
	} {
		r.settings.Superpackets = c.superpackets
		r.options = able
		if strings.HasSuffix(c.name, "Linux 5.10") {
			r.options = 0
		}
		r.configure()
		before, err := r.Left()
		must(t, err)
		packet, o := c.packet()
		got := r.pass(packet, etherTypeOf(packet), o)
		after, err := r.Left()
		must(t, err)
		if got.carried != (c.want == 0) || c.want != 0 && after.Tx[c.want] != before.Tx[c.want]+1 {
			t.Errorf("%s: carried is %v (%s), want %q", c.name, got.carried, r.reasons(), c.want)
			continue
		}
		if !got.carried {
			got.offload.HeaderLen = o.HeaderLen // as the kernel has it
			if !bytes.Equal(got.packet, packet) || got.offload != o {
				t.Errorf("%s: left alone, but changed: %+v to %+v\n% x\n% x", c.name, o, got.offload, packet, got.packet)
			}
			continue
		}
		r.compare(c.name, packet, o, got)
	}
	r.done()
	if l, err := r.Left(); err != nil || l.Tx[Lost] != 0 {
		t.Errorf("%d lost, %v", l.Tx[Lost], err)
	}
}

// compare judges what was carried of a packet of which something was left undone.
func (r *rig) compare(name string, packet []byte, o encap.Offload, got capture) {
	r.tb.Helper()
	whole := slices.Clone(packet)
	if o.NeedsChecksum && o.GSO == encap.GSONone && !encap.FillChecksum(whole, o) {
		r.tb.Fatal("can't fill in the checksum")
	}
	want := r.frameOf(whole)
	headers := len(want) - len(packet)
	copy(want[headers:], packet)
	if o.GSO != encap.GSONone {
		want[14+26], want[14+27] = 0, 0 // no outer checksum
	}
	o.HeaderLen, got.offload.HeaderLen = 0, 0
	if o.NeedsChecksum {
		o.ChecksumStart += uint16(headers)
	}
	frame := r.withoutID(got.packet)
	if got.offload.GSO&^encap.GSOECN != o.GSO { // newer kernels tell of the tunnel, too
		got.offload.GSO = o.GSO | got.offload.GSO&0x60
	}
	if !bytes.Equal(frame, want) || got.offload.SegmentSize != o.SegmentSize || got.offload.NeedsChecksum != o.NeedsChecksum ||
		got.offload.ChecksumStart != o.ChecksumStart {
		r.tb.Errorf("%s: became %+v\n% x, want %+v\n% x", name, got.offload, frame[:100], o, want[:100])
	}
}

// To an on-link peer packets go as they are, of TCP and UDP and superpackets whole.
func TestIntegrationEgressDirect(t *testing.T) {
	r := newRig(t)
	peer := Peer{
		Subnet: netip.MustParsePrefix("10.0.4.0/24"), Underlay: netip.MustParseAddr("10.66.0.4"), MaxPacket: testMTU,
		Direct: &Direct{Link: r.under, Source: r.mac, Target: r.farMAC},
	}
	must(t, r.Put([]Peer{peer}))
	const ack, syn = 0x10, 0x02
	packets, bytesSent := uint64(0), uint64(0)
	for _, c := range []struct {
		name     string
		tcp      bool
		flags    byte
		payload  int
		size     int
		segments uint64
		want     Reason
	}{
		{"single", true, ack, 100, 0, 1, 0},
		{"single, undone", false, 0, 100, -1, 1, 0},
		{"TCP superpacket", true, ack, 5000, 1400, 4, 0},
		{"UDP superpacket", false, 0, 5000, 1000, 5, 0},
		{"SYN", true, syn, 0, 0, 0, SYN},
		{"full", false, 0, testMTU - 28, 0, 1, 0},
		{"too long", false, 0, testMTU - 27, 0, 0, TooLong},
		{"UDP superpacket of too long datagrams", false, 0, 5000, testMTU - 27, 0, TooLong},
	} {
		packet, o := udpPacket("10.0.4.9", c.payload, c.size)
		if c.tcp {
			packet, o = tcpPacket("10.0.4.9", c.flags, c.payload, c.size)
		}
		got := r.pass(packet, encap.EtherTypeIPv4, o)
		want := packet
		if got.carried != (c.want == 0) {
			t.Errorf("%s: carried is %v (%s)", c.name, got.carried, r.reasons())
			continue
		}
		if got.carried {
			want = slices.Concat(r.farMAC[:], r.mac[:], []byte{8, 0}, packet)
			packets += c.segments
			bytesSent += uint64(len(packet))
			if o.NeedsChecksum {
				o.ChecksumStart += 14
			}
		}
		o.HeaderLen, got.offload.HeaderLen = 0, 0
		if !bytes.Equal(got.packet, want) || got.offload != o {
			t.Errorf("%s: became %+v\n% x, want %+v\n% x", c.name, got.offload, got.packet[:60], o, want[:60])
		}
	}
	r.done()
	if c, ok := r.Counters(peer.Subnet); !ok || c.TxPackets != packets || c.TxDirect != packets || c.TxBytes != bytesSent {
		t.Errorf("counters %+v, want %d packets and %d bytes", c, packets, bytesSent)
	}
}

// What ICMP has told the kernel of a path counts at once.
func TestIntegrationEgressPathMTU(t *testing.T) {
	r := newRig(t)
	r.workersSockets()
	long, _ := udpPacket("10.0.3.9", 1200, 0)
	short, _ := udpPacket("10.0.3.9", 900, 0)
	if !r.check(long, encap.EtherTypeIPv4) {
		t.Fatalf("left alone before there was a limit (%s)", r.reasons())
	}
	// A router on the way refuses that datagram.
	quoted := r.frameOf(long)[14 : 14+28]
	answer := ping("10.66.0.254", testLocal.String(), 0)[:28]
	answer = append(answer, quoted...)
	icmp := answer[20:]
	icmp[0], icmp[1], icmp[2], icmp[3] = 3, 4, 0, 0
	binary.BigEndian.PutUint32(icmp[4:], 1000)
	binary.BigEndian.PutUint16(icmp[2:], encap.Checksum(icmp, 0))
	encap.IPv4(answer).SetTotalLen(len(answer))
	encap.IPv4(answer).UpdateChecksum()
	far, err := r.far.LinkByName(ownLink)
	must(t, err)
	frame := slices.Concat(r.mac[:], r.farMAC[:], []byte{8, 0}, answer)
	r.inject(r.wire, far.Attrs().Index, frame, encap.EtherTypeIPv4, encap.Offload{})
	for deadline := time.Now().Add(patience); r.check(long, encap.EtherTypeIPv4); {
		if time.Now().After(deadline) {
			t.Fatal("what ICMP told doesn't count")
		}
	}
	if l, err := r.Left(); err != nil || l.Tx[TooLong] != 1 {
		t.Errorf("left: %s", r.reasons())
	}
	if !r.check(short, encap.EtherTypeIPv4) {
		t.Errorf("left a shorter packet alone (%s)", r.reasons())
	}
	r.done()
}

// receiver is the far end of a rig, with a device and an ingress program of its own.
type receiver struct {
	*Programs
	settings Settings
	other    int // its end of the other link
	device   int // packet socket
}

// newReceiver makes the far end the peer whose subnet is that of the other link.
func (r *rig) newReceiver() *receiver {
	r.tb.Helper()
	peer := Peer{
		Subnet: netip.MustParsePrefix("10.80.0.0/24"), Underlay: testPeers[0].Underlay, MAC: testPeers[0].MAC, MaxPacket: testMTU,
	}
	must(r.tb, r.Put([]Peer{peer}))
	must(r.tb, r.far.Do(func() error {
		d, err := device.Open(rigDevice, device.Config{Driver: device.DriverNative, Offloads: offload.All})
		if err == nil {
			r.tb.Cleanup(func() { d.Close() })
		}
		return err
	}))
	far := &receiver{Programs: load(r.tb), settings: settings()}
	far.settings.Device, _ = up(r.tb, r.far, rigDevice)
	must(r.tb, r.far.Do(func() error { return far.Deliver(far.settings.Device) }))
	far.settings.Underlay, _ = up(r.tb, r.far, ownLink)
	far.other, _ = up(r.tb, r.far, "other")
	far.settings.IPv4.Address, far.settings.MAC = peer.Underlay, peer.MAC
	must(r.tb, far.Put([]Peer{{Subnet: netip.MustParsePrefix("10.0.1.0/24"), Underlay: testLocal, MAC: testMAC, MaxPacket: testMTU}}))
	l, err := r.far.LinkByName("other")
	must(r.tb, err)
	a, err := netlink.ParseAddr("10.80.0.2/24")
	must(r.tb, err)
	must(r.tb, r.far.AddrAdd(l, a))
	must(r.tb, r.far.Do(func() error {
		l, err := link.AttachTCX(link.TCXOptions{
			Interface: far.settings.Underlay, Program: far.Ingress(), Attach: ebpf.AttachTCXIngress,
		})
		if err == nil {
			r.tb.Cleanup(func() { must(r.tb, l.Close()) })
		}
		return err
	}))
	far.device = socket(r.tb, r.far, far.settings.Device, unix.ETH_P_ALL)
	return far
}

// Superpackets that come unsplit go to the device whole. Without DECAP_L4_UDP they are
// for interfaces that tolerate them, and for the host itself.
func TestIntegrationIngressSuperpackets(t *testing.T) {
	r := newRig(t)
	far := r.newReceiver()
	r.settings.Superpackets = true
	r.configure()
	able := far.options
	for _, c := range []struct {
		name         string
		decap        bool // with DECAP_L4_UDP, if the kernel has it
		superpackets bool
		to           string
		tolerate     bool
		want         Reason
	}{
		{"tolerated", false, true, "10.80.0.9", true, 0},
		{"not tolerated", false, true, "10.80.0.9", false, Superpacket},
		{"for the host", false, true, "10.80.0.2", false, 0},
		{"where they would be split", false, false, "10.80.0.9", true, Superpacket},
		{"able kernel", true, true, "10.80.0.9", false, 0},
	} {
		if c.decap && able&optionDecapL4UDP == 0 {
			continue
		}
		far.options = able &^ optionDecapL4UDP
		if c.decap {
			far.options = able
		}
		far.settings.Superpackets = c.superpackets
		must(t, far.Configure(far.settings))
		var links []int
		if c.tolerate {
			links = []int{far.other}
		}
		must(t, far.Tolerate(links))
		packet, o := tcpPacket(c.to, 0x10, 5000, 1400)
		before, err := far.Left()
		must(t, err)
		carried, err := far.Totals()
		must(t, err)
		if !r.pass(packet, encap.EtherTypeIPv4, o).carried {
			t.Fatalf("%s: left by the sender (%s)", c.name, r.reasons())
		}
		if c.want != 0 {
			for deadline := time.Now().Add(patience); ; {
				l, err := far.Left()
				must(t, err)
				if l.Rx[c.want] == before.Rx[c.want]+1 {
					break
				}
				if time.Now().After(deadline) {
					t.Fatalf("%s: not left: %s", c.name, far.reasons())
				}
			}
			continue
		}
		got := r.awaitFrom(far)
		o.HeaderLen, got.offload.HeaderLen = 0, 0
		if !bytes.Equal(got.packet, packet) || got.offload.GSO&^0x60 != o.GSO || got.offload.SegmentSize != o.SegmentSize {
			t.Errorf("%s: became %+v\n% x, want %+v\n% x", c.name, got.offload, got.packet[:60], o, packet[:60])
		}
		after, err := far.Totals()
		must(t, err)
		if after.RxPackets != carried.RxPackets+1 || after.RxDatagrams != carried.RxDatagrams+4 {
			t.Errorf("%s: totals %+v after %+v", c.name, after, carried)
		}
	}
	if c, ok := far.Counters(netip.MustParsePrefix("10.0.1.0/24")); !ok || c.RxPackets%4 != 0 || c.RxPackets == 0 {
		t.Errorf("counters %+v, want so many segments", c)
	}
}

// awaitFrom is the next packet that the receiver's device was given.
func (r *rig) awaitFrom(far *receiver) capture {
	r.tb.Helper()
	for {
		fds := []unix.PollFd{{Fd: int32(far.device), Events: unix.POLLIN}}
		if n, _ := unix.Poll(fds, int(patience.Milliseconds())); n == 0 {
			r.tb.Fatalf("nothing came (%s)", far.reasons())
		}
		if c, ok := r.receive(far.device); ok {
			return c
		}
	}
}

// What one program sends, the other takes: it arrives at the device as it was sent.
func TestIntegrationBothWays(t *testing.T) {
	r := newRig(t)
	far := r.newReceiver()
	must(t, far.Configure(far.settings))
	g := newGenerator(5)
	passed := uint64(0)
	for passed < 2000 {
		dst := netip.AddrFrom4([4]byte{10, 80, 0, byte(10 + g.IntN(200))})
		s := g.packet(g.ours(false), dst)
		if !s.plain || s.learnt {
			continue
		}
		if !r.pass(s.packet, encap.EtherTypeIPv4, encap.Offload{}).carried {
			t.Fatalf("left by the sender (%s): % x", r.reasons(), s.packet)
		}
		got := r.awaitFrom(far)
		if !bytes.Equal(got.packet, s.packet) || got.offload != (encap.Offload{}) {
			t.Fatalf("% x\narrived as\n% x, %+v", s.packet, got.packet, got.offload)
		}
		passed++
	}
	sent, ok := r.Counters(netip.MustParsePrefix("10.80.0.0/24"))
	came, ok2 := far.Counters(netip.MustParsePrefix("10.0.1.0/24"))
	if !ok || !ok2 || sent.TxPackets != passed || came.RxPackets != passed || sent.TxBytes != came.RxBytes {
		t.Errorf("sent %+v, came %+v", sent, came)
	}
}

// Datagrams and frames have neither the mark nor the priority of the packets inside, as
// those of the workers.
func TestIntegrationEgressMarks(t *testing.T) {
	r := newRig(t)
	must(t, r.Put([]Peer{{
		Subnet: netip.MustParsePrefix("10.0.4.0/24"), Underlay: netip.MustParseAddr("10.66.0.4"), MaxPacket: testMTU,
		Direct: &Direct{Link: r.under, Source: r.mac, Target: r.farMAC},
	}}))
	marks, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Array, KeySize: 4, ValueSize: 4, MaxEntries: 1})
	must(t, err)
	defer marks.Close()
	const mark, priority = 8, 32 // in struct __sk_buff
	watch, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Type: ebpf.SchedCLS, License: "Dual BSD/GPL",
		Instructions: asm.Instructions{
			asm.LoadMem(asm.R6, asm.R1, mark, asm.Word),
			asm.LoadMem(asm.R7, asm.R1, priority, asm.Word),
			asm.Or.Reg(asm.R6, asm.R7),
			asm.StoreImm(asm.RFP, -4, 0, asm.Word),
			asm.StoreMem(asm.RFP, -8, asm.R6, asm.Word),
			asm.LoadMapPtr(asm.R1, marks.FD()),
			asm.Mov.Reg(asm.R2, asm.RFP), asm.Add.Imm(asm.R2, -4),
			asm.Mov.Reg(asm.R3, asm.RFP), asm.Add.Imm(asm.R3, -8),
			asm.Mov.Imm(asm.R4, 0),
			asm.FnMapUpdateElem.Call(),
			asm.Mov.Imm(asm.R0, -1),
			asm.Return(),
		},
	})
	must(t, err)
	defer watch.Close()
	must(t, r.host.Do(func() error {
		l, err := link.AttachTCX(link.TCXOptions{Interface: r.under, Program: watch, Attach: ebpf.AttachTCXEgress})
		if err == nil {
			t.Cleanup(func() { must(t, l.Close()) })
		}
		return err
	}))
	must(t, unix.SetsockoptInt(r.into, unix.SOL_SOCKET, unix.SO_MARK, 0x40))
	must(t, unix.SetsockoptInt(r.into, unix.SOL_SOCKET, unix.SO_PRIORITY, 6))
	for _, dst := range []string{"10.0.2.9", "10.0.4.9"} {
		must(t, marks.Put(uint32(0), uint32(0xffff)))
		packet, o := udpPacket(dst, 20, 0)
		if !r.pass(packet, encap.EtherTypeIPv4, o).carried {
			t.Fatalf("to %s: left alone (%s)", dst, r.reasons())
		}
		var got uint32
		must(t, marks.Lookup(uint32(0), &got))
		if got != 0 {
			t.Errorf("to %s: mark and priority are %#x", dst, got)
		}
	}
}

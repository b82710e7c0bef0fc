package tcprog

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"slices"
	"testing"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"uvxlan/encap"
)

// What the programs return.
const (
	left       = 0xffffffff // TC_ACT_UNSPEC
	redirected = 7          // TC_ACT_REDIRECT
)

// load loads the programs for a test, which is skipped where that isn't permitted.
func load(tb testing.TB) *Programs {
	tb.Helper()
	p, err := Load(0, nil)
	if errors.Is(err, unix.EPERM) && (os.Geteuid() != 0 || os.Getenv("CI") == "") {
		tb.Skipf("needs CAP_BPF and CAP_NET_ADMIN: %v", err)
	}
	must(tb, err)
	tb.Cleanup(func() { must(tb, p.Close()) })
	must(tb, p.Deliver(1))
	return p
}

func must(tb testing.TB, err error) {
	tb.Helper()
	if err != nil {
		tb.Fatal(err)
	}
}

// settings are those of most tests. Nothing is held back for its flow's sake.
func settings() Settings {
	return Settings{
		On: true, Device: 1, Underlay: 1, Port: testPort, VNI: testVNI, MAC: testMAC, MTU: testMTU,
		IPv4: Local{Address: testLocal}, IPv6: Local{Address: testLocal6},
	}
}

// inbound is the ingress program as the kernel runs it in a test: on the loopback
// interface, whose MAC is zero.
type inbound struct {
	*Programs
	tb    testing.TB
	peers []Peer
	out   []byte
}

func newInbound(tb testing.TB) *inbound {
	tb.Helper()
	p := load(tb)
	must(tb, p.Put(testPeers))
	must(tb, p.Configure(settings()))
	return &inbound{p, tb, testPeers, make([]byte, 1<<16)}
}

// run returns what the program makes of a frame.
func (in *inbound) run(frame []byte) (verdict uint32, out []byte) {
	in.tb.Helper()
	o := ebpf.RunOptions{Data: frame, DataOut: in.out}
	verdict, err := in.Ingress().Run(&o)
	if err != nil {
		in.tb.Fatalf("run on %d bytes, % x: %v", len(frame), frame, err)
	}
	return verdict, o.DataOut
}

// runs tells whether the kernel runs programs on a frame in a test: not on less than an IP
// header.
func runs(frame []byte) bool { return len(frame) >= 34 && len(frame) >= udpAt(frame) }

// wouldDeliver is the packet that a worker gives to the device for a frame, nil if
// the kernel or the worker wouldn't. holds is false if nothing but the outer
// checksum speaks against it.
func wouldDeliver(peers []Peer, frame []byte) (packet []byte, holds bool) {
	udp, from := datagramOf(frame)
	if len(udp) < 8 {
		return nil, false
	}
	n := int(binary.BigEndian.Uint16(udp[4:]))
	if n < 8 || n > len(udp) || binary.BigEndian.Uint16(udp[2:]) != testPort {
		return nil, false
	}
	udp = udp[:n]
	if from.Is6() && udp[6]|udp[7] == 0 {
		return nil, false // the workers' sockets don't take it
	}
	holds = udp[6]|udp[7] == 0 || sumHolds(frame, udp)
	var f encap.Frame
	if f.Decode(udp[8:]) != nil || !f.HasVNI || f.VNI != testVNI || f.Dst != testMAC {
		return nil, false
	}
	payload := slices.Clone(f.Payload)
	var src netip.Addr
	var ecn uint8
	var set func(uint8)
	switch f.EtherType {
	case encap.EtherTypeIPv4:
		p, err := encap.ParseIPv4(payload)
		if err != nil {
			return nil, false
		}
		packet, src, ecn, set = p, p.Src(), p.ECN(), p.SetECN
	case encap.EtherTypeIPv6:
		p, err := encap.ParseIPv6(payload)
		if err != nil {
			return nil, false
		}
		packet, src, ecn, set = p, p.Src(), p.ECN(), p.SetECN
	default:
		return nil, false
	}
	owner, ok := peerOf(peers, src)
	if src != from && (!ok || owner.Underlay != from) {
		return nil, false
	}
	after, drop := encap.DecapsulateECN(outerTOS(frame), ecn)
	if drop {
		return nil, false
	}
	if after != ecn {
		set(after)
	}
	return packet, holds
}

// datagramOf is the UDP datagram of a frame, with its header, as the kernel's sockets get
// it, and its sender; empty if they don't.
func datagramOf(frame []byte) (udp []byte, from netip.Addr) {
	if len(frame) < 14 || encap.MAC(frame) != (encap.MAC{}) {
		return nil, netip.Addr{}
	}
	switch binary.BigEndian.Uint16(frame[12:]) {
	case encap.EtherTypeIPv4:
		ip, err := encap.ParseIPv4(frame[14:])
		if err == nil && ip.HeaderChecksumOK() && !ip.IsFragment() && ip.Protocol() == encap.ProtoUDP && ip.Dst() == testLocal {
			return ip.Payload(), ip.Src()
		}
	case encap.EtherTypeIPv6:
		ip, err := encap.ParseIPv6(frame[14:])
		if err == nil && ip.NextHeader() == encap.ProtoUDP && ip.Dst() == testLocal6 {
			return ip.Payload(), ip.Src()
		}
	}
	return nil, netip.Addr{}
}

// check compares what the program makes of a frame with what a worker would.
func (in *inbound) check(frame []byte) (carried bool) {
	in.tb.Helper()
	verdict, out := in.run(frame)
	switch verdict {
	case left:
		if !bytes.Equal(out, frame) {
			in.tb.Fatalf("left alone, but changed:\n% x to\n% x", frame, out)
		}
		return false
	case redirected:
	default:
		in.tb.Fatalf("verdict %d on % x", int32(verdict), frame)
	}
	want, holds := wouldDeliver(in.peers, frame)
	if want == nil {
		in.tb.Fatalf("carried what workers would not deliver: % x", frame)
	}
	if !bytes.Equal(out[:12], frame[:12]) || binary.BigEndian.Uint16(out[12:]) != etherTypeOf(want) || !bytes.Equal(out[14:], want) {
		in.tb.Fatalf("% x\nbecame\n% x, a worker makes of it\n% x", frame, out, want)
	}
	// Where the outer checksum isn't right, the inner must not be, or what the kernel
	// drops would be delivered.
	if !holds && transportHolds(want) {
		in.tb.Fatalf("carried in spite of its outer checksum: % x", frame)
	}
	return true
}

// staysSame tells whether decapsulation leaves the inner ECN field as it is.
func staysSame(outer, inner uint8) bool {
	ecn, drop := encap.DecapsulateECN(outer, inner)
	return !drop && ecn == inner&3
}

func innerTOS(packet []byte) byte {
	if packet[0]>>4 == 6 {
		return encap.IPv6(packet).TrafficClass()
	}
	return encap.IPv4(packet).TOS()
}

// frame is a random one to us, and whether it must be carried.
func (g generator) frame() (frame []byte, plain bool) {
	v6 := g.one(3)
	src := g.address(v6)
	s := g.packet(src, g.ours(v6))
	peer, ok := peerOf(testPeers, src)
	plain = s.plain && ok
	from, mac, vni, etherType := peer.Underlay, testMAC, encap.VNI(testVNI), etherTypeOf(s.packet)
	ecn := innerTOS(s.packet) & 3
	switch roll := g.IntN(90); {
	case !ok:
		from = testPeers[0].Underlay
	case roll < 4:
		from = testPeers[g.IntN(len(testPeers))].Underlay
		plain = plain && from == peer.Underlay
	case roll < 6:
		from, plain = []netip.Addr{netip.MustParseAddr("10.66.0.99"), netip.MustParseAddr("fd66::99")}[g.IntN(2)], false
	case roll < 8:
		mac, plain = encap.MAC{2, 0x66, 0, 0, 0, 9}, false
	case roll < 10:
		mac, plain = encap.MAC{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}, false
	case roll < 13:
		vni, plain = vni+1, false
	case roll < 16:
		etherType, plain = []uint16{encap.EtherTypeARP, 0x8100, encap.EtherTypeIPv4, encap.EtherTypeIPv6}[g.IntN(4)], false
	case roll < 36:
		ecn = byte(g.IntN(256))
		plain = plain && staysSame(ecn, innerTOS(s.packet))
	}
	h := encap.MakeFrameHeader(vni, mac, encap.MAC{2, 1, 1, 1, 1, 1}, etherType)
	frame = datagram(from, encap.MAC{}, ecn, h, s.packet)
	udp := udpAt(frame)
	vxlan := udp + 8
	switch roll := g.IntN(90); {
	case roll < 9:
		finish(frame, false)
		plain = plain && from.Is4()
	case roll < 18: // reserved bits
		frame[vxlan+g.IntN(4)] |= byte(g.IntN(256)) &^ 8
		frame[vxlan+7] = byte(g.IntN(256))
		finish(frame, true)
	case roll < 21:
		frame[vxlan] &^= 8
		finish(frame, true)
		plain = false
	case roll < 24:
		frame[udp+6] ^= 1 // the outer checksum
		plain = false
	case roll < 27 && from.Is4():
		frame[14+10] ^= 1 // that of the outer IP header
		plain = false
	case roll < 27: // another header behind it, perhaps, or a label
		at := []int{14 + 1, 14 + 3, 14 + 6}[g.IntN(3)]
		frame[at] ^= byte(1 + g.IntN(15))
		plain = plain && at < 14+6
	case roll < 45:
		return g.spoil(frame), false
	}
	return frame, plain
}

func TestIngressVerdicts(t *testing.T) {
	in := newInbound(t)
	g := newGenerator(1)
	carried, plains := 0, 0
	const n = 60000
	for range n {
		frame, plain := g.frame()
		if !runs(frame) {
			continue
		}
		before := slices.Clone(frame)
		ok := in.check(frame)
		if ok {
			carried++
		}
		if plain {
			plains++
			if !ok {
				t.Fatalf("left a plain frame alone (%s): % x", in.reasons(), before)
			}
		}
	}
	if carried < n/4 || carried == n || plains < n/4 {
		t.Errorf("%d of %d frames carried, %d were plain", carried, n, plains)
	}
	l, err := in.Left()
	must(t, err)
	for _, r := range []Reason{NotIP, Options, Fragment, Protocol, Checksum, ForeignVNI, InnerMAC, InnerSource, ECN, Aggregate} {
		if l.Rx[r] == 0 {
			t.Errorf("no frame was left because of %s", r)
		}
	}
	totals, err := in.Totals()
	must(t, err)
	if totals.RxPackets != uint64(carried) || totals.RxDatagrams != uint64(carried) || l.Rx[Lost] != 0 {
		t.Errorf("%d frames carried, totals %+v, %d lost", carried, totals, l.Rx[Lost])
	}
}

// reasons are those of what was left, for messages.
func (p *Programs) reasons() string {
	l, err := p.Left()
	if err != nil {
		return err.Error()
	}
	all := map[string]uint64{}
	for _, r := range Reasons() {
		if n := l.Tx[r] + l.Rx[r]; n > 0 {
			all[r.String()] = n
		}
	}
	var list []string
	for _, name := range slices.Sorted(maps.Keys(all)) {
		list = append(list, fmt.Sprintf("%s %d", name, all[name]))
	}
	return fmt.Sprint(list)
}

// ping is a plain inner packet.
func ping(src, dst string, tos byte) []byte {
	s, d := netip.MustParseAddr(src).As4(), netip.MustParseAddr(dst).As4()
	p := encap.IPv4(make([]byte, 64))
	p[0], p[1], p[8], p[9] = 0x45, tos, 64, encap.ProtoICMP
	copy(p[12:], s[:])
	copy(p[16:], d[:])
	p[20] = 8
	p.SetTotalLen(len(p))
	p.UpdateChecksum()
	binary.BigEndian.PutUint16(p[22:], encap.Checksum(p[20:], 0))
	return p
}

// pingFrame is a plain frame from the first peer.
func pingFrame(outer, inner byte) []byte {
	h := encap.MakeFrameHeader(testVNI, testMAC, testPeers[0].MAC, encap.EtherTypeIPv4)
	return datagram(testPeers[0].Underlay, encap.MAC{}, outer, h, ping("10.0.2.9", "10.0.1.9", inner))
}

// Every combination of ECN fields that leaves the packet as it is, is carried; of
// those that mark or drop it, none is.
func TestIngressECN(t *testing.T) {
	in := newInbound(t)
	for outer := range uint8(4) {
		for inner := range uint8(4) {
			if got, want := in.check(pingFrame(outer, inner)), staysSame(outer, inner); got != want {
				t.Errorf("outer %02b, inner %02b: carried is %v, want %v", outer, inner, got, want)
			}
			clearFlowlets(t, in.Programs)
		}
	}
}

// clearFlowlets has no flow be the workers'.
func clearFlowlets(tb testing.TB, p *Programs) {
	tb.Helper()
	keys, old := make([]uint32, 2*flowletsOf(p)), make([]uint64, 2*flowletsOf(p))
	for i := range keys {
		keys[i], old[i] = uint32(i), longAgo()
	}
	_, err := p.objects.Flowlets.BatchUpdate(keys, old, nil)
	must(tb, err)
}

// flowletsOf is how many entries each direction has.
func flowletsOf(p *Programs) int { return int(p.objects.Flowlets.MaxEntries() / 3) }

// The flow's hash is FlowHash: a packet that is left for its flow's sake marks the
// entry that FlowHash says.
func TestFlowletOfFlowHash(t *testing.T) {
	in := newInbound(t)
	s := settings()
	s.Bulk = 1 // every packet of TCP
	must(t, in.Configure(s))
	g := newGenerator(2)
	seen := 0
	for seen < 300 {
		v6 := g.one(2)
		src := g.address(v6)
		peer, ok := peerOf(testPeers, src)
		p := g.packet(src, g.ours(v6))
		proto := p.packet[9]
		if v6 {
			proto = p.packet[6]
		}
		if !ok || !p.plain || proto != encap.ProtoTCP {
			continue
		}
		seen++
		h := encap.MakeFrameHeader(testVNI, testMAC, peer.MAC, etherTypeOf(p.packet))
		if in.check(datagram(peer.Underlay, encap.MAC{}, innerTOS(p.packet)&3, h, p.packet)) {
			t.Fatalf("carried: % x", p.packet)
		}
		key := uint32(flowletsOf(in.Programs)) + encap.FlowHash(p.packet)%uint32(flowletsOf(in.Programs))
		var marked uint64
		must(t, in.objects.Flowlets.Lookup(key, &marked))
		if marked == 0 {
			t.Fatalf("entry %d isn't marked: % x", key, p.packet[:48])
		}
		must(t, in.objects.Flowlets.Put(key, uint64(0)))
	}
}

// A flow of which a packet was left stays with the workers for the guard's time, and
// again from each of its packets on, or until they have passed on what they had.
func TestGuard(t *testing.T) {
	in, s := newHolding(t)
	frame := pingFrame(0, 0)
	key := uint32(flowletsOf(in.Programs)) + encap.FlowHash(frame[14+28+22:])%uint32(flowletsOf(in.Programs))
	const second = uint64(1e9)
	for _, c := range []struct {
		name                string
		left, passed, guard uint64
		held                bool
	}{
		{"never", longAgo(), longAgo(), second, false},
		{"within the guard", monotonic(), longAgo(), 600 * second, true},
		{"after the guard", monotonic() - 2*second, longAgo(), second, false},
		{"and passed on since", monotonic() - 2*second, monotonic() - second, 600 * second, false},
		{"after what was passed on", monotonic() - second, monotonic() - 2*second, 600 * second, true},
		// Another CPU has left a packet since this one looked at the clock.
		{"in a moment", monotonic() + 600*second, longAgo(), second, true},
	} {
		s.Guard = timeOf(c.guard)
		must(t, in.Configure(s))
		must(t, in.Passed(c.passed))
		must(t, in.objects.Flowlets.Put(key, c.left))
		in.held("left "+c.name, frame, c.held)
	}
}

// The most specific subnet decides.
func TestMostSpecific(t *testing.T) {
	in := newInbound(t)
	for _, c := range []struct {
		inner, from string
		want        bool
	}{
		{"10.0.2.9", "10.66.0.2", true},
		{"10.0.2.9", "10.66.0.5", false},
		{"10.0.2.130", "10.66.0.5", true},
		{"10.0.2.130", "10.66.0.2", false},
		{"10.0.2.192", "10.66.0.2", true},
		{"10.66.0.2", "10.66.0.2", false}, // its own address: the workers'
	} {
		h := encap.MakeFrameHeader(testVNI, testMAC, testPeers[0].MAC, encap.EtherTypeIPv4)
		frame := datagram(netip.MustParseAddr(c.from), encap.MAC{}, 0, h, ping(c.inner, "10.0.1.9", 0))
		if got := in.check(frame); got != c.want {
			t.Errorf("%s from %s: carried is %v, want %v", c.inner, c.from, got, c.want)
		}
	}
	excluded := testPeers[1]
	excluded.Excluded, excluded.Underlay = true, netip.MustParseAddr("fd00::5") // which the programs can't have
	must(t, in.Put([]Peer{excluded}))
	for _, from := range []string{"10.66.0.2", "10.66.0.5", "0.0.0.0"} {
		h := encap.MakeFrameHeader(testVNI, testMAC, testPeers[0].MAC, encap.EtherTypeIPv4)
		if in.check(datagram(netip.MustParseAddr(from), encap.MAC{}, 0, h, ping("10.0.2.130", "10.0.1.9", 0))) {
			t.Errorf("from %s: an excluded peer's packet is carried", from)
		}
	}
	must(t, in.Remove([]netip.Prefix{testPeers[1].Subnet}))
	h := encap.MakeFrameHeader(testVNI, testMAC, testPeers[0].MAC, encap.EtherTypeIPv4)
	in.peers = append(slices.Clone(testPeers[:1]), testPeers[2:]...)
	if !in.check(datagram(testPeers[0].Underlay, encap.MAC{}, 0, h, ping("10.0.2.130", "10.0.1.9", 0))) {
		t.Error("the wider subnet doesn't count without the one inside it")
	}
}

// What is longer than the device's MTU is left: kernels before 5.12 drop it on its
// way to the device.
func TestIngressLongerThanDevice(t *testing.T) {
	in := newInbound(t)
	h := encap.MakeFrameHeader(testVNI, testMAC, testPeers[0].MAC, encap.EtherTypeIPv4)
	for _, n := range []int{testMTU, testMTU + 1} {
		p := encap.IPv4(append(ping("10.0.2.9", "10.0.1.9", 0), make([]byte, n-64)...))
		p.SetTotalLen(n)
		p.UpdateChecksum()
		if got := in.check(datagram(testPeers[0].Underlay, encap.MAC{}, 0, h, p)); got != (n <= testMTU) {
			t.Errorf("%d bytes: carried is %v", n, got)
		}
	}
}

// Full-size packets of TCP are the workers' from Bulk on, and what follows of their
// flow for a while.
func TestBulk(t *testing.T) {
	in := newInbound(t)
	s := settings()
	s.Bulk, s.Guard = 1000, forever
	must(t, in.Configure(s))
	age(t, in.Programs)
	clearFlowlets(t, in.Programs)
	segment := func(port uint16, payload int) []byte {
		p := encap.IPv4(append(ping("10.0.2.9", "10.0.1.9", 0)[:20], make([]byte, 20+payload)...))
		p[9] = encap.ProtoTCP
		binary.BigEndian.PutUint16(p[20:], port)
		p[32], p[33] = 0x50, 0x10
		p.SetTotalLen(len(p))
		p.UpdateChecksum()
		binary.BigEndian.PutUint16(p[36:], encap.Checksum(p[20:], p.PseudoHeaderSum(encap.ProtoTCP, len(p)-20)))
		h := encap.MakeFrameHeader(testVNI, testMAC, testPeers[0].MAC, encap.EtherTypeIPv4)
		return datagram(testPeers[0].Underlay, encap.MAC{}, 0, h, p)
	}
	for _, c := range []struct {
		name    string
		port    uint16
		payload int
		want    bool
	}{
		{"short", 1, 959, true},
		{"full", 1, 960, false},
		{"short, after a full one", 1, 0, false},
		{"short, of another flow", 2, 0, true},
	} {
		if got := in.check(segment(c.port, c.payload)); got != c.want {
			t.Errorf("%s: carried is %v, want %v", c.name, got, c.want)
		}
	}
	l, err := in.Left()
	must(t, err)
	if l.Rx[Bulk] != 1 || l.Rx[Flowlet] != 1 {
		t.Errorf("left: %s", in.reasons())
	}
}

// Off, and before any settings, everything passes.
func TestOff(t *testing.T) {
	p := load(t)
	in := &inbound{p, t, testPeers, make([]byte, 1<<16)}
	must(t, p.Put(testPeers))
	if in.check(pingFrame(0, 0)) {
		t.Error("carried before Configure")
	}
	s := settings()
	must(t, p.Configure(s))
	if !in.check(pingFrame(0, 0)) {
		t.Error("not carried when on")
	}
	s.On = false
	must(t, p.Configure(s))
	if in.check(pingFrame(0, 0)) {
		t.Error("carried when off")
	}
}

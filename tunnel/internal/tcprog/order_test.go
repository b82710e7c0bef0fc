package tcprog

import (
	"encoding/binary"
	"net/netip"
	"slices"
	"testing"
	"time"

	"uvxlan/encap"
)

// The tests below have the guard last for ever, so that nothing depends on the time.
const forever = time.Duration(1 << 61)

// longAgo is a moment before the guard's time.
func longAgo() uint64 { return monotonic() - 2*uint64(forever) }

// age has the programs and the peers be old: their flows are nobody else's.
func age(tb testing.TB, p *Programs) {
	tb.Helper()
	must(tb, p.setSince(longAgo()))
	must(tb, p.Passed(longAgo()))
	p.mu.Lock()
	defer p.mu.Unlock()
	for subnet, v := range p.peers {
		v.Since = longAgo()
		p.peers[subnet] = v
		if subnet.Addr().Is4() {
			must(tb, p.objects.Peers4.Put(key4(subnet), v))
		} else {
			must(tb, p.objects.Peers6.Put(key6(subnet), v))
		}
	}
}

func newHolding(tb testing.TB) (in *inbound, s Settings) {
	tb.Helper()
	in, s = newInbound(tb), settings()
	s.Guard = forever
	must(tb, in.Configure(s))
	age(tb, in.Programs)
	clearFlowlets(tb, in.Programs)
	return in, s
}

// held fails unless a frame is left for the sake of those before it.
func (in *inbound) held(what string, frame []byte, want bool) {
	in.tb.Helper()
	before, err := in.Left()
	must(in.tb, err)
	carried := in.check(frame)
	after, err := in.Left()
	must(in.tb, err)
	if was := after.Rx[Flowlet] > before.Rx[Flowlet]; was != want || carried == want {
		in.tb.Errorf("%s: held is %v, want %v; carried is %v (%s)", what, was, want, carried, in.reasons())
	}
}

// What came before the programs carried anything is with the workers.
func TestHoldsFlowsWhenTurnedOn(t *testing.T) {
	in, s := newHolding(t)
	in.held("on", pingFrame(0, 0), false)
	must(t, in.Configure(s))
	in.held("on again", pingFrame(0, 0), false)
	s.On = false
	must(t, in.Configure(s))
	if in.check(pingFrame(0, 0)) {
		t.Error("carried when off")
	}
	s.On = true
	must(t, in.Configure(s))
	in.held("on after off", pingFrame(0, 0), true)
	must(t, in.Passed(monotonic()))
	in.held("passed on", pingFrame(0, 0), false)
}

// The same is so where they are attached anew, and meanwhile.
func TestHoldsFlowsWhenAttached(t *testing.T) {
	in, s := newHolding(t)
	must(t, in.Attach(func() error {
		in.held("while they are attached", pingFrame(0, 0), true)
		clearFlowlets(t, in.Programs)
		s.On = false
		must(t, in.Configure(s))
		s.On = true
		must(t, in.Configure(s)) // in the middle
		s.Guard = 0
		must(t, in.Configure(s))
		in.held("without a guard, even", pingFrame(0, 0), true)
		s.Guard = forever
		must(t, in.Configure(s))
		clearFlowlets(t, in.Programs)
		return nil
	}))
	in.held("once they are attached", pingFrame(0, 0), true)
	must(t, in.Passed(monotonic()))
	in.held("passed on", pingFrame(0, 0), false)
}

// And where a peer is new to the programs, for its flows alone.
func TestHoldsFlowsOfNewPeers(t *testing.T) {
	in, _ := newHolding(t)
	from := func(src string) []byte {
		h := encap.MakeFrameHeader(testVNI, testMAC, testPeers[0].MAC, encap.EtherTypeIPv4)
		peer, _ := peerOf(testPeers, netip.MustParseAddr(src))
		return datagram(peer.Underlay, encap.MAC{}, 0, h, ping(src, "10.0.1.9", 0))
	}
	in.held("an old peer", from("10.0.3.9"), false)
	changed := testPeers[2]
	changed.MaxPacket--
	must(t, in.Put([]Peer{changed}))
	in.held("an old peer that has changed", from("10.0.3.9"), false)
	must(t, in.Remove([]netip.Prefix{changed.Subnet}))
	must(t, in.Put([]Peer{changed}))
	in.held("a peer that comes again", from("10.0.3.9"), true)
	in.held("another", from("10.0.2.9"), false)
	must(t, in.Passed(monotonic()))
	in.held("passed on", from("10.0.3.9"), false)
	changed.Excluded = true
	must(t, in.Put([]Peer{changed}))
	if in.check(from("10.0.3.9")) {
		t.Error("an excluded peer's frame is carried")
	}
	changed.Excluded = false
	must(t, in.Put([]Peer{changed}))
	in.held("a peer that was excluded", from("10.0.3.9"), true)
	must(t, in.Passed(monotonic()))
	in.held("passed on", from("10.0.3.9"), false)
}

// Maps that are handed over say which flows are whose.
func TestHoldsNothingWhenHandedOver(t *testing.T) {
	in, s := newHolding(t)
	p, err := Load(0, duplicates(t, in.Programs))
	must(t, err)
	defer func() { must(t, p.Close()) }()
	must(t, p.Configure(s))
	must(t, p.Put(testPeers))
	next := &inbound{p, t, testPeers, make([]byte, 1<<16)}
	next.held("handed over", pingFrame(0, 0), false)
}

// udpFrame is from a port of the first peer: a datagram of a flow of its own.
func udpFrame(outer, port uint16, payload int) []byte {
	p := encap.IPv4(append(ping("10.0.2.9", "10.0.1.9", 0)[:20], make([]byte, 8+payload)...))
	p[9] = encap.ProtoUDP
	binary.BigEndian.PutUint16(p[20:], port)
	binary.BigEndian.PutUint16(p[22:], 53)
	binary.BigEndian.PutUint16(p[24:], uint16(8+payload))
	p.SetTotalLen(len(p))
	p.UpdateChecksum()
	binary.BigEndian.PutUint16(p[26:], encap.Checksum(p[20:], p.PseudoHeaderSum(encap.ProtoUDP, 8+payload)))
	h := encap.MakeFrameHeader(testVNI, testMAC, testPeers[0].MAC, encap.EtherTypeIPv4)
	b := datagram(testPeers[0].Underlay, encap.MAC{}, 0, h, p)
	binary.BigEndian.PutUint16(b[14+20:], outer)
	finish(b, true)
	return b
}

// Datagrams that were joined may be of other flows than the first is.
func TestHoldsFlowsBehindAggregates(t *testing.T) {
	in, _ := newHolding(t)
	in.held("before", udpFrame(40000, 1, 64), false)
	aggregate := slices.Concat(udpFrame(40000, 1, 64), udpFrame(40000, 2, 64)[14+28:])
	if in.check(aggregate) {
		t.Error("an aggregate is carried")
	}
	in.held("the first flow", udpFrame(40000, 1, 64), true)
	in.held("another flow", udpFrame(40000, 2, 64), true)
	in.held("a flow of another port", udpFrame(40001, 3, 64), false)
}

// Of a datagram that came in parts the kernel gives the whole to a worker.
func TestHoldsFlowsBehindOuterFragments(t *testing.T) {
	in, _ := newHolding(t)
	first := udpFrame(40000, 1, 1000)
	ip := encap.IPv4(first[14:])
	ip[6] |= 0x20 // more fragments
	ip.UpdateChecksum()
	if in.check(first) {
		t.Error("a fragment is carried")
	}
	in.held("its flow", udpFrame(40000, 1, 64), true)
	in.held("a flow of another port", udpFrame(40001, 3, 64), false)
}

// Fragments of an inner packet don't tell the flow that they are of.
func TestHoldsFlowsBehindFragments(t *testing.T) {
	for _, last := range []bool{false, true} {
		in, _ := newHolding(t)
		part := udpFrame(40000, 1, 1000)
		inner := encap.IPv4(part[14+28+8+14:])
		if inner[6] = 0x20; last {
			inner[6], inner[7] = 0, 100
		}
		inner.UpdateChecksum()
		binary.BigEndian.PutUint16(part[14+20:], 40007) // as it is of another flow
		finish(part, true)
		if in.check(part) {
			t.Error("a fragment is carried")
		}
		in.held("its flow", udpFrame(40000, 1, 64), true)
		in.held("another protocol", pingFrame(0, 0), false)
	}
}

func TestHoldsFlowsBehindFragmentsIPv6(t *testing.T) {
	in, _ := newHolding(t)
	udp := func(fragment bool) []byte {
		l4 := make([]byte, 8+100)
		binary.BigEndian.PutUint16(l4, 7)
		binary.BigEndian.PutUint16(l4[2:], 53)
		binary.BigEndian.PutUint16(l4[4:], uint16(len(l4)))
		p, _ := transportPacket(netip.MustParseAddr("fd00:0:0:1::9"), encap.ProtoUDP, l4, 0)
		src := netip.MustParseAddr("fd00:0:0:2::9").As16()
		copy(p[8:], src[:])
		p[40+6], p[40+7] = 0, 0
		binary.BigEndian.PutUint16(p[46:], encap.Checksum(p[40:], encap.IPv6(p).PseudoHeaderSum(encap.ProtoUDP, len(l4))))
		if fragment {
			p = slices.Insert(p, 40, encap.ProtoUDP, 0, 0, 1, 0, 0, 0, 9)
			p[6] = 44
			binary.BigEndian.PutUint16(p[4:], uint16(len(p)-40))
		}
		h := encap.MakeFrameHeader(testVNI, testMAC, testPeers[0].MAC, encap.EtherTypeIPv6)
		return datagram(testPeers[0].Underlay, encap.MAC{}, 0, h, p)
	}
	in.held("before", udp(false), false)
	if in.check(udp(true)) {
		t.Error("a fragment is carried")
	}
	in.held("its flow", udp(false), true)
}

// On the way out it is the same.
func TestIntegrationEgressHoldsFlows(t *testing.T) {
	r := newRig(t)
	r.settings.Guard = forever
	pass := func(dst string, want bool) {
		t.Helper()
		packet, o := udpPacket(dst, 20, 0)
		if got := r.pass(packet, encap.EtherTypeIPv4, o); got.carried != want {
			t.Errorf("to %s: carried is %v, want %v (%s)", dst, got.carried, want, r.reasons())
		}
	}
	turn := func(on bool) {
		r.settings.On = on
		r.configure()
	}
	turn(true)
	age(t, r.Programs)
	clearFlowlets(t, r.Programs)
	pass("10.0.2.9", true)
	turn(false)
	pass("10.0.2.9", false)
	turn(true)
	pass("10.0.2.9", false)
	age(t, r.Programs)
	pass("10.0.2.9", false) // its flow isn't old
	pass("10.0.2.10", true)
	must(t, r.Remove([]netip.Prefix{testPeers[0].Subnet}))
	pass("10.0.2.10", false)
	must(t, r.Put(testPeers[:1]))
	pass("10.0.2.10", false)
	pass("10.0.3.9", true)
	// A datagram in parts goes before what follows of its flow.
	part, o := udpPacket("10.0.3.9", 800, 0)
	part[6] = 0x20
	encap.IPv4(part).UpdateChecksum()
	if r.pass(part, encap.EtherTypeIPv4, o).carried {
		t.Error("a fragment is carried")
	}
	pass("10.0.3.9", false)
	r.done()
}

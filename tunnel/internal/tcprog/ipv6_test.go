package tcprog

import (
	"encoding/binary"
	"slices"
	"testing"

	"uvxlan/encap"
)

// wideFrame is a plain frame over IPv6.
func wideFrame(outer, inner byte) []byte {
	h := encap.MakeFrameHeader(testVNI, testMAC, encap.MAC{2, 0x66, 0, 0, 0, 6}, encap.EtherTypeIPv4)
	return datagram(addr("fd66::6"), encap.MAC{}, outer, h, ping("10.0.6.9", "10.0.1.9", inner))
}

func TestIngressECNOverIPv6(t *testing.T) {
	in := newInbound(t)
	for outer := range uint8(4) {
		for inner := range uint8(4) {
			if got, want := in.check(wideFrame(outer, inner)), staysSame(outer, inner); got != want {
				t.Errorf("outer %02b, inner %02b: carried is %v, want %v", outer, inner, got, want)
			}
			clearFlowlets(t, in.Programs)
		}
	}
}

// A datagram over IPv6 has a checksum, or the workers' sockets don't take it: RFC 8200,
// section 8.1.
func TestIngressChecksumOverIPv6(t *testing.T) {
	in := newInbound(t)
	if !in.check(wideFrame(0, 0)) {
		t.Errorf("not carried with a checksum (%s)", in.reasons())
	}
	none := wideFrame(0, 0)
	finish(none, false)
	wrong := wideFrame(0, 0)
	wrong[udpAt(wrong)+7] ^= 1
	for name, frame := range map[string][]byte{"no": none, "a wrong": wrong} {
		before, err := in.Left()
		must(t, err)
		if in.check(frame) {
			t.Errorf("carried with %s checksum", name)
		}
		after, err := in.Left()
		must(t, err)
		if after.Rx[Checksum] != before.Rx[Checksum]+1 {
			t.Errorf("with %s checksum it is left for %s", name, in.reasons())
		}
		clearFlowlets(t, in.Programs)
	}
}

// Without what changes a packet's protocol, packets inside of the same family are
// carried, and others left (before Linux 6.3).
func TestIngressWithoutChangeOfProtocol(t *testing.T) {
	in := newInbound(t)
	in.options &^= optionDecapOther
	must(t, in.Configure(settings()))
	packet, _ := transportPacket(addr("fd00:0:0:1::9"), encap.ProtoUDP, make([]byte, 8), 0)
	src := addr("fd00:0:0:6::9").As16()
	copy(packet[8:], src[:])
	udp := packet[40:]
	udp[0], udp[1], udp[3], udp[5], udp[6], udp[7] = 9, 9, 53, 8, 0, 0
	binary.BigEndian.PutUint16(udp[6:], encap.Checksum(udp, encap.IPv6(packet).PseudoHeaderSum(encap.ProtoUDP, len(udp))))
	h := encap.MakeFrameHeader(testVNI, testMAC, encap.MAC{2, 0x66, 0, 0, 0, 6}, encap.EtherTypeIPv6)
	if !in.check(datagram(addr("fd66::6"), encap.MAC{}, 0, h, packet)) {
		t.Errorf("IPv6 over IPv6 is left (%s)", in.reasons())
	}
	if !in.check(pingFrame(0, 0)) {
		t.Errorf("IPv4 over IPv4 is left (%s)", in.reasons())
	}
	if in.check(wideFrame(0, 0)) {
		t.Error("IPv4 over IPv6 is carried")
	}
}

// Without an address of ours of a family nothing of that family is carried.
func TestOneFamily(t *testing.T) {
	for _, c := range []struct {
		name         string
		without      func(s *Settings)
		narrow, wide bool
	}{
		{name: "IPv4 alone", without: func(s *Settings) { s.IPv6 = Local{} }, narrow: true},
		{name: "IPv6 alone", without: func(s *Settings) { s.IPv4 = Local{} }, wide: true},
	} {
		in := newInbound(t)
		s := settings()
		c.without(&s)
		must(t, in.Configure(s))
		if got := in.check(pingFrame(0, 0)); got != c.narrow {
			t.Errorf("%s: over IPv4 carried is %v", c.name, got)
		}
		if got := in.check(wideFrame(0, 0)); got != c.wide {
			t.Errorf("%s: over IPv6 carried is %v", c.name, got)
		}
	}
}

// Of a datagram that came in parts the kernel gives the whole to a worker.
func TestHoldsFlowsBehindOuterFragmentsOverIPv6(t *testing.T) {
	in, _ := newHolding(t)
	frame := wideFrame(0, 0)
	in.held("before", frame, false)
	first := slices.Insert(slices.Clone(frame), udpAt(frame), encap.ProtoUDP, 0, 0, 1, 0, 0, 0, 9)
	first[14+6] = 44
	encap.IPv6(first[14:]).SetPayloadLen(len(first) - 14 - encap.IPv6HeaderLen)
	other := slices.Clone(first)
	other[udpAt(other)+8] ^= 1 // another source port
	second := slices.Clone(first)
	second[udpAt(second)+2] = 1
	for _, part := range [][]byte{other, second} {
		if in.check(part) {
			t.Error("a fragment is carried")
		}
		in.held("behind another's fragment", frame, false)
	}
	if in.check(first) {
		t.Error("a fragment is carried")
	}
	in.held("its flow", frame, true)
}

// Where the kernel's sockets send flow labels, the programs do: one for each flow,
// and of those that need no state (RFC 6437).
func TestIntegrationEgressFlowLabels(t *testing.T) {
	r := newRig(t)
	g := newGenerator(8)
	label := func(packet []byte) uint32 {
		t.Helper()
		c := r.pass(packet, etherTypeOf(packet), encap.Offload{})
		if !c.carried {
			t.Fatalf("left (%s): % x", r.reasons(), packet)
		}
		return encap.IPv6(c.packet[14:]).FlowLabel()
	}
	for _, on := range []bool{true, false} {
		r.settings.FlowLabels = on
		r.configure()
		seen := map[uint32]bool{}
		for n := 0; n < 200; {
			s := g.packet(g.ours(false), addr("10.0.6.9"))
			if !s.plain || s.learnt {
				continue
			}
			n++
			got := label(s.packet)
			if got>>19 == 1 != on || !on && got != 0 || got != label(s.packet) {
				t.Fatalf("with labels %v one is %#x", on, got)
			}
			seen[got] = true
		}
		if on && len(seen) < 100 {
			t.Errorf("200 flows have %d labels", len(seen))
		}
	}
	r.done()
}

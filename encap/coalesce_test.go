package encap_test

import (
	"math/rand/v2"
	"slices"
	"testing"

	"uvxlan/encap"
)

// stream is n segments or datagrams of size bytes in sequence.
func stream(s sample, n, size int) []sample {
	var all []sample
	for range n {
		s.payload = size
		all = append(all, s)
		s = after(s)
	}
	return all
}

// after is the packet that follows s.
func after(s sample) sample {
	segments := 1
	if size := int(s.cut().SegmentSize); size > 0 {
		segments = (s.payload + size - 1) / size
	}
	s.seq += uint32(s.payload)
	s.id += uint16(segments)
	s.fill += 7
	return s
}

var (
	timestamps = []byte{1, 1, 8, 10, 0, 1, 2, 3, 0, 4, 5, 6}
	tcp4       = sample{host: 1, ttl: 64, flags: 0x10, window: 500, ack: 77, seq: 0xffffff00, id: 0xfffe, fragment: 0x4000, options: timestamps}
	udp4       = sample{host: 1, udp: true, ttl: 64, id: 9, fragment: 0x4000}
	tcp6       = sample{host: 1, v6: true, ttl: 64, flags: 0x10, window: 500, label: 7, options: timestamps}
	udp6       = sample{host: 1, v6: true, udp: true, ttl: 64, label: 7}
)

// limited is a stream of unfilled packets of a flow whose packets may have limit
// bytes.
func limited(s sample, limit, n, size int) []sample {
	s.limit, s.partial = limit, true
	return stream(s, n, size)
}

// superpackets is n of UDP, payload bytes each, of datagrams of size bytes.
func superpackets(s sample, size, n, payload int) []sample {
	s.size, s.partial = size, true
	return stream(s, n, payload)
}

// with changes packet i.
func with(all []sample, i int, change func(s *sample)) []sample {
	all = slices.Clone(all)
	change(&all[i])
	return all
}

// shift changes packet i and makes the rest follow it.
func shift(all []sample, i int, change func(s *sample)) []sample {
	all = with(all, i, change)
	for k := i + 1; k < len(all); k++ {
		next := after(all[k-1])
		all[k].seq, all[k].id = next.seq, next.id
	}
	return all
}

func TestCoalescer(t *testing.T) {
	size4, size6 := coalesceMTU-52, coalesceMTU-72
	bulk := stream(tcp4, 4, size4)
	small := stream(udp4, 4, 64)
	joined, alone := []int{4}, []int{1, 1, 1, 1}
	second := func(change func(s *sample)) []sample { return with(bulk, 1, change) }
	datagram := func(change func(s *sample)) []sample { return with(small, 1, change) }
	for _, tt := range []struct {
		name string
		in   []sample
		want []int // packets in each one written
	}{
		{"TCP over IPv4", bulk, joined},
		{"TCP over IPv6", stream(tcp6, 4, size6), joined},
		{"UDP over IPv4", small, joined},
		{"UDP over IPv6", stream(udp6, 4, 64), joined},
		{"one", bulk[:1], []int{1}},
		{"TCP up to 64 KiB", stream(tcp4, 60, size4), []int{46, 14}},
		{"up to 128 parts", stream(udp4, 300, 10), []int{128, 128, 44}},
		{"TCP without options", stream(func() sample { s := tcp4; s.options = nil; return s }(), 4, 100), joined},

		{"TCP, shorter ends", shift(bulk, 2, func(s *sample) { s.payload-- }), []int{3, 1}},
		{"TCP, longer", shift(stream(tcp4, 4, 100), 2, func(s *sample) { s.payload = 101 }), []int{2, 2}},
		{"TCP, PSH ends", with(bulk, 1, func(s *sample) { s.flags |= 8 }), []int{2, 2}},
		{"TCP, PSH first", with(bulk, 0, func(s *sample) { s.flags |= 8 }), []int{1, 3}},
		{"TCP, FIN", second(func(s *sample) { s.flags |= 1 }), []int{1, 1, 2}},
		{"TCP, URG", second(func(s *sample) { s.flags |= 0x20 }), []int{1, 1, 2}},
		{"TCP, ECE", second(func(s *sample) { s.flags |= 0x40 }), []int{1, 1, 2}},
		{"TCP, CWR", second(func(s *sample) { s.flags |= 0x80 }), []int{1, 1, 2}},
		{"TCP, no ACK", second(func(s *sample) { s.flags = 0 }), []int{1, 1, 2}},
		{"TCP, AccECN bit", second(func(s *sample) { s.reserved = 1 }), []int{1, 1, 2}},
		{"TCP, AccECN bits everywhere", func() []sample { s := tcp4; s.reserved = 1; return stream(s, 4, 100) }(), alone},
		{"TCP, urgent pointer", second(func(s *sample) { s.urgent = 1 }), []int{1, 1, 2}},
		{"TCP, ack", second(func(s *sample) { s.ack++ }), []int{1, 1, 2}},
		{"TCP, window", second(func(s *sample) { s.window++ }), []int{1, 1, 2}},
		{"TCP, options", second(func(s *sample) { s.options = []byte{1, 1, 8, 10, 0, 1, 2, 3, 0, 4, 5, 7} }), []int{1, 1, 2}},
		{"TCP, header length", second(func(s *sample) { s.options = timestamps[:4]; s.payload += 8 }), []int{1, 1, 2}},
		{"TCP, gap", shift(bulk, 1, func(s *sample) { s.seq++ }), []int{1, 3}},
		{"TCP, repeated", with(bulk, 1, func(s *sample) { s.seq = bulk[0].seq }), []int{1, 1, 2}},
		{"TCP, pure ACK", append(slices.Insert(slices.Clone(bulk), 2, func() sample { s := bulk[2]; s.payload = 0; return s }()), bulk...), []int{2, 1, 2, 4}},
		{"TCP, header longer than packet", second(func(s *sample) { s.payload = 0; s.headerLength = 15 }), []int{1, 1, 2}},
		{"TCP, header length too small", second(func(s *sample) { s.headerLength = 4 }), []int{1, 1, 2}},

		{"ToS", second(func(s *sample) { s.tos = 4 }), []int{1, 1, 2}},
		{"ECN", second(func(s *sample) { s.tos = 3 }), []int{1, 1, 2}},
		{"TTL", second(func(s *sample) { s.ttl-- }), []int{1, 1, 2}},
		{"DF", second(func(s *sample) { s.fragment = 0 }), []int{1, 1, 2}},
		{"reserved flag", second(func(s *sample) { s.fragment = 0xc000 }), []int{1, 1, 2}},
		{"reserved flag everywhere", func() []sample { s := tcp4; s.fragment = 0xc000; return stream(s, 4, 100) }(), alone},
		{"fragments everywhere", func() []sample { s := tcp4; s.fragment = 0x2000; return stream(s, 4, 100) }(), alone},
		{"fragment", second(func(s *sample) { s.fragment = 0x2000 }), []int{1, 1, 2}},
		{"IPv4 options", second(func(s *sample) { s.ipOptions = []byte{1, 1, 1, 0} }), []int{1, 1, 2}},
		{"IPv4 checksum", second(func(s *sample) { s.badIP = true }), []int{1, 1, 2}},
		{"other sender", second(func(s *sample) { s.host = 2 }), []int{1, 1, 2}},
		{"other port", second(func(s *sample) { s.port = 2 }), []int{1, 1, 2}},
		{"ID, DF", shift(bulk, 1, func(s *sample) { s.id += 5 }), []int{1, 3}},
		{"ID, no DF", shift(stream(func() sample { s := tcp4; s.fragment = 0; return s }(), 4, 90), 2, func(s *sample) { s.id += 5 }), []int{2, 2}},
		{"ID the same, DF", with(with(bulk, 1, func(s *sample) { s.id = 0xfffe }), 2, func(s *sample) { s.id = 0xfffe }), []int{3, 1}},
		{"ID the same, no DF", with(stream(func() sample { s := udp4; s.fragment = 0; return s }(), 2, 90), 1, func(s *sample) { s.id = 9 }), []int{1, 1}},
		{"ID the same, too late", with(bulk, 2, func(s *sample) { s.id = 0xfffe }), []int{2, 1, 1}},
		{"flow label", with(stream(tcp6, 4, size6), 1, func(s *sample) { s.label++ }), []int{1, 1, 2}},
		{"traffic class", with(stream(tcp6, 4, size6), 1, func(s *sample) { s.tos++ }), []int{1, 1, 2}},
		{"hop limit", with(stream(tcp6, 4, size6), 1, func(s *sample) { s.ttl++ }), []int{1, 1, 2}},
		{"extension header", with(stream(tcp6, 4, 100), 1, func(s *sample) { s.extensions = []byte{0, 0, 1, 4, 0, 0, 0, 0} }), []int{1, 1, 2}},

		{"bad checksum", second(func(s *sample) { s.bad = true }), []int{1, 1, 2}},
		{"unfilled", func() []sample { s := tcp4; s.partial = true; return stream(s, 4, size4) }(), joined},
		{"unfilled among filled", second(func(s *sample) { s.partial = true }), joined},
		{"unfilled alone", func() []sample { s := udp4; s.partial = true; return stream(s, 1, 10) }(), []int{1}},

		{"UDP, shorter ends", datagram(func(s *sample) { s.payload = 63 }), []int{2, 2}},
		{"UDP, longer", datagram(func(s *sample) { s.payload = 65 }), []int{1, 2, 1}},
		{"UDP, empty", datagram(func(s *sample) { s.payload = 0 }), []int{1, 1, 2}},
		{"UDP, none but empty", stream(udp4, 4, 0), alone},
		{"UDP, no checksum", datagram(func(s *sample) { s.unsummed = true }), []int{1, 1, 2}},
		{"UDP, no checksum, IPv6", with(stream(udp6, 4, 64), 1, func(s *sample) { s.unsummed = true }), []int{1, 1, 2}},
		{"UDP, wrong length", datagram(func(s *sample) { s.shortUDP = true; s.bad = true }), []int{1, 1, 2}},
		{"UDP, bad", datagram(func(s *sample) { s.bad = true }), []int{1, 1, 2}},
		{"UDP, longer than the MTU", stream(udp4, 4, 5000), alone},
		{"UDP like TCP", []sample{tcp4, udp4, tcp4}, []int{1, 1, 1}},

		{"oversized", stream(tcp4, 1, 30000), []int{1}},
		{"oversized, unfilled", func() []sample { s := tcp4; s.partial = true; return stream(s, 1, 30000) }(), []int{1}},
		{"oversized, IPv6", func() []sample { s := tcp6; s.partial = true; return stream(s, 1, 65000) }(), []int{1}},
		{"oversized, bad", func() []sample { s := tcp4; s.bad = true; return stream(s, 1, 30000) }(), []int{1}},
		{"oversized, IPv4 options", func() []sample { s := tcp4; s.ipOptions = []byte{1, 1, 1, 0}; return stream(s, 1, 3000) }(), []int{1}},
		{"oversized, extension", func() []sample { s := tcp6; s.extensions = []byte{0, 0, 1, 4, 0, 0, 0, 0}; return stream(s, 1, 3000) }(), []int{1}},
		{"oversized, CWR and FIN", func() []sample { s := tcp4; s.flags = 0x99; return stream(s, 1, 30000) }(), []int{1}},
		{"oversized, whole segments", stream(tcp4, 3, 10*size4), []int{3}},
		{"oversized, up to 64 KiB", stream(tcp4, 3, 20*size4), []int{2, 1}},
		{"oversized, odd size ends", stream(tcp4, 3, 10*size4+1), alone[:3]},
		{"oversized behind normal", shift(bulk, 1, func(s *sample) { s.payload = 5 * size4 }), joined},
		{"normal behind oversized", shift(bulk, 0, func(s *sample) { s.payload = 5 * size4 }), joined},
		{"oversized behind small", shift(shift(bulk, 0, func(s *sample) { s.payload = 100 }), 1, func(s *sample) { s.payload = 5 * size4 }), []int{1, 3}},
		{"oversized, small segments", limited(tcp4, 900, 3, 10*(900-52)), []int{3}},
		{"oversized, small segments, IPv6", limited(tcp6, 1300, 3, 10*(1300-72)), []int{3}},
		{"oversized, small segments behind one", shift(limited(tcp4, 900, 3, 10*(900-52)), 0, func(s *sample) { s.payload = 900 - 52 }), []int{3}},
		{"oversized for its flow", limited(tcp4, 900, 1, 900), []int{1}},
		{"oversized for its flow, joined", limited(tcp4, 700, 4, 2*(700-52)), joined},
		{"oversized for its flow, filled", func() []sample { s := tcp4; s.limit = 900; return stream(s, 2, 900) }(), []int{2}},
		{"oversized, other segments", shift(limited(tcp4, 900, 4, 10*(900-52)), 2, func(s *sample) { s.limit = 800 }), []int{2, 1, 1}},
		{"oversized, smaller segments", with(limited(tcp4, 1450, 2, size4), 1, func(s *sample) { s.limit = 800 }), []int{1, 1}},
		{"oversized, limit above the MTU", limited(tcp4, 9000, 1, 9000), []int{1}},
		{"oversized, limit below the headers", limited(tcp4, 50, 2, 9000), []int{1, 1}},
		{"oversized, IPv4 options, small segments", func() []sample { s := tcp4; s.ipOptions = []byte{1, 1, 1, 0}; return limited(s, 600, 1, 1000) }(), []int{1}},
		{"UDP superpackets", superpackets(udp4, 500, 2, 5000), []int{1, 1}},
		{"UDP superpackets, short end", superpackets(udp4, 500, 2, 5001), []int{1, 1}},
		{"UDP superpackets, filled", with(superpackets(udp4, 500, 1, 5001), 0, func(s *sample) { s.partial = false }), []int{1}},
		{"UDP superpacket below the MTU", superpackets(udp4, 5, 1, 54), []int{1}},
		{"UDP superpacket, IPv6", superpackets(udp6, 500, 1, 50001), []int{1}},
		{"UDP superpacket, extension", with(superpackets(udp6, 500, 1, 5001), 0, func(s *sample) { s.extensions = []byte{0, 0, 1, 4, 0, 0, 0, 0} }), []int{1}},
		{"UDP superpacket, IPv4 options", with(superpackets(udp4, 500, 1, 5001), 0, func(s *sample) { s.ipOptions = []byte{1, 1, 1, 0} }), []int{1}},
		{"UDP superpacket, bad", with(superpackets(udp4, 500, 1, 5001), 0, func(s *sample) { s.bad, s.partial = true, false }), []int{1}},
		{"UDP superpacket of one", superpackets(udp4, 500, 2, 500), []int{2}},
		{"UDP superpacket among others", shift(with(stream(udp4, 5, 64), 2, func(s *sample) { s.size, s.partial = 64, true }), 2, func(s *sample) { s.payload = 640 }), []int{2, 1, 2}},
		{"oversized, PSH", with(stream(tcp4, 2, 5*size4), 0, func(s *sample) { s.flags |= 8 }), []int{1, 1}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := encap.NewCoalescer(coalesceMTU)
			for range 2 { // the second time over stale memory
				flows := make([]flowQueue, 1)
				for _, s := range tt.in {
					p, complete := s.build()
					flows[0] = append(flows[0], s.expected(complete)...)
					s.add(t, c, p, complete)
				}
				var got []int
				for i := range c.Len() {
					got = append(got, c.Packet(i).Packets)
				}
				if !slices.Equal(got, tt.want) {
					t.Errorf("superpackets of %v, want %v", got, tt.want)
				}
				if tt.name != "other sender" && tt.name != "other port" && tt.name != "UDP like TCP" {
					judge(t, c, flows)
				}
				c.Reset()
			}
		})
	}
}

func TestCoalescerOffload(t *testing.T) {
	partial := tcp4
	partial.partial = true
	cwr := partial
	cwr.flags |= 0x80
	for _, tt := range []struct {
		name string
		in   []sample
		want encap.Offload
	}{
		{"verified", stream(tcp4, 1, 100), encap.Offload{}},
		{"unfilled", stream(partial, 1, 100), encap.Offload{NeedsChecksum: true, ChecksumStart: 20, ChecksumOffset: 16}},
		{"TCP", stream(tcp4, 2, 100), encap.Offload{NeedsChecksum: true, ChecksumStart: 20, ChecksumOffset: 16, GSO: encap.GSOTCPv4, SegmentSize: 100, HeaderLen: 52}},
		{"TCP, IPv6", stream(tcp6, 2, 100), encap.Offload{NeedsChecksum: true, ChecksumStart: 40, ChecksumOffset: 16, GSO: encap.GSOTCPv6, SegmentSize: 100, HeaderLen: 72}},
		{"UDP", stream(udp4, 2, 100), encap.Offload{NeedsChecksum: true, ChecksumStart: 20, ChecksumOffset: 6, GSO: encap.GSOUDP, SegmentSize: 100, HeaderLen: 28}},
		{"oversized", stream(cwr, 1, 9000), encap.Offload{NeedsChecksum: true, ChecksumStart: 20, ChecksumOffset: 16, GSO: encap.GSOTCPv4 | encap.GSOECN, SegmentSize: 1398, HeaderLen: 52}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := encap.NewCoalescer(coalesceMTU)
			for _, s := range tt.in {
				p, _ := s.build()
				c.Add(p)
			}
			if got := c.Packet(0).Offload; c.Len() != 1 || got != tt.want {
				t.Errorf("%d packets, %+v, want %+v", c.Len(), got, tt.want)
			}
			if again := c.Packet(0); again.Offload != tt.want || len(again.Parts) != len(tt.in) {
				t.Errorf("asked again: %+v", again)
			}
		})
	}
}

// TestCoalescerOddPackets takes what is no packet at all.
func TestCoalescerOddPackets(t *testing.T) {
	c := encap.NewCoalescer(coalesceMTU)
	for _, p := range [][]byte{nil, {}, {0x45}, make([]byte, 19), make([]byte, 60), goldenICMP, goldenARPRequest} {
		c.Add(p)
	}
	if c.Len() != 7 || c.Packet(-1).Parts != nil || c.Packet(7).Parts != nil {
		t.Errorf("%d packets", c.Len())
	}
	for i := range c.Len() {
		if p := c.Packet(i); p.Offload != (encap.Offload{}) || p.Packets != 1 {
			t.Errorf("packet %d: %+v", i, p)
		}
	}
}

func TestCoalescerSwitches(t *testing.T) {
	c := encap.NewCoalescer(coalesceMTU)
	in := append(stream(tcp4, 2, 100), stream(udp4, 2, 100)...)
	for _, tt := range []struct {
		tcp, udp bool
		want     int
	}{{true, true, 2}, {false, true, 3}, {true, false, 3}, {false, false, 4}} {
		c.SetTCP(tt.tcp)
		c.SetUDP(tt.udp)
		for _, s := range in {
			p, _ := s.build()
			c.Add(p)
		}
		if c.Len() != tt.want {
			t.Errorf("TCP %v, UDP %v: %d packets, want %d", tt.tcp, tt.udp, c.Len(), tt.want)
		}
		c.Reset()
	}
}

// TestCoalescerFull fills a batch with joining and with lone packets.
func TestCoalescerFull(t *testing.T) {
	c := encap.NewCoalescer(coalesceMTU)
	for _, size := range []int{0, 10} {
		all := stream(udp4, 5000, size)
		var n int
		for ; n < len(all); n++ {
			if p, _ := all[n].build(); c.Add(p) == 0 {
				break
			}
		}
		if n != 2048 {
			t.Fatalf("full after %d packets", n)
		}
		held := 0
		for i := range c.Len() {
			held += c.Packet(i).Packets
		}
		if held != n {
			t.Errorf("%d packets of %d", held, n)
		}
		c.Reset()
	}
}

// TestCoalescerManyFlows interleaves more flows than are remembered.
func TestCoalescerManyFlows(t *testing.T) {
	c := encap.NewCoalescer(coalesceMTU)
	for _, n := range []int{4, 16, 64, 2000} {
		flows := make([]flowQueue, n)
		for round := range max(1, 1024/n) {
			for f := range n {
				s := udp4
				s.host, s.port, s.payload, s.id = byte(f), byte(f>>8), 100, uint16(round)
				p, complete := s.build()
				flows[f] = append(flows[f], complete)
				c.Add(p)
			}
		}
		if n <= 16 && c.Len() != n*max(1, 1024/n/128) {
			t.Errorf("%d packets of %d flows", c.Len(), n)
		}
		judge(t, c, flows)
		c.Reset()
	}
}

// TestCoalescerForgets has each batch begin with flows of the one before, and
// of that whose number comes around.
func TestCoalescerForgets(t *testing.T) {
	c := encap.NewCoalescer(coalesceMTU)
	flows := interleave(udp4, 4, 4, 10)
	add := func(i int) {
		t.Helper()
		before := c.Len()
		p, _ := flows[i].build()
		c.Add(p)
		if flows[i] = after(flows[i]); c.Len() != before+1 {
			t.Fatal("joined a packet of another batch")
		}
	}
	for i := range flows {
		add(i)
	}
	for range 1<<16 - 1 {
		c.Reset()
	}
	add(2)
	c.Reset()
	add(3)
	c.Reset()
	add(2)
	add(3)
	c.Reset()
	add(3)
	c.Reset()
	add(3)
}

// TestCoalescerLiftsBarriers has a fragment behind many packets, then a new
// batch.
func TestCoalescerLiftsBarriers(t *testing.T) {
	c := encap.NewCoalescer(coalesceMTU)
	fragment := udp4
	fragment.fragment = 0x2000
	for range 100 {
		p, _ := fragment.build()
		c.Add(p)
	}
	c.Reset()
	for _, s := range stream(udp4, 3, 10) {
		p, _ := s.build()
		c.Add(p)
	}
	if c.Len() != 1 {
		t.Errorf("%d packets, want 1", c.Len())
	}
}

// TestCoalescerFinished adds to a flow whose superpacket was handed out.
func TestCoalescerFinished(t *testing.T) {
	c := encap.NewCoalescer(coalesceMTU)
	for i, s := range stream(tcp4, 4, 100) {
		p, _ := s.build()
		c.Add(p)
		if i == 1 {
			c.Packet(0)
		}
	}
	if c.Len() != 2 || c.Packet(0).Packets != 2 || c.Packet(1).Packets != 2 {
		t.Errorf("%d packets, the first of %d", c.Len(), c.Packet(0).Packets)
	}
}

// player turns numbers into a mix of packets, some of them spoilt.
type player struct {
	flows  [8]sample
	queues []flowQueue
}

func newPlayer() *player {
	p := &player{queues: make([]flowQueue, 8)}
	for i := range p.flows {
		p.flows[i] = []sample{tcp4, udp4, tcp6, udp6}[i%4]
		p.flows[i].port = byte(i)
		p.flows[i].payload = 100
	}
	p.flows[4].fragment, p.flows[5].fragment = 0, 0
	return p
}

// play adds the next packet of a flow to c: what happens to it, in one byte, and by
// how much, in another.
func (p *player) play(t testing.TB, c *encap.Coalescer, flow, event, amount byte) {
	t.Helper()
	i := int(flow) % len(p.flows)
	s := p.flows[i]
	p.change(&s, event%48, amount)
	in, complete := s.build()
	p.queues[i] = append(p.queues[i], s.expected(complete)...)
	next := after(s)
	p.flows[i].seq, p.flows[i].id, p.flows[i].fill = next.seq, next.id, next.fill
	s.add(t, c, in, complete)
}

// change applies an event; most change nothing.
func (p *player) change(s *sample, event, amount byte) {
	big := len(s.options) + 20
	switch event {
	case 0:
		s.flags ^= amount
	case 1:
		s.payload = int(amount)
	case 2:
		s.payload = (coalesceMTU - 40 - big) * int(amount%40+1)
		s.partial = amount%2 == 0
	case 3:
		s.payload = int(amount) * 200
		s.partial = amount%2 == 0
	case 4:
		s.bad = s.payload > 0
	case 5, 6:
		s.partial = true
	case 7:
		s.seq += uint32(amount)
	case 8:
		s.id = uint16(amount)
	case 9:
		s.tos = amount
	case 10:
		s.ttl = amount
	case 11:
		s.options = []byte{1, 1, 1, 1, 2, 2, 2, 2}[:amount%3*4]
	case 12:
		if !s.v6 {
			s.fragment = uint16(amount) << 8 &^ 0x8000
		}
	case 13:
		s.ack = uint32(amount)
	case 14:
		s.window = uint16(amount)
	case 15:
		s.ipOptions = []byte{1, 1, 1, 0, 1, 1, 1, 0}[:amount%3*4]
	case 16:
		if amount%3 == 0 {
			s.extensions = []byte{0, 0, 1, 4, 0, 0, 0, 0}
		}
	case 17:
		s.label = amount
	case 18:
		s.flags |= 8
	case 19:
		s.payload = 0
	case 20:
		s.unsummed = s.udp
	case 21:
		s.badIP = true
	case 22:
		s.id--
	case 23:
		s.limit = []int{0, 88, 552, 1300}[amount%4]
		p.flows[s.port].limit = s.limit // the port is the flow's number
	case 24, 25:
		s.size, s.payload, s.partial = int(amount)+1, int(amount)*50, amount%4 != 0
	}
	if s.payload > 65000 {
		s.payload = 65000
	}
}

func TestCoalescerMix(t *testing.T) {
	c := encap.NewCoalescer(coalesceMTU)
	rounds := 300
	if testing.Short() {
		rounds = 30
	}
	joined := 0
	for seed := range uint64(rounds) {
		random := rand.New(rand.NewPCG(seed, 1))
		p := newPlayer()
		flows := random.IntN(8) + 1
		for range random.IntN(200) {
			p.play(t, c, byte(random.IntN(flows)), byte(random.Uint32()), byte(random.Uint32()))
		}
		for i := range c.Len() {
			joined += c.Packet(i).Packets - 1
		}
		judge(t, c, p.queues)
		for i, q := range p.queues {
			if len(q) > 0 {
				t.Fatalf("seed %d: flow %d lost %d packets", seed, i, len(q))
			}
		}
		c.Reset()
	}
	if joined < 10*rounds {
		t.Errorf("only %d packets joined", joined)
	}
}

func FuzzCoalescer(f *testing.F) {
	f.Add([]byte{0, 47, 0, 0, 47, 0, 0, 47, 0, 1, 47, 0, 0, 18, 0, 1, 47, 0})
	f.Add([]byte{0, 2, 4, 0, 2, 4, 0, 47, 0, 0, 12, 0x20, 0, 47, 0, 0, 47, 0})
	c := encap.NewCoalescer(coalesceMTU)
	f.Fuzz(func(t *testing.T, b []byte) {
		c.Reset()
		p := newPlayer()
		for b = b[:min(len(b), 600)]; len(b) >= 3; b = b[3:] {
			p.play(t, c, b[0], b[1], b[2])
		}
		judge(t, c, p.queues)
		for i, q := range p.queues {
			if len(q) > 0 {
				t.Fatalf("flow %d lost %d packets", i, len(q))
			}
		}
	})
}

// FuzzCoalescerBytes takes packets that nobody built: it must not fail, and
// returns what it doesn't join as it was.
func FuzzCoalescerBytes(f *testing.F) {
	for _, s := range []sample{tcp4, udp4, tcp6, udp6} {
		s.payload = 20
		p, _ := s.build()
		f.Add(p, uint16(1450))
		f.Add(p, uint16(60))
	}
	f.Fuzz(func(t *testing.T, b []byte, mtu uint16) {
		c := encap.NewCoalescer(encap.InnerMTU(mtu))
		p := slices.Clone(b)
		for range 3 {
			c.Add(p)
		}
		total := 0
		for i := range c.Len() {
			out := c.Packet(i)
			total += out.Packets
			if len(out.Parts) != out.Packets || len(out.Parts) > 0 && len(out.Parts[0]) != len(b) {
				t.Fatalf("%+v", out)
			}
			if out.Offload.GSO == encap.GSONone && !slices.Equal(out.Parts[0], b) {
				t.Fatal("a lone packet was changed")
			}
		}
		if total != 3 {
			t.Fatalf("%d packets", total)
		}
	})
}

func TestCoalescerNoAllocation(t *testing.T) {
	for name, batch := range benchBatches() {
		c := encap.NewCoalescer(coalesceMTU)
		if n := testing.AllocsPerRun(10, func() { batch.run(c) }); n != 0 {
			t.Errorf("%s allocates %v times", name, n)
		}
	}
}

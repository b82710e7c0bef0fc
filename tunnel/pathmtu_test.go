package tunnel

import (
	"bytes"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"uvxlan/encap"
	"uvxlan/tunnel/batch"
	"uvxlan/tunnel/internal/testhost"
	"uvxlan/tunnel/offload"
)

// withoutDF clears an IPv4 packet's DF flag, withDF sets it.
func withoutDF(p encap.IPv4) encap.IPv4 { return flagged(p, 0) }
func withDF(p encap.IPv4) encap.IPv4    { return flagged(p, 0x40) }

func flagged(p encap.IPv4, flags byte) encap.IPv4 {
	p[6] = flags
	p.UpdateChecksum()
	return p
}

// udpSuperpacket is how a kernel hands over what is cut into datagrams of size.
func udpSuperpacket(size int) encap.Offload {
	return encap.Offload{NeedsChecksum: true, ChecksumStart: 20, ChecksumOffset: 6, GSO: encap.GSOUDP, SegmentSize: uint16(size), HeaderLen: 28}
}

// A packet that must not be fragmented and is too long for the path is refused, and
// its sender told the MTU. All others are sent.
func TestOutboundRefusesWhatIsTooBigForThePath(t *testing.T) {
	const src, dst, src6, dst6 = "10.0.1.9", "10.0.9.9", "fd00:0:0:1::9", "fd00:0:0:9::9"
	udp := func(length int) encap.IPv4 { return testhost.UDPPacket(src, dst, length-28) }
	tcp := func(length int) encap.IPv4 { return testhost.TCPPacket(src, dst, 1, length-52) }
	without := func(c *Config, a netip.Addr) {
		for i := range c.Link.Addresses {
			if c.Link.Addresses[i].Is4() == a.Is4() {
				c.Link.Addresses[i] = c.Link.Addresses[(i+1)%2]
			}
		}
	}
	for _, c := range []struct {
		name    string
		limit   int // of the inner packet; 0: not known
		packet  []byte
		offload encap.Offload
		told    int // MTU; 0: it is sent
		dropped uint64
		mute    netip.Addr // no address of this family to tell from
	}{
		{name: "unknown", packet: withDF(udp(9000))},
		{name: "fits", limit: 1350, packet: withDF(udp(1350))},
		{name: "a byte too long", limit: 1350, packet: withDF(udp(1351)), told: 1350, dropped: 1},
		{name: "may be fragmented", limit: 1350, packet: withoutDF(udp(1450))},
		{name: "tiny path", limit: 20, packet: withDF(udp(69)), told: 68, dropped: 1},
		{name: "tiny path, tiny packet", limit: 20, packet: withDF(udp(68))},
		{name: "TCP segments fit", limit: 1350, packet: tcp(52 + 10*1298), offload: testhost.Superpacket(1298)},
		{name: "TCP segments too long", limit: 1350, packet: tcp(52 + 9*1299 + 1), offload: testhost.Superpacket(1299), told: 1350, dropped: 10},
		{name: "TCP segments that may be fragmented", limit: 1350, packet: withoutDF(tcp(52 + 9*1398)), offload: testhost.Superpacket(1398)},
		{name: "a lone segment, shorter than the others would be", limit: 1350, packet: tcp(1350), offload: testhost.Superpacket(1398)},
		{name: "UDP segments fit", limit: 1350, packet: withDF(udp(28 + 3*1322)), offload: udpSuperpacket(1322)},
		{name: "UDP segments too long", limit: 1350, packet: withDF(udp(28 + 3*1323)), offload: udpSuperpacket(1323), told: 1350, dropped: 3},
		{name: "IPv6 fits", limit: 1350, packet: udp6(src6, dst6, 1302)},
		{name: "IPv6 too long", limit: 1350, packet: udp6(src6, dst6, 1303), told: 1350, dropped: 1},
		{name: "IPv6 on a path of less than 1280", limit: 1000, packet: udp6(src6, dst6, 1232)},
		{name: "IPv6 too long for any path", limit: 1000, packet: udp6(src6, dst6, 1233), told: 1280, dropped: 1},
		{name: "nobody to tell from", limit: 1350, packet: withDF(udp(1450)), mute: netip.MustParseAddr("10.0.1.0")},
		{name: "nobody to tell from by IPv6", limit: 1350, packet: udp6(src6, dst6, 1400), mute: netip.MustParseAddr("fd00::1")},
	} {
		t.Run(c.name, func(t *testing.T) {
			a := newNodeOn(t, testhost.NewMemoryDevice(t, 1, offload.All), 1, testhost.FreePort(t), offload.All, func(config *Config) {
				if c.mute.IsValid() {
					without(config, c.mute)
				}
			})
			defer a.Close()
			peer6 := Peer{netip.MustParsePrefix("fd00:0:0:9::/64"), testPeer9.Underlay, testPeer9.MAC}
			addPeers(t, a, testPeer9, peer6)
			to := a.destination(testPeer9.Underlay)
			if c.limit > 0 {
				to.SetMaxDatagram(c.limit + encap.FrameHeaderLen)
			}
			if err := a.queue.Write(c.offload, [][]byte{c.packet}); err != nil {
				t.Fatal(err)
			}
			if _, err := a.workers[0].out.drain(); err != nil {
				t.Fatal(err)
			}
			s := a.Stats()
			if c.told == 0 {
				if s.TxDatagrams != uint64(c.offload.Segments(c.packet)) || s.Dropped() != 0 || s.Answers != 0 || s.Fallbacks != 0 {
					t.Errorf("counted %+v", s)
				}
				return
			}
			if s.TxDatagrams != 0 || s.Drop(DropTooBig) != c.dropped || s.Dropped() != c.dropped || s.Answers != 1 {
				t.Errorf("counted %+v", s)
			}
			if dropped := a.Traffic(testPeer9.Subnet).TxDropped + a.Traffic(peer6.Subnet).TxDropped; dropped != c.dropped {
				t.Errorf("%d dropped of the peers", dropped)
			}
			want := make([]byte, encap.MaxICMPLen)
			var n int
			if c.packet[0]>>4 == 6 {
				n = encap.ICMPv6PacketTooBig(want, c.packet, netip.MustParseAddr("fd00::1"), encap.InnerMTU(c.told))
			} else {
				n = encap.ICMPFragmentationNeeded(want, c.packet, netip.MustParseAddr("10.0.1.0"), encap.InnerMTU(c.told))
			}
			if got, _ := a.queue.Receive(t); !bytes.Equal(got, want[:n]) {
				t.Errorf("the answer is\n% x, want\n% x", got, want[:n])
			}
		})
	}
}

// Refusing takes no memory from the heap either, and the answers are bounded.
func TestOutboundRefusesWithoutAllocating(t *testing.T) {
	q := loops()["TCP superpackets"]
	w := newLoop(t, q)
	w.out.table.load().lookup(netip.MustParseAddr("10.0.1.9")).to.SetMaxDatagram(1350 + encap.FrameHeaderLen)
	const rounds = 100
	if n := testing.AllocsPerRun(rounds, func() {
		if _, err := w.out.drain(); err != nil {
			t.Fatal(err)
		}
	}); n != 0 {
		t.Errorf("%v allocations a batch", n)
	}
	var s Stats
	w.total.addTo(&s)
	segments := q.offload.Segments(q.packets[0])
	if s.Drop(DropTooBig) != uint64((rounds+1)*len(q.packets)*segments) || s.TxDatagrams != 0 || s.Answers < icmpBurst-1 {
		t.Errorf("counted %+v", s)
	}
}

// paths are destinations and the MTUs of the paths to them.
type paths struct {
	*mtuFollower
	all   []*batch.Destination
	mtus  map[netip.Addr]encap.OuterMTU
	asked []netip.Addr
	heard []netip.Addr // of which the MTU changed
	log   strings.Builder
}

func newPaths(n int) *paths {
	p := &paths{mtus: map[netip.Addr]encap.OuterMTU{}}
	for i := range n {
		a := netip.AddrFrom4([4]byte{192, 0, byte(i >> 8), byte(i)})
		p.mtus[a] = 1500
		d := batch.NewDestination(netip.AddrPortFrom(a, 4789))
		updateMTU(d, func(netip.Addr) encap.OuterMTU { return 1500 })
		p.all = append(p.all, d)
	}
	p.mtuFollower = &mtuFollower{
		changed: func(a netip.Addr) { p.heard = append(p.heard, a) },
		ask: func(a netip.Addr) encap.OuterMTU {
			p.asked = append(p.asked, a)
			return p.mtus[a]
		},
		destinations: func() []*batch.Destination { return p.all }, device: 1450,
		log: slog.New(slog.NewTextHandler(&p.log, nil)), told: map[*batch.Destination]encap.InnerMTU{},
	}
	return p
}

// use begins a packet to a destination.
func (p *paths) use(t *testing.T, d *batch.Destination) {
	t.Helper()
	b, err := batch.NewUDP(batch.UDPConfig{IPv4: []int{-1}})
	testhost.Must(t, err)
	b.Begin(d, nil, 0, 0, 1, 100)
	testhost.Must(t, b.Close())
}

// lookAndLog looks, and returns how many paths were asked for and what was logged.
func (p *paths) lookAndLog() (asked int, log string) {
	p.asked = nil
	p.log.Reset()
	p.look()
	return len(p.asked), p.log.String()
}

// Only paths in use are asked for, and those that are known to be narrow, until they
// no longer are.
func TestPathMTUFollowsPathsInUse(t *testing.T) {
	p := newPaths(3)
	d := p.all[1]
	a := d.AddrPort().Addr()
	p.mtus[a] = 1400
	if asked, log := p.lookAndLog(); asked != 0 || log != "" || innerMTU(d) != 1450 {
		t.Errorf("unused: %d asked, MTU %d, log %q", asked, innerMTU(d), log)
	}
	p.use(t, d)
	if asked, log := p.lookAndLog(); asked != 1 || p.asked[0] != a || innerMTU(d) != 1350 ||
		!strings.Contains(log, `msg="path MTU fell" peer=192.0.0.1 mtu=1350 device=1450`) {
		t.Errorf("used: %v asked, MTU %d, log %q", p.asked, innerMTU(d), log)
	}
	if asked, log := p.lookAndLog(); asked != 1 || log != "" {
		t.Errorf("narrow: %v asked, log %q", p.asked, log)
	}
	if !slices.Equal(p.heard, []netip.Addr{a}) {
		t.Errorf("after one change of %s, %s are told", a, p.heard)
	}
	p.mtus[a] = 0 // no route
	if asked, log := p.lookAndLog(); asked != 1 || innerMTU(d) < 1<<16 || !strings.Contains(log, `"path MTU rose" peer=192.0.0.1 mtu=1450`) {
		t.Errorf("unknown: %v asked, MTU %d, log %q", p.asked, innerMTU(d), log)
	}
	if !slices.Equal(p.heard, []netip.Addr{a, a}) {
		t.Errorf("after two changes of %s, %s are told", a, p.heard)
	}
	if asked, log := p.lookAndLog(); asked != 0 || log != "" || len(p.told) != 0 {
		t.Errorf("wide: %v asked, log %q, %d remembered", p.asked, log, len(p.told))
	}
}

// A look asks for so many paths and no more, all get their turn, and the log stays
// short.
func TestPathMTUHasABudget(t *testing.T) {
	const n = 2*mtuBudget + 7
	p := newPaths(n)
	for i, d := range p.all {
		p.use(t, d)
		p.mtus[d.AddrPort().Addr()] = encap.OuterMTU(1300 + i%10)
	}
	total := 0
	for i, want := range []int{mtuBudget, mtuBudget, 7, mtuBudget} {
		asked, log := p.lookAndLog()
		if asked != want {
			t.Errorf("look %d asked for %d paths", i, asked)
		}
		if total += asked; i == 3 {
			break
		}
		lines := min(want, mtuLines) + 1
		if more := fmt.Sprintf("more_peers=%d", want-mtuLines); strings.Count(log, "\n") != lines || !strings.Contains(log, more) {
			t.Errorf("look %d logged %q", i, log)
		}
	}
	for i, d := range p.all {
		if want := encap.InnerMTU(1250 + i%10); innerMTU(d) != want {
			t.Fatalf("destination %d has MTU %d, want %d", i, innerMTU(d), want)
		}
	}
	// What is gone isn't remembered.
	p.all = p.all[:1]
	p.lookAndLog()
	if len(p.told) != 1 {
		t.Errorf("%d remembered", len(p.told))
	}
}

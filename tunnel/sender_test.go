package tunnel

import (
	"bytes"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"uvxlan/encap"
	"uvxlan/tunnel/device"
	"uvxlan/tunnel/internal/family"
	"uvxlan/tunnel/internal/testhost"
	"uvxlan/tunnel/offload"
)

// senderPair is a sender and what its peer receives, over loopback.
func senderPair(t testing.TB, segment bool) (*sender, *entry, *net.UDPConn) {
	t.Helper()
	c, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	fd, err := udpSocket(false)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		c.Close()
		unix.Close(fd)
	})
	to := netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), uint16(c.LocalAddr().(*net.UDPAddr).Port))
	return newSender(fd, false, segment), &entry{to: makeSockaddr(to)}, c
}

func expect(t *testing.T, c *net.UDPConn, want [][]byte) {
	t.Helper()
	buf := make([]byte, device.MaxPacket)
	for i, w := range want {
		if err := c.SetReadDeadline(time.Now().Add(testhost.Patience)); err != nil {
			t.Fatal(err)
		}
		n, err := c.Read(buf)
		if err != nil || !bytes.Equal(buf[:n], w) {
			t.Fatalf("datagram %d: got %d bytes, want %d, the same: %t, %v", i, n, len(w), bytes.Equal(buf[:n], w), err)
		}
	}
}

// datagrams makes datagrams of the given sizes; every second one lies behind
// the one before in memory, as packets in the arena do.
func datagrams(sizes ...int) (all [][]byte) {
	arena := make([]byte, 0, 1<<20)
	for i, n := range sizes {
		if i%2 == 0 {
			arena = append(arena, 0)
		}
		at := len(arena)
		for j := range n {
			arena = append(arena, byte(i+j))
		}
		all = append(all, arena[at:len(arena):len(arena)])
	}
	return all
}

func TestSenderRuns(t *testing.T) {
	hundred := make([]int, 100)
	for i := range hundred {
		hundred[i] = 64
	}
	for _, c := range []struct {
		name     string
		sizes    []int
		ecn      []uint8
		messages uint64 // with segmentation
	}{
		{"one", []int{100}, nil, 1},
		{"equal", []int{100, 100, 100, 100}, nil, 1},
		{"last is shorter", []int{100, 100, 60, 60, 100}, nil, 3},
		{"longer starts a new run", []int{60, 100, 100}, nil, 2},
		{"ECN differs", []int{100, 100, 100}, []uint8{0, 2, 2}, 2},
		{"more than a run takes", hundred, nil, 2},
		{"more bytes than a run takes", []int{30000, 30000, 30000}, nil, 2},
	} {
		for _, segment := range []bool{true, false} {
			t.Run(c.name, func(t *testing.T) {
				s, to, conn := senderPair(t, segment)
				want := datagrams(c.sizes...)
				for i, d := range want {
					ecn := uint8(0)
					if c.ecn != nil {
						ecn = c.ecn[i]
					}
					s.add(to, ecn, d[:len(d)/3], d[len(d)/3:])
				}
				var got tally
				s.send(&got)
				if !segment {
					c.messages = uint64(len(want))
				}
				if got.dropped || got.messages != c.messages {
					t.Errorf("counted %+v, want %d messages", got, c.messages)
				}
				expect(t, conn, want)
			})
		}
	}
}

// What the kernel refuses as a run goes out as single datagrams, and its peer
// gets no run again.
func TestSenderFallsBack(t *testing.T) {
	s, to, conn := senderPair(t, true)
	want := datagrams(1000, 1000, 1000, 999)
	for _, d := range want {
		s.add(to, 2, d[:50], d[50:])
	}
	s.finish(0)
	var got tally
	s.refused(&s.runs[0], s.headers[0].Hdr, unix.EIO, &got)
	if got.dropped || got.fallbacks != 1 {
		t.Errorf("counted %+v", got)
	}
	expect(t, conn, want)
	s.messages, s.pieces = 0, 0
	for _, d := range want {
		s.add(to, 0, d, nil)
	}
	if s.messages != len(want) {
		t.Errorf("%d datagrams are %d messages after the refusal", len(want), s.messages)
	}
	s.send(&got)
	expect(t, conn, want)
}

// A run whose single datagrams fail as well was not refused for being one: the
// peer keeps its runs for when the fault is over.
func TestSenderKeepsRunsThroughPassingFault(t *testing.T) {
	s, _, _ := senderPair(t, true)
	nowhere := &entry{to: makeSockaddr(netip.MustParseAddrPort("255.255.255.255:9"))}
	for _, d := range datagrams(100, 100, 100) {
		s.add(nowhere, 0, d, nil)
	}
	s.finish(0)
	var got tally
	s.refused(&s.runs[0], s.headers[0].Hdr, unix.EINVAL, &got)
	if nowhere.plain.Load() || got.fallbacks != 0 || got.drops[DropSend] != 3 {
		t.Errorf("no more runs: %t, counted %+v", nowhere.plain.Load(), got)
	}
}

func TestSenderDropsWhatCannotGo(t *testing.T) {
	s, to, conn := senderPair(t, true)
	nowhere := &entry{to: makeSockaddr(netip.MustParseAddrPort("255.255.255.255:9"))} // without SO_BROADCAST: EACCES
	d := datagrams(100, 200, 200, 300)
	s.add(to, 0, d[0], nil)
	s.add(nowhere, 0, d[1], nil)
	s.add(nowhere, 0, d[2], nil)
	s.add(to, 0, d[3], nil)
	var got tally
	s.send(&got)
	if got.drops[DropSend] != 2 {
		t.Errorf("counted %+v", got)
	}
	expect(t, conn, [][]byte{d[0], d[3]})
}

func TestSegmentationProbe(t *testing.T) {
	for f := range family.Count {
		if err := probeSegmentation(f); err != nil {
			t.Errorf("this kernel's segmentation is taken for broken, family %d: %v", f, err)
		}
	}
}

// One lost datagram doesn't tell against the kernel.
func TestSegmentationProbeTriesAgain(t *testing.T) {
	for _, c := range []struct {
		lost, attempts int
		works          bool
	}{{0, 1, true}, {2, 3, true}, {3, 3, false}} {
		attempts := 0
		works := segmentationWorks(func() error {
			if attempts++; attempts <= c.lost {
				return unix.ETIMEDOUT
			}
			return nil
		})
		if works != c.works || attempts != c.attempts {
			t.Errorf("%d lost: it works: %t after %d attempts", c.lost, works, attempts)
		}
	}
}

// The probe sees the length and the checksum of each segment of a run.
func TestSegmentationProbeSeesHeaders(t *testing.T) {
	data := probeData()
	for f := range family.Count {
		for _, c := range []struct {
			name        string
			length, sum uint16
			seen        bool
		}{
			{"right", 0, 0, true},
			{"other length", 1, 0, false},
			{"other checksum", 0, 1, false},
		} {
			p, err := newProbe(f)
			if err != nil {
				t.Fatal(err)
			}
			sums := p.sums(data[:probeSize])
			for i := range sums {
				sums[i] += c.sum
			}
			if err := p.expect(probeLength+c.length, sums); err != nil {
				t.Fatal(err)
			}
			if err := p.exchange(data, controlSegment(probeSize)); (err == nil) != c.seen {
				t.Errorf("family %d, %s: %v", f, c.name, err)
			}
			p.close()
		}
	}
	for segment := range slices.Chunk(data, probeSize) {
		if encap.Checksum(segment, 0) != encap.Checksum(data[:probeSize], 0) {
			t.Error("the datagrams' sums differ")
		}
	}
	if bytes.Equal(data[:probeSize], data[probeSize:2*probeSize]) {
		t.Error("the datagrams are the same")
	}
}

func TestParseControl(t *testing.T) {
	gro := controlInt(unix.IPPROTO_UDP, unix.UDP_GRO, 1400)
	tos := controlInt(unix.IPPROTO_IP, unix.IP_TOS, 3)
	class := controlInt(unix.IPPROTO_IPV6, unix.IPV6_TCLASS, 2)
	other := controlInt(unix.SOL_SOCKET, 99, 7)
	for _, c := range []struct {
		name    string
		control []byte
		want    ancillary
	}{
		{"none", nil, ancillary{}},
		{"both", append(bytes.Clone(gro), tos...), ancillary{3, 1400}},
		{"other order and one more", append(append(bytes.Clone(other), class...), gro...), ancillary{2, 1400}},
		{"cut off", gro[:10], ancillary{}},
		{"length beyond the end", gro[:unix.SizeofCmsghdr+2], ancillary{}},
	} {
		if got := parseControl(c.control); got != c.want {
			t.Errorf("%s: %+v, want %+v", c.name, got, c.want)
		}
	}
}

func TestOffloadNames(t *testing.T) {
	for _, o := range []offload.Set{0, offload.GSO, offload.TSO | offload.UDP, offload.All} {
		if got, err := offload.Parse(o.String()); err != nil || got != o {
			t.Errorf("%s: parsed as %s, %v", o, got, err)
		}
	}
	if _, err := offload.Parse("gso,warp"); err == nil {
		t.Error("an unknown name was accepted")
	}
}

package tunnel

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"uvxlan/encap"
	"uvxlan/tunnel/device"
	"uvxlan/tunnel/internal/flowlimit"
	"uvxlan/tunnel/internal/testhost"
	"uvxlan/tunnel/link"
	"uvxlan/tunnel/offload"
)

// unfilled leaves of a UDP packet's checksum what a kernel does.
func unfilled(p encap.IPv4) encap.IPv4 {
	binary.BigEndian.PutUint16(p[26:], encap.Fold(p.PseudoHeaderSum(encap.ProtoUDP, len(p.Payload()))))
	return p
}

// sendUnsplit sends as one frame a superpacket of UDP, whose datagrams have size
// bytes of payload, as another kernel on this machine does: the segment size is that
// of the datagrams inside.
func (w *wire) sendUnsplit(t testing.TB, header encap.FrameHeader, packet []byte, size int) {
	t.Helper()
	control := make([]byte, unix.CmsgSpace(2))
	binary.NativeEndian.PutUint64(control, uint64(unix.CmsgLen(2)))
	binary.NativeEndian.PutUint32(control[8:], unix.IPPROTO_UDP)
	binary.NativeEndian.PutUint32(control[12:], unix.UDP_SEGMENT)
	binary.NativeEndian.PutUint16(control[16:], uint16(size))
	if _, _, err := w.WriteMsgUDP(append(header[:], packet...), control, w.to); err != nil {
		t.Fatal(err)
	}
}

func TestRouterTakesUnsplitUDP(t *testing.T) {
	const size, payload = 1200, 20*1200 - 5
	header := encap.MakeFrameHeader(testVNI, testMAC(1), testMAC(9), encap.EtherTypeIPv4)
	t.Run("whole", func(t *testing.T) {
		a := withAllOffloads(t, 1, testhost.FreePort(t))
		addPeers(t, a, testPeer9)
		w := newWire(t, 9, a)
		for range 3 {
			sent := unfilled(testhost.UDPPacket("10.0.9.1", "10.0.1.9", payload))
			w.sendUnsplit(t, header, sent, size)
			got, o := a.queue.Receive(t)
			want := encap.Offload{
				NeedsChecksum: true, ChecksumStart: 20, ChecksumOffset: 6,
				GSO: encap.GSOUDP, SegmentSize: size, HeaderLen: 28,
			}
			if !bytes.Equal(got, sent) || o != want {
				t.Fatalf("the packet is unchanged: %t, offload %+v, want %+v", bytes.Equal(got, sent), o, want)
			}
		}
		awaitTraffic(t, a, testPeer9, PeerTraffic{RxPackets: 60, RxBytes: 3 * (payload + 28)})
		waitStats(t, a, func(s Stats) bool {
			return s.RxDatagrams == 60 && s.RxMessages == 3 && s.RxPackets == 3 && s.Dropped() == 0
		})
	})
	t.Run("cut", func(t *testing.T) {
		a := newNodeOn(t, testhost.NewMemoryDevice(t, 1, offload.All&^offload.UDP), 1, testhost.FreePort(t), offload.All, nil)
		a.run(t)
		addPeers(t, a, testPeer9)
		sent := testhost.UDPPacket("10.0.9.1", "10.0.1.9", payload)
		content := bytes.Clone(sent[28:])
		newWire(t, 9, a).sendUnsplit(t, header, unfilled(sent), size)
		for len(content) > 0 {
			got, o := a.queue.Receive(t)
			n := min(size, len(content))
			if state, _, _ := encap.TransportChecksum(got); state != encap.ChecksumGood || o != (encap.Offload{}) ||
				!bytes.Equal(got[28:], content[:n]) {
				t.Fatalf("%d bytes, checksum %s, offload %+v", len(got), state, o)
			}
			content = content[n:]
		}
	})
}

// handshake is a SYN-ACK that announces an MSS.
func handshake(src, dst string, mss uint16) encap.IPv4 {
	p := testhost.TCPPacket(src, dst, 1, 0)
	p[33] = 0x12
	copy(p[40:], []byte{2, 4, byte(mss >> 8), byte(mss), 1, 1, 1, 1, 1, 1, 1, 1})
	return p
}

// reversed has a packet go the other way.
func reversed(p encap.IPv4) encap.IPv4 {
	for i := range 4 {
		p[12+i], p[16+i] = p[16+i], p[12+i]
	}
	for i := range 2 {
		p[20+i], p[22+i] = p[22+i], p[20+i]
	}
	p.UpdateChecksum()
	return p
}

// A container whose MTU is below the device's gets segments that it can take.
func TestRouterCutsUnsplitTCPByFlow(t *testing.T) {
	data := testhost.TCPPacket("10.0.9.1", "10.0.1.9", 7, 30000)
	header := encap.MakeFrameHeader(testVNI, testMAC(1), testMAC(9), encap.EtherTypeIPv4)
	tooLong := make([]byte, encap.MaxICMPLen)
	tooLong = tooLong[:encap.ICMPFragmentationNeeded(tooLong, data, netip.MustParseAddr("10.0.1.1"), 1300)]
	for _, tt := range []struct {
		name string
		told []byte
		mtu  int
	}{
		{"nothing told", testhost.UDPPacket("10.0.1.9", "10.0.9.1", 7), 1450},
		{"handshake", reversed(handshake("10.0.9.1", "10.0.1.9", 1260)), 1300},
		{"ICMP error", tooLong, 1300},
	} {
		t.Run(tt.name, func(t *testing.T) {
			a := withAllOffloads(t, 1, testhost.FreePort(t))
			addPeers(t, a, testPeer9)
			w := newWire(t, 9, a)
			a.queue.Send(t, tt.told)
			w.receive(t) // it has passed
			w.send(t, header, data)
			got, o := a.queue.Receive(t)
			if !bytes.Equal(got, data) || o != testhost.Superpacket(tt.mtu-52) {
				t.Errorf("the packet is unchanged: %t, offload %+v", bytes.Equal(got, data), o)
			}
			segments := (30000 + tt.mtu - 53) / (tt.mtu - 52)
			awaitTraffic(t, a, testPeer9, PeerTraffic{
				TxPackets: 1, TxBytes: uint64(len(tt.told)), RxPackets: uint64(segments), RxBytes: 30052,
			})
			waitStats(t, a, func(s Stats) bool { return s.RxDatagrams == uint64(segments) && s.RxPackets == 1 })
		})
	}
}

// losingQueue refuses superpackets and loses all that is written.
type losingQueue struct {
	device.Queue
	written int
}

func (q *losingQueue) Write(o encap.Offload, _ [][]byte) error {
	if o.GSO != encap.GSONone {
		return unix.EINVAL
	}
	q.written++
	return nil
}

func (q *losingQueue) Flush() (lost int) {
	lost, q.written = q.written, 0
	return lost
}

// refusingWrites takes nothing.
type refusingWrites struct{ device.Queue }

func (refusingWrites) Write(encap.Offload, [][]byte) error { return unix.EIO }

// What a device loses of a superpacket's segments is more than one packet.
func TestInboundCountsWhatTheDeviceLoses(t *testing.T) {
	for name, q := range map[string]device.Queue{"flushed": &losingQueue{}, "refused": refusingWrites{}} {
		t.Run(name, func(t *testing.T) {
			var total counters
			in := newInbound(&Config{Link: link.Config{MTU: 1450}}, openMemory(t), 4789, q, offload.All, newPeerTable(), flowlimit.New(1450), nil, &total)
			in.gather(testhost.TCPPacket("10.0.9.1", "10.0.1.9", 7, 10*1398))
			in.write()
			if in.counts.packets != 0 || in.counts.datagrams != 9 || in.counts.drops[DropDevice] != 10 {
				t.Errorf("counted %d packets, %d more datagrams and %d drops", in.counts.packets, in.counts.datagrams, in.counts.drops[DropDevice])
			}
		})
	}
}

// A kernel on the same machine leaves checksums to a NIC that there isn't. A device
// that takes packets only as they are to be gets them filled in.
func TestPlainDeviceGetsChecksums(t *testing.T) {
	a := newNodeOn(t, testhost.NewMemoryDevice(t, 1, 0).Plain(), 1, testhost.FreePort(t), 0, nil)
	a.run(t)
	addPeers(t, a, testPeer9)
	w := newWire(t, 9, a)
	header := encap.MakeFrameHeader(testVNI, testMAC(1), testMAC(9), encap.EtherTypeIPv4)
	for _, want := range []encap.IPv4{
		testhost.TCPPacket("10.0.9.9", "10.0.1.9", 1, 0),
		testhost.TCPPacket("10.0.9.9", "10.0.1.9", 1, 100),
		testhost.UDPPacket("10.0.9.9", "10.0.1.9", 100),
	} {
		packet, offset := slices.Clone(want), 16
		if want.Protocol() == encap.ProtoUDP {
			offset = 6
		}
		segment := packet.Payload()
		binary.BigEndian.PutUint16(segment[offset:], encap.Fold(packet.PseudoHeaderSum(packet.Protocol(), len(segment))))
		if state, _, _ := encap.TransportChecksum(packet); state != encap.ChecksumPartial {
			t.Fatalf("the checksum is %s", state)
		}
		w.send(t, header, packet)
		got, o := a.queue.Receive(t)
		if state, _, _ := encap.TransportChecksum(got); o != (encap.Offload{}) || state != encap.ChecksumGood {
			t.Errorf("the device got %x with %+v, checksum %s", got, o, state)
		}
	}
	waitStats(t, a, func(s Stats) bool { return s.RxPackets == 3 && s.Dropped() == 0 })
}

package onlink

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"uvxlan/encap"
	"uvxlan/tunnel/batch"
	"uvxlan/tunnel/internal/testhost"
	"uvxlan/tunnel/internal/vnet"
)

const noSocket = -1 // refuses every frame

// onLink is a host that is reached by a link.
func onLink(n byte) *Hop {
	h := &Hop{addr: netip.AddrFrom4([4]byte{127, 0, 0, n})}
	h.link.Store(newNeighbour(int(n), mac(0xa0), mac(0xb0+n)))
	return h
}

func frameOf(h *Hop, packet []byte, o encap.Offload) Frame {
	return Frame{Hop: h, Via: h.link.Load(), Buffer: slices.Concat(make([]byte, encap.FrameHeaderLen), packet), Offload: o}
}

func newSender(t *testing.T, joinUDP bool) *Sender {
	t.Helper()
	d, err := NewSender(noSocket, joinUDP, 1450)
	testhost.Must(t, err)
	t.Cleanup(func() { testhost.Must(t, d.Close()) })
	return d
}

// numberedPacket is one of a flow's, whose IDs count up.
func numberedPacket(i, size int) encap.IPv4 {
	p := testhost.UDPPacket("10.0.1.9", "10.0.2.9", size)
	p[5] = byte(i)
	p.UpdateChecksum()
	return p
}

// message is what a Sender passes to the kernel.
type message struct {
	to          *batch.Destination
	vnet, frame []byte
}

func TestFramed(t *testing.T) {
	tcp := testhost.TCPPacket("10.0.1.9", "10.0.2.9", 1, 3000)
	for _, c := range []struct {
		name   string
		packet []byte
		in     encap.Offload
		want   encap.Offload
	}{
		{"complete", tcp, encap.Offload{}, encap.Offload{}},
		{"complete with odd lengths", tcp, encap.Offload{HeaderLen: 99}, encap.Offload{}},
		{
			"checksum", tcp, encap.Offload{NeedsChecksum: true, ChecksumStart: 20, ChecksumOffset: 16},
			encap.Offload{NeedsChecksum: true, ChecksumStart: 34, ChecksumOffset: 16},
		},
		{
			"TCP with options", tcp, encap.Offload{NeedsChecksum: true, ChecksumStart: 20, ChecksumOffset: 16, GSO: encap.GSOTCPv4 | encap.GSOECN, SegmentSize: 1000, HeaderLen: 1},
			encap.Offload{NeedsChecksum: true, ChecksumStart: 34, ChecksumOffset: 16, GSO: encap.GSOTCPv4 | encap.GSOECN, SegmentSize: 1000, HeaderLen: 14 + 20 + 32},
		},
		{
			"UDP", testhost.UDPPacket("10.0.1.9", "10.0.2.9", 300), encap.Offload{NeedsChecksum: true, ChecksumStart: 20, ChecksumOffset: 6, GSO: encap.GSOUDP, SegmentSize: 100},
			encap.Offload{NeedsChecksum: true, ChecksumStart: 34, ChecksumOffset: 6, GSO: encap.GSOUDP, SegmentSize: 100, HeaderLen: 14 + 28},
		},
	} {
		if got := framed(c.in, c.packet); got != c.want {
			t.Errorf("%s: %+v, want %+v", c.name, got, c.want)
		}
	}
}

func (d *Sender) messages() (all []message) {
	d.flushCoalescer()
	r := d.batch.Flush(1)
	for i := range r.Returned {
		b, to, _ := d.batch.Returned(i, nil)
		all = append(all, message{to, b[:vnet.HeaderLen], b[vnet.HeaderLen:]})
	}
	return all
}

func TestDirectMessages(t *testing.T) {
	e := onLink(2)
	d := newSender(t, false)
	v6 := slices.Concat(make([]byte, 40), []byte("sixty"))
	v6[0], v6[5], v6[6] = 0x60, 5, 59
	tcp := testhost.TCPPacket("10.0.1.9", "10.0.2.9", 1, 3000)
	d.Add(frameOf(e, testhost.UDPPacket("10.0.1.9", "10.0.2.9", 5), encap.Offload{}))
	d.Add(frameOf(e, v6, encap.Offload{}))
	d.Add(frameOf(e, tcp, testhost.Superpacket(1000)))
	got := d.messages()
	if len(got) != 3 {
		t.Fatalf("%d messages", len(got))
	}
	for i, want := range []struct {
		kind    []byte
		packet  []byte
		offload encap.Offload
	}{
		{[]byte{8, 0}, testhost.UDPPacket("10.0.1.9", "10.0.2.9", 5), encap.Offload{}},
		{[]byte{0x86, 0xdd}, v6, encap.Offload{}},
		{[]byte{8, 0}, tcp, framed(testhost.Superpacket(1000), tcp)},
	} {
		header := slices.Concat([]byte{2, 0, 0, 0, 0, 0xb2, 2, 0, 0, 0, 0, 0xa0}, want.kind)
		if !bytes.Equal(got[i].frame, slices.Concat(header, want.packet)) || got[i].to != e.link.Load().to {
			t.Errorf("message %d: to %p, frame % x", i, got[i].to, got[i].frame[:min(40, len(got[i].frame))])
		}
		vnet := vnet.Header(got[i].vnet)
		if vnet.Offload() != want.offload {
			t.Errorf("message %d: offload %+v, want %+v", i, vnet.Offload(), want.offload)
		}
	}
}

// Datagrams of a size are joined, but not those whose checksum is to be filled
// in deeper than a Coalescer looks, as a container's own tunnel has them.
func TestDirectJoinsUDP(t *testing.T) {
	e := onLink(2)
	plain := encap.Offload{}
	unfilled := encap.Offload{NeedsChecksum: true, ChecksumStart: 20, ChecksumOffset: 6}
	inner := encap.Offload{NeedsChecksum: true, ChecksumStart: 20 + 8 + 8 + 14 + 20, ChecksumOffset: 16}
	for _, c := range []struct {
		name    string
		offload encap.Offload
		want    []encap.Offload
	}{
		{"complete", plain, []encap.Offload{{NeedsChecksum: true, ChecksumStart: 34, ChecksumOffset: 6, GSO: encap.GSOUDP, SegmentSize: 200, HeaderLen: 42}}},
		{"unfilled", unfilled, []encap.Offload{{NeedsChecksum: true, ChecksumStart: 34, ChecksumOffset: 6, GSO: encap.GSOUDP, SegmentSize: 200, HeaderLen: 42}}},
		{"a tunnel's", inner, []encap.Offload{framed(inner, nil), framed(inner, nil)}},
	} {
		d := newSender(t, true)
		for i := range 2 {
			p := numberedPacket(i, 200)
			if c.offload == unfilled {
				binary.BigEndian.PutUint16(p[26:], encap.Fold(p.PseudoHeaderSum(encap.ProtoUDP, 208)))
			}
			d.Add(frameOf(e, p, c.offload))
		}
		var got []encap.Offload
		for _, m := range d.messages() {
			vnet := vnet.Header(m.vnet)
			got = append(got, vnet.Offload())
		}
		if !slices.Equal(got, c.want) {
			t.Errorf("%s: %+v, want %+v", c.name, got, c.want)
		}
	}
}

// A refusal by another worker's batch doesn't take a host off its new link.
func TestHopRefuse(t *testing.T) {
	e := onLink(2)
	old, next := e.link.Load(), newNeighbour(7, mac(1), mac(2))
	e.link.Store(next)
	e.refuse(old, unix.ENETDOWN)
	if e.Direct() != next || e.refusal.Load() != nil {
		t.Error("the new link was taken away")
	}
	e.refuse(next, unix.ENETDOWN)
	if e.Direct() != nil || e.refusal.Load() == nil || !e.used.Load() {
		t.Error("the link stays")
	}
}

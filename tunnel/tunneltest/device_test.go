package tunneltest_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"net/netip"
	"os"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"uvxlan/encap"
	"uvxlan/tunnel"
	"uvxlan/tunnel/device"
	"uvxlan/tunnel/link"
	"uvxlan/tunnel/tunneltest"
	"uvxlan/tunnel/underlay"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func open(t *testing.T, queues int) *tunneltest.Device {
	t.Helper()
	d, err := tunneltest.NewDevice("memory0", queues)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	})
	return d
}

// tcp is a TCP packet from a port, with its checksums.
func tcp(port uint16, payload int) encap.IPv4 {
	p := make([]byte, 40+payload)
	p[0], p[8], p[9], p[32] = 0x45, 64, encap.ProtoTCP, 0x50
	copy(p[12:], []byte{10, 0, 1, 2, 10, 0, 2, 2})
	binary.BigEndian.PutUint16(p[20:], port)
	for i := range payload {
		p[40+i] = byte(i)
	}
	ip := encap.IPv4(p)
	ip.SetTotalLen(len(p))
	ip.UpdateChecksum()
	binary.BigEndian.PutUint16(p[36:], encap.Checksum(p[20:], ip.PseudoHeaderSum(encap.ProtoTCP, 20+payload)))
	return ip
}

func TestSendKeepsFlowsToQueues(t *testing.T) {
	d := open(t, 2)
	buf, queues := make([]byte, device.MaxPacket), map[uint16]int{}
	for port := range uint16(16) {
		for range 2 {
			if err := d.Send(tcp(port, 100)); err != nil {
				t.Fatal(err)
			}
		}
	}
	for i, q := range d.Queues() {
		for {
			n, o, err := q.Read(buf)
			if errors.Is(err, unix.EAGAIN) {
				break
			}
			port := binary.BigEndian.Uint16(buf[20:])
			if before, known := queues[port]; err != nil || known && before != i || o != (encap.Offload{}) || !bytes.Equal(buf[:n], tcp(port, 100)) {
				t.Fatalf("queue %d gave % x with %+v, %v", i, buf[:n], o, err)
			}
			queues[port] = i
		}
	}
	used := map[int]bool{}
	for _, i := range queues {
		used[i] = true
	}
	if len(queues) != 16 || len(used) != 2 {
		t.Errorf("the flows' queues are %v", queues)
	}
	for _, packet := range [][]byte{nil, make([]byte, device.MaxPacket+1)} {
		if d.Send(packet) == nil {
			t.Errorf("%d bytes were sent", len(packet))
		}
	}
}

// What a router writes comes out whole, whatever it leaves to the device.
func TestReceiveFinishesPackets(t *testing.T) {
	d := open(t, 1)
	q := d.Queues()[0]
	write := func(o encap.Offload, parts ...[]byte) {
		t.Helper()
		if err := q.Write(o, parts); err != nil {
			t.Fatal(err)
		}
	}
	receive := func() []byte {
		t.Helper()
		packet, err := d.Receive(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return packet
	}
	plain := tcp(1, 200)
	write(encap.Offload{}, plain[:10], plain[10:60], plain[60:])
	if got := receive(); !bytes.Equal(got, plain) {
		t.Fatalf("the packet is % x", got)
	}

	partial := bytes.Clone(plain)
	binary.BigEndian.PutUint16(partial[36:], encap.Fold(plain.PseudoHeaderSum(encap.ProtoTCP, 220)))
	needs := encap.Offload{NeedsChecksum: true, ChecksumStart: 20, ChecksumOffset: 16}
	write(needs, partial[:50], partial[50:])
	if got := receive(); !bytes.Equal(got, plain) {
		t.Fatalf("the packet is % x", got)
	}
	if err := q.Write(encap.Offload{NeedsChecksum: true, ChecksumStart: 900}, [][]byte{plain}); !errors.Is(err, unix.EINVAL) {
		t.Errorf("a checksum outside of the packet: %v", err)
	}

	super := needs
	super.GSO, super.SegmentSize, super.HeaderLen = encap.GSOTCPv4, 100, 40
	write(super, tcp(1, 250))
	for i, want := range []int{140, 140, 90} {
		got := receive()
		if state, _, _ := encap.TransportChecksum(got); len(got) != want || state != encap.ChecksumGood {
			t.Errorf("segment %d has %d bytes, checksum %s", i, len(got), state)
		}
	}
	if q.Write(super, [][]byte{plain[:30]}) == nil {
		t.Error("half a header was written")
	}
}

func TestReceiveEnds(t *testing.T) {
	d := open(t, 2)
	cause := errors.New("cause")
	ctx, cancel := context.WithCancelCause(t.Context())
	time.AfterFunc(time.Millisecond, func() { cancel(cause) })
	for range 2 { // an ended context stays ended
		if _, err := d.Receive(ctx); !errors.Is(err, cause) {
			t.Fatalf("the error is %v", err)
		}
	}
	go func() {
		if err := d.Queues()[1].Write(encap.Offload{}, [][]byte{tcp(1, 1)}); err != nil {
			t.Error(err)
		}
	}()
	if p, err := d.Receive(t.Context()); err != nil || len(p) != 41 {
		t.Fatalf("after that: % x, %v", p, err)
	}
}

func TestClose(t *testing.T) {
	d := open(t, 2)
	ended := make(chan error)
	go func() {
		_, err := d.Receive(context.Background())
		ended <- err
	}()
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-ended; !errors.Is(err, os.ErrClosed) {
		t.Errorf("Receive: %v", err)
	}
	if err := d.Send(tcp(1, 1)); !errors.Is(err, os.ErrClosed) {
		t.Errorf("Send: %v", err)
	}
	if _, err := d.Receive(t.Context()); !errors.Is(err, os.ErrClosed) {
		t.Errorf("Receive: %v", err)
	}
}

func TestRemove(t *testing.T) {
	d := open(t, 1)
	underlay, err := underlay.Listen(underlay.Config{Address: netip.MustParseAddr("127.0.90.1"), Port: 14789})
	if err != nil {
		t.Fatal(err)
	}
	r, err := tunnel.New(d, underlay, tunnel.Config{MAC: encap.MAC{2}, Link: link.Config{MTU: 1450}})
	if err != nil {
		t.Fatal(err)
	}
	time.AfterFunc(time.Millisecond, func() {
		if err := d.Remove(); err != nil {
			t.Error(err)
		}
	})
	if err := r.Run(t.Context()); !errors.Is(err, device.ErrGone) {
		t.Errorf("Run: %v", err)
	}
	if err := r.Close(); err != nil {
		t.Error(err)
	}
}

package device_test

import (
	"encoding/binary"
	"errors"
	"os"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"uvxlan/encap"
	"uvxlan/tunnel/device"
	"uvxlan/tunnel/internal/testhost"

	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/tun"
	"golang.zx2c4.com/wireguard/tun/tuntest"
)

// channelFar is the far end of wireguard-go's device of channels.
type channelFar struct {
	t *testing.T
	c *tuntest.ChannelTUN
	// gone is closed with the device, which then takes no more.
	gone <-chan struct{}
}

// announcedTUN tells when it is closed.
type announcedTUN struct {
	tun.Device
	gone chan struct{}
}

func (d announcedTUN) Close() error {
	defer close(d.gone)
	return d.Device.Close()
}

func (f channelFar) send(p []byte) error {
	select {
	case f.c.Outbound <- p:
		return nil
	case <-f.gone:
		return os.ErrClosed
	case <-time.After(testhost.Patience):
		return os.ErrDeadlineExceeded
	}
}

func (f channelFar) receive() []byte {
	f.t.Helper()
	for {
		select {
		case p := <-f.c.Inbound:
			if p[9] == testProto {
				return p
			}
		case <-time.After(testhost.Patience):
			f.t.Fatal("no packet from the device")
		}
	}
}

func TestWrapWireGuardConforms(t *testing.T) {
	conform(t, func(t *testing.T) *subject {
		c := tuntest.NewChannelTUN()
		c.Inbound = make(chan []byte, 1<<16)
		gone := make(chan struct{})
		d, err := device.WrapWireGuard(announcedTUN{c.TUN(), gone})
		testhost.Must(t, err)
		return &subject{t: t, device: d, far: channelFar{t, c, gone}, mtu: 1500}
	})
}

// scriptedTUN is a device whose Read gives what is sent to reads.
type scriptedTUN struct {
	reads  chan scriptedRead
	closed chan struct{}
	batch  int
	file   *os.File
	// written is called by Write.
	written func()
	writes  atomic.Int64
}

type scriptedRead struct {
	packets [][]byte
	err     error
}

func newScripted(t *testing.T, batch int) *scriptedTUN {
	t.Helper()
	return &scriptedTUN{reads: make(chan scriptedRead), closed: make(chan struct{}), batch: batch}
}

func (s *scriptedTUN) File() *os.File           { return s.file }
func (s *scriptedTUN) MTU() (int, error)        { return 1500, nil }
func (s *scriptedTUN) Name() (string, error)    { return "scripted", nil }
func (s *scriptedTUN) Events() <-chan tun.Event { return nil }
func (s *scriptedTUN) BatchSize() int           { return s.batch }

func (s *scriptedTUN) Close() error {
	close(s.closed)
	return nil
}

func (s *scriptedTUN) Read(bufs [][]byte, sizes []int, offset int) (int, error) {
	select {
	case <-s.closed:
		return 0, os.ErrClosed
	case r := <-s.reads:
		for i, p := range r.packets {
			sizes[i] = copy(bufs[i][offset:], p)
		}
		return len(r.packets), r.err
	}
}

func (s *scriptedTUN) Write(bufs [][]byte, _ int) (int, error) {
	s.writes.Add(1)
	if s.written != nil {
		s.written()
	}
	return len(bufs), nil
}

func (s *scriptedTUN) give(n uint32) {
	s.reads <- scriptedRead{packets: [][]byte{binary.BigEndian.AppendUint32(nil, n)}}
}

func wrap(t *testing.T, s *scriptedTUN) *subject {
	t.Helper()
	d, err := device.WrapWireGuard(s)
	testhost.Must(t, err)
	t.Cleanup(func() { d.Close() })
	return &subject{t: t, device: d}
}

// collect reads until n packets came or were reported lost.
func (s *subject) collect(n int) (packets []uint32, lost int) {
	s.t.Helper()
	for len(packets)+lost < n {
		switch p, _, err := s.tryRead(testhost.Patience); {
		case errors.Is(err, unix.ENOBUFS):
			lost++
		case err != nil:
			s.t.Fatalf("after %d packets and %d lost: %v", len(packets), lost, err)
		default:
			packets = append(packets, binary.BigEndian.Uint32(p))
		}
	}
	return packets, lost
}

// netstack's Write sends answers before it returns, which the device's reader
// must take: if the worker had to make room for them first, both would wait.
func TestWireGuardWriteThatNeedsItsReader(t *testing.T) {
	dev := newScripted(t, 1)
	s := wrap(t, dev)
	const answers = 4 * device.IntakePackets
	dev.written = func() {
		for i := range uint32(answers) {
			dev.give(i)
		}
	}
	written := make(chan error)
	go func() { written <- s.write(encap.Offload{}, []byte{0x45}) }()
	select {
	case err := <-written:
		testhost.Must(t, err)
	case <-time.After(testhost.Patience):
		t.Fatal("Write waits for its reader, which waits for room")
	}
	packets, lost := s.collect(answers)
	if lost == 0 || len(packets) < device.IntakePackets {
		t.Errorf("%d packets came, %d were lost", len(packets), lost)
	}
	if !slices.IsSorted(packets) {
		t.Errorf("the order is %d", packets)
	}
	dev.written = nil
	dev.give(7)
	if after, lost := s.collect(1); lost != 0 || after[0] != 7 {
		t.Errorf("after that: %d, %d lost", after, lost)
	}
}

// While nothing is written, what the worker hasn't read waits in the device.
func TestWireGuardReaderWaitsForWorker(t *testing.T) {
	dev := newScripted(t, 1)
	s := wrap(t, dev)
	const sent = 4 * device.IntakePackets
	go func() {
		for i := range uint32(sent) {
			dev.give(i)
		}
	}()
	testhost.Await(t, "the queue is full", func() bool {
		return device.Waiting(s.device) == device.IntakePackets
	})
	if packets, lost := s.collect(sent); lost != 0 || packets[sent-1] != sent-1 {
		t.Errorf("%d packets came, %d were lost", len(packets), lost)
	}
}

// A packet that can't be read is no end, nor is a batch with too many segments,
// whose first are delivered.
func TestWireGuardReadErrors(t *testing.T) {
	dev := newScripted(t, 2)
	s := wrap(t, dev)
	packets := [][]byte{{0x45, 1}, {0x45, 2}}
	dev.reads <- scriptedRead{err: errors.New("unsupported virtio GSO type")}
	dev.reads <- scriptedRead{packets, tun.ErrTooManySegments}
	dev.reads <- scriptedRead{packets: [][]byte{{}, {0x45, 3}}}
	for i, want := range []any{unix.EBADMSG, byte(1), byte(2), unix.EBADMSG, byte(3)} {
		p, _, err := s.tryRead(testhost.Patience)
		if code, isError := want.(unix.Errno); isError {
			if !errors.Is(err, code) {
				t.Errorf("read %d: %v, want %v", i, err, code)
			}
		} else if err != nil || p[1] != want {
			t.Errorf("read %d: %x, %v, want %d", i, p, err, want)
		}
	}
	dev.reads <- scriptedRead{err: os.ErrClosed}
	for range 2 {
		if _, _, err := s.tryRead(testhost.Patience); !errors.Is(err, unix.EBADFD) {
			t.Errorf("after the end: %v", err)
		}
	}
}

// What is written goes on in batches of the device's size, and with Flush.
func TestWireGuardWritesInBatches(t *testing.T) {
	dev := newScripted(t, 8)
	s := wrap(t, dev)
	q := s.device.Queues()[0]
	for range 20 {
		testhost.Must(t, q.Write(encap.Offload{}, [][]byte{{0x45}, {1}}))
	}
	if n := dev.writes.Load(); n != 2 {
		t.Errorf("%d batches before device.Flush", n)
	}
	if lost := device.Flush(q); lost != 0 || dev.writes.Load() != 3 {
		t.Errorf("%d batches, %d lost", dev.writes.Load(), lost)
	}
	if lost := device.Flush(q); lost != 0 || dev.writes.Load() != 3 {
		t.Errorf("an empty device.Flush wrote, %d lost", lost)
	}
}

// A device that nobody reads any more closes all the same.
func TestWireGuardCloseWhileFull(t *testing.T) {
	dev := newScripted(t, 1)
	s := wrap(t, dev)
	for i := range uint32(device.IntakePackets) {
		dev.give(i)
	}
	done := make(chan error)
	go func() { done <- s.device.Close() }()
	select {
	case err := <-done:
		testhost.Must(t, err)
	case <-time.After(testhost.Patience):
		t.Fatal("Close waits for a reader that waits for room")
	}
}

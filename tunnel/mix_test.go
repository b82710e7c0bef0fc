package tunnel

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"uvxlan/encap"
	"uvxlan/tunnel/device"
	"uvxlan/tunnel/internal/descriptor"
	"uvxlan/tunnel/internal/testhost"
	"uvxlan/tunnel/offload"
)

// Whatever the offloads and however packets gather in batches: what one device
// hands over arrives at the other's kernel as the packets it stands for, each as
// the plain way makes it and each flow in order.

// mixDatagrams and mixBytes bound what is under way at once to what the
// buffers of sockets hold where an unprivileged process can't enlarge them.
const (
	mixDatagrams = 80
	mixBytes     = 72 << 10
)

// mixVariants are the settings that a mix is tried with.
var mixVariants = []struct {
	name     string
	offloads offload.Set
	refuse   bool // the device refuses the superpackets it promised to take
}{
	{"all offloads", offload.All, false},
	{"without gso", offload.All &^ offload.GSO, false},
	{"without gro", offload.All &^ offload.GRO, false},
	{"without tcp and udp", offload.All &^ (offload.TCP | offload.UDP), false},
	{"without tso and uso", offload.All &^ (offload.TSO | offload.USO), false},
	{"none", 0, false},
	{"device refuses superpackets", offload.All, true},
}

// cable is two nodes, and what is under way between them.
type cable struct {
	ends     [2]*node
	offloads offload.Set
	refuse   bool
	running  bool

	due   map[string][][]byte // by flow, in order
	count int                 // of due
	bytes int
	start [2]counted
	kinds map[encap.GSOType]int // superpackets received
	buf   []byte                // of the packet that is looked at
}

// newCable makes two nodes whose workers the test moves on step by step, which
// makes batches that don't depend on time.
func newCable(t testing.TB, variant int) *cable {
	t.Helper()
	v, port := mixVariants[variant], testhost.FreePort(t)
	c := &cable{
		offloads: v.offloads, refuse: v.refuse,
		kinds: map[encap.GSOType]int{}, buf: make([]byte, device.MaxPacket),
	}
	for i := range c.ends {
		c.ends[i] = newNodeOn(t, testhost.NewMemoryDevice(t, 1, v.offloads), byte(i+1), port, v.offloads, nil)
		t.Cleanup(func() { c.ends[i].Close() })
		if v.refuse {
			in := c.ends[i].workers[0].in
			in.queue = singleQueue{in.queue}
		}
	}
	for i, n := range c.ends {
		far := c.ends[1-i].peer
		far6 := far
		far6.Subnet = netip.PrefixFrom(netip.AddrFrom16([16]byte{0: 0xfd, 7: byte(2 - i)}), 64)
		addPeers(t, n, far, far6)
	}
	return c
}

// run makes the nodes move by themselves.
func (c *cable) run(t *testing.T) {
	t.Helper()
	c.running = true
	for _, n := range c.ends {
		n.run(t)
	}
}

// singleQueue takes no superpackets, as some kernels don't take some.
type singleQueue struct{ device.Queue }

func (q singleQueue) Write(o encap.Offload, parts [][]byte) error {
	if o.GSO != encap.GSONone {
		return unix.EINVAL
	}
	return q.Queue.Write(o, parts)
}

// play passes the mix of a random source and judges what arrives.
func (c *cable) play(t *testing.T, source []byte) {
	t.Helper()
	c.forget(t)
	for m := newMixer(source); len(m.dice) > 0; {
		if m.dice.one(32) {
			c.settle(t)
		}
		c.send(t, m.next())
	}
	c.settle(t)
	c.finish(t)
}

// forget begins anew, and drops what a mix that failed has left.
func (c *cable) forget(t *testing.T) {
	t.Helper()
	c.due, c.count, c.bytes = map[string][][]byte{}, 0, 0
	if !c.running {
		c.advance(t)
	}
	for _, n := range c.ends {
		for c.pending(t, n) != nil {
		}
	}
	c.start = c.counted()
}

// send hands an item over, as segments where superpackets are not wanted.
func (c *cable) send(t *testing.T, it item) {
	t.Helper()
	segments := plainSegments(it.packet, it.offload)
	if c.count+len(segments) > mixDatagrams || c.bytes+len(it.packet) > mixBytes {
		c.settle(t)
	}
	c.count += len(segments)
	c.bytes += len(it.packet)
	for _, p := range segments {
		flow := flowOf(p)
		c.due[flow] = append(c.due[flow], p)
	}
	q := c.ends[it.from-1].queue
	if !c.takes(it.offload, offload.TSO, offload.USO) {
		for _, p := range segments {
			q.Send(t, p)
		}
		return
	}
	if err := q.Write(it.offload, [][]byte{it.packet}); err != nil {
		t.Fatal(err)
	}
}

// takes tells whether a packet may pass a device with these two offloads.
func (c *cable) takes(o encap.Offload, tcp, udp offload.Set) bool {
	switch o.GSO {
	case encap.GSONone:
		return true
	case encap.GSOUDP:
		return c.offloads.Has(udp)
	}
	return c.offloads.Has(tcp)
}

// settle waits until all that was sent has arrived.
func (c *cable) settle(t *testing.T) {
	t.Helper()
	for deadline := time.Now().Add(testhost.Patience); c.count > 0; {
		c.advance(t)
		for _, n := range c.ends {
			for p := c.pending(t, n); p != nil; p = c.pending(t, n) {
				c.judge(t, p)
			}
		}
		if c.count > 0 && time.Now().After(deadline) {
			t.Fatalf("%d packets are missing; %s", c.count, c.counters())
		}
	}
	c.bytes = 0
}

// advance lets the workers do what there is to do.
func (c *cable) advance(t *testing.T) {
	t.Helper()
	if c.running {
		fds := []unix.PollFd{
			{Fd: int32(c.ends[0].queue.FD()), Events: unix.POLLIN},
			{Fd: int32(c.ends[1].queue.FD()), Events: unix.POLLIN},
		}
		wait := unix.NsecToTimespec(int64(time.Second))
		if _, err := descriptor.Poll(fds, &wait); err != nil {
			t.Fatal(err)
		}
		return
	}
	for _, n := range c.ends {
		drained(t, n.workers[0].out.drain)
	}
	for _, n := range c.ends {
		drained(t, n.workers[0].in.drain)
	}
}

func drained(t *testing.T, drain func() (amount, error)) {
	t.Helper()
	for l := some; l != none; {
		var err error
		if l, err = drain(); err != nil {
			t.Fatal(err)
		}
	}
}

// arrival is what a device was given.
type arrival struct {
	packet  []byte
	offload encap.Offload
}

// pending is the next packet that n's device was given, nil for none. It is
// valid until the next call.
func (c *cable) pending(t *testing.T, n *node) *arrival {
	t.Helper()
	length, o, err := n.queue.Read(c.buf)
	if errors.Is(err, unix.EAGAIN) {
		return nil
	}
	if err != nil {
		t.Fatal(err)
	}
	return &arrival{c.buf[:length], o}
}

// judge compares what a packet stands for with what is due.
func (c *cable) judge(t *testing.T, a *arrival) {
	t.Helper()
	c.checkOffload(t, a)
	for i, p := range plainSegments(a.packet, a.offload) {
		flow := flowOf(p)
		queue := c.due[flow]
		if len(queue) == 0 {
			t.Fatalf("segment %d of %+v is of a flow that nothing is due of:\n%s", i, a.offload, head(p))
		}
		if !c.same(queue[0], p, a) {
			t.Fatalf("segment %d of %+v is\n%s\nof %d bytes, and due is\n%s\nof %d",
				i, a.offload, head(p), len(p), head(queue[0]), len(queue[0]))
		}
		c.due[flow] = queue[1:]
		c.count--
	}
}

func head(p []byte) string { return fmt.Sprintf("% x", p[:min(len(p), 80)]) }

// checkOffload judges what the device is told of a packet.
func (c *cable) checkOffload(t *testing.T, a *arrival) {
	t.Helper()
	o := a.offload
	if !o.NeedsChecksum {
		if o != (encap.Offload{}) {
			t.Fatalf("a complete packet with %+v", o)
		}
		return
	}
	field := binary.BigEndian.Uint16(a.packet[o.ChecksumStart+o.ChecksumOffset:])
	if want := plainPseudo(a.packet, o); field != want {
		t.Fatalf("%+v: the checksum field is %04x, the pseudo-header's sum %04x", o, field, want)
	}
	if o.GSO == encap.GSONone {
		return
	}
	c.kinds[o.GSO&^encap.GSOECN]++
	headers := plainHeaders(a.packet, o)
	if int(o.HeaderLen) != headers || headers+int(o.SegmentSize) > mixMTU || !c.takes(o, offload.TCP, offload.UDP) {
		t.Fatalf("%+v with %d bytes of headers, offloads %s", o, headers, c.offloads)
	}
	whole := slices.Clone(a.packet)
	plainLengths(whole)
	if o.GSO == encap.GSOUDP {
		binary.BigEndian.PutUint16(whole[o.ChecksumStart+4:], uint16(len(whole))-o.ChecksumStart)
	}
	if !bytes.Equal(whole, a.packet) {
		t.Fatalf("%+v: wrong lengths or header checksum: %s", o, head(a.packet))
	}
}

// same compares a packet with the one due. IDs that mean nothing, DF being set,
// may count up in a superpacket though they were all the same
// ([encap.Coalescer]).
func (c *cable) same(due, got []byte, a *arrival) bool {
	if bytes.Equal(due, got) {
		return true
	}
	joined := a.offload.GSO != encap.GSONone && bytes.Equal(due[4:6], a.packet[4:6])
	if len(due) != len(got) || due[0] != 0x45 || due[6] != 0x40 || due[7] != 0 || !joined && !c.refuse {
		return false
	}
	got = slices.Clone(got)
	copy(got[4:], due[4:6])
	plainLengths(got)
	return bytes.Equal(due, got)
}

// finish makes sure that nothing more arrives and that nothing was dropped.
func (c *cable) finish(t *testing.T) {
	t.Helper()
	if !c.running {
		c.advance(t)
	}
	c.balance(t)
	for _, n := range c.ends {
		if p := c.pending(t, n); p != nil {
			t.Fatalf("one packet more arrived, %+v:\n%s", p.offload, head(p.packet))
		}
	}
	c.balance(t)
	for i, end := range c.counted() {
		if end.refused != c.start[i].refused {
			t.Fatal(c.counters())
		}
	}
}

// balance waits until each end has counted what the other has sent. Workers count
// after they have sent and delivered, so either may be ahead for a while, and again
// after both seemed to be at the same.
func (c *cable) balance(t *testing.T) {
	t.Helper()
	waitStats(t, c.ends[0], func(Stats) bool {
		now := c.counted()
		return now[0].rx-c.start[0].rx == now[1].tx-c.start[1].tx && now[1].rx-c.start[1].rx == now[0].tx-c.start[0].tx
	})
}

// counted is what a node has counted of datagrams, and of packets that it took
// for wrong.
type counted struct{ tx, rx, refused uint64 }

func (c *cable) counted() (all [2]counted) {
	for i, n := range c.ends {
		s := n.Stats()
		all[i] = counted{s.TxDatagrams, s.RxDatagrams, s.Dropped() + s.Answers}
	}
	return all
}

func (c *cable) counters() string {
	return fmt.Sprintf("counters: %+v and %+v", c.ends[0].Stats(), c.ends[1].Stats())
}

// mixSource is the random source of a seed.
func mixSource(seed uint64, n int) []byte {
	source := make([]byte, n)
	random := rand.NewPCG(seed, 1)
	for i := range source {
		source[i] = byte(random.Uint64())
	}
	return source
}

func TestMix(t *testing.T) {
	for variant, v := range mixVariants {
		t.Run(v.name, func(t *testing.T) {
			c := newCable(t, variant)
			c.run(t)
			for seed := range uint64(2) {
				c.play(t, mixSource(seed, 1000))
			}
		})
	}
}

func TestMixStepByStep(t *testing.T) {
	for variant, v := range mixVariants {
		t.Run(v.name, func(t *testing.T) {
			c := newCable(t, variant)
			for seed := range uint64(3) {
				c.play(t, mixSource(seed, 1500))
			}
			for _, kind := range []encap.GSOType{encap.GSOTCPv4, encap.GSOTCPv6, encap.GSOUDP} {
				if c.takes(encap.Offload{GSO: kind}, offload.TCP, offload.UDP) && !c.refuse && c.kinds[kind] < 10 {
					t.Errorf("only %d superpackets of type %d", c.kinds[kind], kind)
				}
			}
		})
	}
}

// FuzzMix takes the variant from the first byte and the mix from the others.
func FuzzMix(f *testing.F) {
	var cables []*cable
	for variant := range mixVariants {
		cables = append(cables, newCable(f, variant))
		f.Add(append([]byte{byte(variant)}, mixSource(uint64(variant)+10, 300)...))
	}
	// Two superpackets of a flow, a segment with PSH and one more.
	f.Add([]byte("\x00" + "\x00\x00\x1e\x05\x00\x00\x00\x00" + "\x00\x1f\x1e\x05\x00\x00\x00\x00" + "\x00\x1f\x0f" + "\x00\x1f\x2f"))
	f.Fuzz(func(t *testing.T, source []byte) {
		if len(source) > 0 {
			c := cables[int(source[0])%len(cables)]
			c.play(t, source[1:min(len(source), 1200)])
		}
	})
}

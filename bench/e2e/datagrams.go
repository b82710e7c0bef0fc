package e2e

import (
	"context"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"uvxlan/bench/lab"
)

const (
	// burst is how many datagrams are sent one right after the other, and pace the
	// time between bursts: some 4,000 a second, which leave the machine room.
	burst, pace = 8, 2 * time.Millisecond
	// inFlight is how many may be on their way at most. Any queue of the kernel's
	// has room for them, however long the machine lets their readers wait.
	inFlight = 256
	// quiet is how long nothing may come at the end before what is missing is
	// taken for lost.
	quiet = 5 * time.Second
	// receiveBuffer holds more than is ever on its way.
	receiveBuffer = 8 << 20
)

// payloads are the sizes of datagrams, a burst of each in turn. The longest fits
// every container.
var payloads = []int{16, 1200, DualMTU - 48}

// Datagrams is a stream of numbered datagrams between two nodes, with contents
// that are checked, until it is ended.
type Datagrams struct {
	w        *World
	name     string
	to       *lab.Node
	sent     atomic.Int64
	received atomic.Int64
	before   map[string]uint64 // drops
	stop     chan struct{}
	sender   sync.WaitGroup
	receiver sync.WaitGroup
	out, in  net.Conn

	mu    sync.Mutex // guards what follows
	came  []bool     // by number
	wrong error      // the first thing that was
}

// StartDatagrams begins a stream from one container to another.
func (w *World) StartDatagrams(from, to *lab.Container) *Datagrams {
	w.T.Helper()
	return w.StartDatagramsTo(from.Node, to.Node, to.Address)
}

// StartDatagramsTo begins a stream from a node to an address of another.
func (w *World) StartDatagramsTo(from, to *lab.Node, at netip.Addr) *Datagrams {
	w.T.Helper()
	d := &Datagrams{w: w, name: from.Name + " -> " + at.String(), to: to, stop: make(chan struct{}), before: w.drops()}
	var in *net.UDPConn
	err := to.Do(func() (err error) {
		in, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(at, 0)))
		return err
	})
	if err == nil {
		err = growBuffer(in)
	}
	if err == nil {
		err = from.Do(func() (err error) {
			d.out, err = net.Dial("udp", in.LocalAddr().String())
			return err
		})
	}
	if err != nil {
		w.T.Fatal(err)
	}
	d.in = in
	d.sender.Go(d.send)
	d.receiver.Go(d.receive)
	w.T.Cleanup(d.close)
	return d
}

func growBuffer(c *net.UDPConn) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	var failed error
	err = raw.Control(func(fd uintptr) {
		failed = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, receiveBuffer)
	})
	if err == nil {
		err = failed
	}
	return err
}

// content is what the datagram of a number says.
func content(n int64) []byte {
	b := make([]byte, payloads[n/burst%int64(len(payloads))])
	binary.BigEndian.PutUint64(b, uint64(n))
	for i := 8; i < len(b); i++ {
		b[i] = byte(n) + byte(i)
	}
	return b
}

func (d *Datagrams) send() {
	tick := time.NewTicker(pace)
	defer tick.Stop()
	for n := int64(0); ; {
		select {
		case <-tick.C:
		case <-d.stop:
			return
		}
		for range burst {
			if n-d.received.Load() >= inFlight {
				break
			}
			if _, err := d.out.Write(content(n)); err != nil {
				d.fail(fmt.Errorf("send datagram %d: %w", n, err))
				return
			}
			n++
			d.sent.Store(n)
		}
	}
}

func (d *Datagrams) receive() {
	buf := make([]byte, 2048)
	for {
		n, err := d.in.Read(buf)
		if err != nil {
			return // closed
		}
		d.note(buf[:n])
	}
}

func (d *Datagrams) note(b []byte) {
	if len(b) < 8 {
		d.fail(fmt.Errorf("%d bytes came", len(b)))
		return
	}
	n := int64(binary.BigEndian.Uint64(b))
	if n < 0 || n >= 1<<32 || !slices.Equal(b, content(n)) {
		d.fail(fmt.Errorf("datagram %d came altered, with %d bytes", n, len(b)))
		return
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	for int64(len(d.came)) <= n {
		d.came = append(d.came, false)
	}
	if d.came[n] {
		if d.wrong == nil {
			d.wrong = fmt.Errorf("datagram %d came twice", n)
		}
		return
	}
	d.came[n] = true
	d.received.Add(1)
}

func (d *Datagrams) fail(err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.wrong == nil {
		d.wrong = err
	}
}

// Await waits until so many more datagrams have arrived.
func (d *Datagrams) Await(more int64) {
	d.w.T.Helper()
	want := d.received.Load() + more
	for end := time.Now().Add(Patience); d.received.Load() < want; time.Sleep(pace) {
		if time.Now().After(end) {
			d.w.T.Fatalf("%s: %d of %d datagrams arrived, no more come", d.name, d.received.Load(), d.sent.Load())
		}
	}
}

// End ends the stream and waits for what is on its way. Each datagram must have
// come, once and as it was sent, but for as many as the kernel itself says that
// it had no room for: in its links between the nodes, or in the receiver's own
// socket. What a queue to uvxlan drops is uvxlan's loss.
func (d *Datagrams) End() {
	d.w.T.Helper()
	if err := d.end(); err != nil {
		d.w.T.Error(err)
	}
}

func (d *Datagrams) end() error {
	d.w.T.Helper()
	close(d.stop)
	d.sender.Wait()
	sent := d.sent.Load()
	for last, since := d.received.Load(), time.Now(); last < sent && time.Since(since) < quiet; time.Sleep(pace) {
		if now := d.received.Load(); now != last {
			last, since = now, time.Now()
		}
	}
	lost := sent - d.received.Load()
	var excused int64
	for place, n := range d.w.drops() {
		if n -= d.before[place]; n > 0 && lost > 0 {
			d.w.T.Logf("%s: the kernel dropped %d at %s", d.name, n, place)
			if isLink(place) || place == d.to.Name+socketPlace {
				excused += int64(n)
			}
		}
	}
	d.mu.Lock()
	wrong := d.wrong
	d.mu.Unlock()
	d.w.T.Logf("%s: %d datagrams, %d lost", d.name, sent, lost)
	if wrong != nil {
		return fmt.Errorf("%s: %w", d.name, wrong)
	}
	if lost > excused || sent == 0 {
		return fmt.Errorf("%s: %d of %d datagrams were lost, %d of them for want of room", d.name, lost, sent, excused)
	}
	return nil
}

// SendDatagrams sends some thousand datagrams, each of which must come.
func (w *World) SendDatagrams(from, to *lab.Node, at netip.Addr) {
	w.T.Helper()
	d := w.StartDatagramsTo(from, to, at)
	d.Await(2000)
	d.End()
}

// close ends what a test that failed has left.
func (d *Datagrams) close() {
	select {
	case <-d.stop:
	default:
		close(d.stop)
	}
	d.out.Close()
	d.in.Close()
	d.sender.Wait()
	d.receiver.Wait()
}

// drops is what the kernel has dropped so far on all nodes, by place.
func (w *World) drops() map[string]uint64 {
	w.T.Helper()
	nodes := []*lab.Node{w.Router()}
	for _, h := range w.Hosts() {
		nodes = append(nodes, h.Node, h.Container.Node)
	}
	drops := map[string]uint64{}
	for _, n := range nodes {
		links, err := n.Netlink().LinkList()
		if err != nil {
			w.T.Fatal(err)
		}
		for _, l := range links {
			s := l.Attrs().Statistics
			place := n.Name + " " + l.Attrs().Name
			if l.Type() == "veth" {
				place += linkPlace
			}
			drops[place] = s.TxDropped
		}
		drops[n.Name+socketPlace] = w.socketDrops(n)
	}
	return drops
}

// How places end that drop what the kernel has no room for.
const (
	linkPlace   = " (link)" // between namespaces
	socketPlace = " (UDP sockets)"
)

func isLink(place string) bool { return strings.HasSuffix(place, linkPlace) }

// NoLoss pings each container from each other a hundred times with packets of
// full size that may not be fragmented, and misses none but what a link had no
// room for.
func (w *World) NoLoss() {
	w.T.Helper()
	before := w.drops()
	for _, from := range w.Hosts() {
		for _, to := range w.Hosts() {
			for range 100 {
				if from == to {
					break
				}
				if err := w.ping(from.Container, to.Container); err != nil {
					before = w.excuse(err, before)
				}
			}
		}
	}
}

func (w *World) ping(from, to *lab.Container) error {
	ctx, cancel := context.WithTimeout(w.T.Context(), quiet)
	defer cancel()
	_, err := from.Ping(ctx, to.Address, lab.DefaultContainerMTU)
	return err
}

// excuse ends the test, unless a link has dropped something since. It returns the
// drops until now.
func (w *World) excuse(lost error, before map[string]uint64) map[string]uint64 {
	w.T.Helper()
	now := w.drops()
	for place, n := range now {
		if isLink(place) && n > before[place] {
			w.T.Logf("%v, and %s dropped %d packets", lost, place, n-before[place])
			return now
		}
	}
	w.T.Fatal(lost)
	return nil
}

// socketDrops is how many datagrams full buffers of a node's UDP sockets have
// dropped.
func (w *World) socketDrops(n *lab.Node) (sum uint64) {
	w.T.Helper()
	for line := range strings.Lines(Command(w.T, n, "cat /proc/net/snmp /proc/net/snmp6")) {
		fields := strings.Fields(line)
		if len(fields) == 2 && (fields[0] == "Udp6RcvbufErrors" || fields[0] == "Udp6SndbufErrors") {
			sum += w.number(fields[1])
		}
		if len(fields) > 6 && fields[0] == "Udp:" && fields[1] != "InDatagrams" {
			sum += w.number(fields[5]) + w.number(fields[6]) // RcvbufErrors and SndbufErrors
		}
	}
	return sum
}

func (w *World) number(text string) uint64 {
	w.T.Helper()
	n, err := strconv.ParseUint(text, 10, 64)
	if err != nil {
		w.T.Fatal(err)
	}
	return n
}

package handover_test

import (
	"context"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"uvxlan/bench/cluster"
	"uvxlan/bench/e2e"
	"uvxlan/bench/lab"
	"uvxlan/lease"
)

// Numbered packets at 1,000 a second, pings and UDP in both directions, all arrive
// while the daemons of both ends hand over, one after the other: not one is lost,
// in whatever queue. UVXLAN_RELOADS is the number of handovers of each model.
func TestIntegrationReloadLosesNothing(t *testing.T) {
	reloads := 10
	if text := os.Getenv("UVXLAN_RELOADS"); text != "" {
		var err error
		if reloads, err = strconv.Atoi(text); err != nil {
			t.Fatal(err)
		}
	}
	for _, m := range e2e.Models() {
		t.Run(m.Name, func(t *testing.T) {
			w := newReloadWorld(t)
			e2e.StrictReversePath(t, w.Host("kb21"))
			w.Configure(m.Config)
			daemons := w.Start("kb21", "kb22")
			w.Mesh("kb21", "kb22")
			m.Await(t, w, lease.Lease{})
			flows := startFlows(t, w)
			fast := hasFastPath(t, daemons[0])
			for i := range reloads {
				pauses := reloadDaemon(t, daemons[i%2])
				for _, f := range flows {
					f.goesOn(t) // so that packets meet each state
				}
				if i%20 == 0 {
					t.Logf("reload %d of %s: packets waited %s", i+1, daemons[i%2].Host.Name, pauses)
				}
			}
			allArrived(t, fmt.Sprintf("%d reloads", reloads), flows...)
			if now := hasFastPath(t, daemons[0]); now != fast || strings.Contains(e2e.LogOf(t, daemons[0]), "is of no use") {
				t.Errorf("the fast path was on: %t, and is now: %t, or another was attached", fast, now)
			}
		})
	}
}

// startFlows starts pings and datagrams between the containers of both hosts, each way.
func startFlows(t *testing.T, w *e2e.World) []*numbered {
	t.Helper()
	one, other := w.Container("kb21"), w.Container("kb22")
	return []*numbered{
		startPings(t, one.Node, other.Address), startPings(t, other.Node, one.Address),
		startDatagrams(t, one.Node, other), startDatagrams(t, other.Node, one),
	}
}

func hasFastPath(t *testing.T, d *cluster.Daemon) bool {
	t.Helper()
	s := e2e.AskStatus(t, d)
	return s.FastPath != nil && s.FastPath.On
}

// numbered is a flow of packets that have numbers.
type numbered struct {
	name    string
	sent    atomic.Int64
	arrived atomic.Int64 // each number once
	end     context.CancelFunc
	sending sync.WaitGroup

	mu   sync.Mutex
	seen map[uint32]bool
}

const numberedInterval = time.Millisecond

// send sends a packet for each interval that has passed, until finish.
func (f *numbered) send(t *testing.T, write func(number uint32) error) {
	ctx, cancel := context.WithCancel(t.Context())
	f.end = cancel
	f.sending.Go(func() {
		begin, tick := time.Now(), time.NewTicker(numberedInterval)
		defer tick.Stop()
		for n := uint32(0); ; {
			for ; time.Duration(n)*numberedInterval < time.Since(begin); n++ {
				if err := write(n); err != nil {
					t.Errorf("%s: %v", f.name, err)
					return
				}
				f.sent.Add(1)
			}
			select {
			case <-tick.C:
			case <-ctx.Done():
				return
			}
		}
	})
	t.Cleanup(f.finish)
}

func (f *numbered) finish() {
	f.end()
	f.sending.Wait()
}

func (f *numbered) take(number uint32) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.seen[number] {
		f.seen[number] = true
		f.arrived.Add(1)
	}
}

// goesOn waits until more has arrived.
func (f *numbered) goesOn(t *testing.T) {
	t.Helper()
	const more = 20
	begin := f.arrived.Load()
	for end := time.Now().Add(e2e.Patience); f.arrived.Load() < begin+more; time.Sleep(numberedInterval) {
		if time.Now().After(end) {
			t.Fatalf("%s stands still", f.name)
		}
	}
}

// allArrived ends flows, whose packets have met what the words say, and waits for all
// that were sent.
func allArrived(t *testing.T, met string, flows ...*numbered) {
	t.Helper()
	for _, f := range flows {
		f.finish()
	}
	for end := time.Now().Add(e2e.Patience); lostOf(flows) != "" && time.Now().Before(end); {
		time.Sleep(10 * time.Millisecond)
	}
	for _, f := range flows {
		t.Logf("%s: %s, %d packets sent, %d arrived", f.name, met, f.sent.Load(), f.arrived.Load())
	}
	if lost := lostOf(flows); lost != "" {
		t.Errorf("lost:%s", lost)
	}
}

// lostOf names the flows of which packets are missing, and some numbers.
func lostOf(flows []*numbered) (text string) {
	for _, f := range flows {
		f.mu.Lock()
		var missing []uint32
		for n := range uint32(f.sent.Load()) {
			if !f.seen[n] && len(missing) < 10 {
				missing = append(missing, n)
			}
		}
		f.mu.Unlock()
		if len(missing) > 0 {
			text += fmt.Sprintf(" %s %d", f.name, missing)
		}
	}
	return text
}

// startPings sends echo requests from a node; what arrives are the answers.
func startPings(t *testing.T, from *lab.Node, to netip.Addr) *numbered {
	t.Helper()
	f := &numbered{name: "pings of " + from.Name, seen: map[uint32]bool{}}
	conn := listenNumbered(t, from, "ip4:icmp", "0.0.0.0")
	id := uint16(os.Getpid())
	go func() { // ends with the connection
		for buf := make([]byte, 1500); ; {
			n, _, err := conn.ReadFrom(buf)
			if err != nil {
				return
			}
			if n == 12 && buf[0] == 0 && binary.BigEndian.Uint16(buf[4:]) == id {
				f.take(binary.BigEndian.Uint32(buf[8:]))
			}
		}
	}()
	at := &net.IPAddr{IP: to.AsSlice()}
	f.send(t, func(number uint32) error {
		echo := [12]byte{0: 8}
		binary.BigEndian.PutUint16(echo[4:], id)
		binary.BigEndian.PutUint16(echo[6:], uint16(number))
		binary.BigEndian.PutUint32(echo[8:], number)
		binary.BigEndian.PutUint16(echo[2:], internetChecksum(echo[:]))
		_, err := conn.WriteTo(echo[:], at)
		return err
	})
	return f
}

// internetChecksum is RFC 1071's, of an even number of bytes.
func internetChecksum(b []byte) uint16 {
	var sum uint32
	for ; len(b) > 1; b = b[2:] {
		sum += uint32(binary.BigEndian.Uint16(b))
	}
	sum = sum>>16 + sum&0xffff
	return ^uint16(sum + sum>>16)
}

// startDatagrams sends datagrams from a node to a container.
func startDatagrams(t *testing.T, from *lab.Node, to *lab.Container) *numbered {
	t.Helper()
	f := &numbered{name: "datagrams of " + from.Name, seen: map[uint32]bool{}}
	in := listenNumbered(t, to.Node, "udp4", net.JoinHostPort(to.Address.String(), "0"))
	go func() { // ends with the connection
		for buf := make([]byte, 1500); ; {
			n, _, err := in.ReadFrom(buf)
			if err != nil {
				return
			}
			if n == 4 {
				f.take(binary.BigEndian.Uint32(buf))
			}
		}
	}()
	out := listenNumbered(t, from, "udp4", "0.0.0.0:0")
	f.send(t, func(number uint32) error {
		_, err := out.WriteTo(binary.BigEndian.AppendUint32(nil, number), in.LocalAddr())
		return err
	})
	return f
}

// listenNumbered opens a socket in a node, whose buffers take what comes while its
// reader waits for a CPU.
func listenNumbered(t *testing.T, n *lab.Node, network, address string) (conn net.PacketConn) {
	t.Helper()
	c := net.ListenConfig{Control: func(_, _ string, raw syscall.RawConn) (err error) {
		e := raw.Control(func(fd uintptr) {
			err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 16<<20)
		})
		if e != nil {
			return e
		}
		return err
	}}
	err := n.Do(func() (err error) {
		conn, err = c.ListenPacket(t.Context(), network, address)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

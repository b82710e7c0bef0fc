package fastpath

import (
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	bpflink "github.com/cilium/ebpf/link"

	"uvxlan/tunnel/internal/testhost"
	"uvxlan/tunnel/onlink"
)

// stream is numbered datagrams from one container to another, and what is known of
// their order.
type stream struct {
	near, far       *net.UDPConn
	sent            uint64
	came, overtaken atomic.Uint64
	running         sync.WaitGroup
}

func newStream(t *testing.T, from, to *node) *stream {
	t.Helper()
	s := &stream{}
	s.far = testhost.Inside(to.container, func() (*net.UDPConn, error) {
		return net.ListenUDP("udp", &net.UDPAddr{IP: net.ParseIP(to.addr())})
	})
	s.near = testhost.Inside(from.container, func() (*net.UDPConn, error) {
		return net.DialUDP("udp", nil, s.far.LocalAddr().(*net.UDPAddr))
	})
	testhost.Must(t, s.far.SetReadBuffer(8<<20))
	s.running.Go(func() {
		buf := make([]byte, 64)
		for last := uint64(0); ; {
			n, err := s.far.Read(buf)
			if err != nil {
				return
			}
			if n < 8 {
				continue
			}
			number := binary.BigEndian.Uint64(buf)
			if number < last {
				s.overtaken.Add(1)
			}
			last = max(last, number)
			s.came.Add(1)
		}
	})
	t.Cleanup(func() {
		testhost.Must(t, errors.Join(s.near.Close(), s.far.Close()))
		s.running.Wait()
	})
	return s
}

func (s *stream) send(t *testing.T, n int) {
	t.Helper()
	buf := make([]byte, 64)
	for range n {
		s.sent++
		binary.BigEndian.PutUint64(buf, s.sent)
		if _, err := s.near.Write(buf); err != nil {
			t.Error(err)
			return
		}
	}
}

// settle waits until all that is on its way has come and single datagrams are carried, as
// a counter tells.
func (s *stream) settle(t *testing.T, carried func() uint64) {
	t.Helper()
	for came, since := s.came.Load(), time.Now(); time.Since(since) < 100*time.Millisecond; time.Sleep(5 * time.Millisecond) {
		if n := s.came.Load(); n != came {
			came, since = n, time.Now()
		}
	}
	testhost.Await(t, "single datagrams to be carried", func() bool {
		before, came := carried(), s.came.Load()
		s.send(t, 1)
		testhost.Await(t, "a datagram to come", func() bool { return s.came.Load() > came })
		return carried() > before
	})
}

// Whatever has the programs begin to carry a flow, or end: none of its packets overtakes
// another.
func TestIntegrationFastPathKeepsOrder(t *testing.T) {
	t.Parallel() // it waits more than it works
	const rounds = 4
	a, b := newPair(t, onlink.Off, Config{}, nil)
	for _, h := range []*testhost.Host{a.host, b.host, a.container, b.container} {
		steer(t, h)
	}
	s := newStream(t, a, b)
	rule := func(n *node) func() {
		return func() {
			run(t, n.host, "ip", strings.Fields("rule add iif lo lookup 100")...)
			testhost.Await(t, "off", func() bool { return !n.fast.Report().On })
			time.Sleep(20 * time.Millisecond) // at full rate through the workers
			run(t, n.host, "ip", strings.Fields("rule del iif lo lookup 100")...)
			testhost.Await(t, "on", func() bool { return n.fast.Report().On })
		}
	}
	policy := strings.Fields("dir out src 10.66.0.1/32 dst 10.66.0.2/32 proto udp")
	for _, c := range []struct {
		name   string
		at     *node
		change func()
	}{
		{"off and on at the sender", a, rule(a)},
		{"off and on at the receiver", b, rule(b)},
		{"a peer that comes again", a, func() {
			run(t, a.host, "ip", append([]string{"xfrm", "policy", "add"}, append(policy, "action", "allow")...)...)
			testhost.Await(t, "the peer to be excluded", func() bool { ok, _ := a.fast.Carries(b.subnet()); return !ok })
			time.Sleep(20 * time.Millisecond)
			run(t, a.host, "ip", append([]string{"xfrm", "policy", "delete"}, policy...)...)
			testhost.Await(t, "the peer to be carried", func() bool { ok, _ := a.fast.Carries(b.subnet()); return ok })
		}},
		{"a lease that comes again", a, func() {
			testhost.Must(t, a.router.UpdatePeers(nil, []netip.Prefix{b.subnet()}))
			a.know(b)
		}},
		{"attached again", b, func() {
			pass := passAll(t) // which ours are moved behind once
			l := testhost.Inside(b.host, func() (bpflink.Link, error) {
				return bpflink.AttachTCX(bpflink.TCXOptions{Interface: b.host.Index("eth0"), Program: pass, Attach: ebpf.AttachTCXIngress, Anchor: bpflink.Tail()})
			})
			behind := func() (is bool) {
				b.fast.mu.Lock()
				defer b.fast.mu.Unlock()
				testhost.Must(t, b.host.Do(func() error {
					ok, others := b.fast.attached.stands()
					is = ok && len(others) == 0
					return nil
				}))
				return is
			}
			testhost.Await(t, "ours to be behind", behind)
			testhost.Must(t, l.Close())
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			carried := func() uint64 {
				f := c.at.router.Stats().FastPath
				return f.TxPackets + f.RxPackets
			}
			for range rounds {
				s.settle(t, carried)
				var stop atomic.Bool
				var sending sync.WaitGroup
				before, all := carried(), c.at.router.Stats()
				sending.Go(func() {
					for !stop.Load() { // as fast as it can
						s.send(t, 16)
					}
				})
				testhost.Await(t, "packets to be carried", func() bool { return carried() > before+100 })
				c.change()
				on := carried()
				time.Sleep(50 * time.Millisecond) // at full rate while it may change sides
				stop.Store(true)
				sending.Wait()
				s.settle(t, carried)
				after := c.at.router.Stats()
				t.Logf("%d sent, %d came, %d overtaken; carried %d, later %d, of %d", s.sent, s.came.Load(), s.overtaken.Load(),
					carried()-before, carried()-on, after.TxPackets+after.RxPackets-all.TxPackets-all.RxPackets)
			}
			if n := s.overtaken.Swap(0); n > 0 {
				t.Errorf("%d datagrams were overtaken", n)
			}
		})
	}
}

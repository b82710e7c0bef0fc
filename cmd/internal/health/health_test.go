package health

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"

	"uvxlan/cmd/internal/control"
	"uvxlan/cmd/internal/probe"
)

const rtt = 3 * time.Millisecond

// world is a network and the hosts in it.
type world struct {
	mu      sync.Mutex
	targets []Target
	down    bool
	fate    func(r probe.Request) error // nil: all answer
	refused error                       // of the socket
	sent    []time.Time
	log     bytes.Buffer
}

func (w *world) ProbeTargets() []Target {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.targets
}

func (w *world) ProbeSources() []netip.Addr { return []netip.Addr{netip.MustParseAddr("10.0.0.1")} }

func (w *world) Carries() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return !w.down
}

func (w *world) Heard(netip.Prefix) time.Time { return time.Time{} }

// Echo implements prober.
func (w *world) Echo(ctx context.Context, r probe.Request) (probe.Reply, error) {
	w.mu.Lock()
	w.sent = append(w.sent, time.Now())
	var err error
	if w.fate != nil {
		err = w.fate(r)
	}
	w.mu.Unlock()
	wait := rtt
	if errors.Is(err, probe.ErrNoAnswer) {
		wait = r.Timeout
	}
	select {
	case <-time.After(wait):
	case <-ctx.Done():
		return probe.Reply{}, ctx.Err()
	}
	if err != nil {
		return probe.Reply{}, fmt.Errorf("probe %s: %w", r.To, err)
	}
	return probe.Reply{RTT: rtt}, nil
}

// Close implements prober.
func (*world) Close() error { return nil }

// set changes the world.
func (w *world) set(change func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	change()
}

// Write implements [io.Writer], for the log.
func (w *world) Write(b []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.log.Write(b)
}

func (w *world) lines(words string) int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return strings.Count(w.log.String(), words)
}

func hosts(n int) []Target {
	all := make([]Target, n)
	for i := range all {
		a := netip.AddrFrom4([4]byte{10, 1 + byte(i>>8), byte(i), 0})
		all[i] = Target{Subnet: netip.PrefixFrom(a, 24), Address: a, Host: netip.AddrFrom4([4]byte{192, 0, byte(i >> 8), byte(i)}), Size: 1450}
	}
	return all
}

// inWorld runs a monitor of n peers in fake time.
func inWorld(t *testing.T, n int, test func(w *world, m *Monitor)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		w := &world{targets: hosts(n)}
		m := New(Config{Network: w, Interval: DefaultInterval, Logger: slog.New(slog.NewTextHandler(w, nil))})
		m.open = func(netip.Addr) (prober, error) {
			w.mu.Lock()
			defer w.mu.Unlock()
			return w, w.refused
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() {
			m.Run(ctx)
			close(done)
		}()
		test(w, m)
		cancel()
		<-done
	})
}

// of is the health of a peer.
func of(t *testing.T, m *Monitor, peer Target) control.Health {
	t.Helper()
	peers := []control.Peer{{Subnet: peer.Subnet}}
	m.Fill(peers)
	if peers[0].Health == nil {
		t.Fatal("the peer has no health")
	}
	return *peers[0].Health
}

// A peer that stops answering is silent after some misses, and no longer when it
// answers again. Each is logged once.
func TestSilence(t *testing.T) {
	inWorld(t, 2, func(w *world, m *Monitor) {
		a, b := w.targets[0], w.targets[1]
		time.Sleep(time.Minute)
		if h := of(t, m, a); h.State != control.HealthAnswers || h.RTTSeconds != rtt.Seconds() || h.Sent == 0 || h.Answered != h.Sent || h.FullSize != control.FullSizePasses || h.FullSizeBytes != 1450 {
			t.Errorf("it is %+v", h)
		}
		w.set(func() {
			w.fate = func(r probe.Request) error {
				if r.To == a.Address {
					return probe.ErrNoAnswer
				}
				return nil
			}
		})
		time.Sleep(missesToSilence*timeout + DefaultInterval*11/10 + missesToSilence*retry)
		h := of(t, m, a)
		if h.State != control.HealthSilent || h.Problem != control.NoAnswer || h.Loss.Missed < missesToSilence || h.RTTSeconds != 0 || h.LastAnswer.IsZero() || m.Silent() != 1 {
			t.Errorf("it is %+v", h)
		}
		time.Sleep(time.Minute)
		if h := of(t, m, b); h.State != control.HealthAnswers || h.Loss.Missed != 0 {
			t.Errorf("the other is %+v", h)
		}
		w.set(func() { w.fate = nil })
		time.Sleep(DefaultInterval * 11 / 10 * 2)
		if h := of(t, m, a); h.State != control.HealthAnswers || h.Problem != "" || h.Answered == h.Sent {
			t.Errorf("it is %+v", h)
		}
		if w.lines("peer doesn't answer") != 1 || w.lines("peer answers again") != 1 {
			t.Errorf("the log is\n%s", &w.log)
		}
	})
}

// A miss now and then is loss, and no silence.
func TestLoss(t *testing.T) {
	inWorld(t, 1, func(w *world, m *Monitor) {
		time.Sleep(time.Minute)
		n := 0
		w.set(func() {
			w.fate = func(probe.Request) error {
				if n++; n%3 == 0 {
					return probe.ErrNoAnswer
				}
				return nil
			}
		})
		time.Sleep(10 * time.Minute)
		if h := of(t, m, w.targets[0]); h.Loss.Of != windowLen || h.Loss.Missed < windowLen/4 || h.Loss.Missed > windowLen/2 || w.lines("peer") != 0 {
			t.Errorf("it is %+v; the log is\n%s", h, &w.log)
		}
	})
}

// While no packets pass, or the requests aren't sent, nobody is blamed.
func TestNobodyIsBlamed(t *testing.T) {
	for name, change := range map[string]func(w *world){
		"no packets pass": func(w *world) { w.down = true },
		"not sent":        func(w *world) { w.fate = func(probe.Request) error { return unix.EPERM } },
	} {
		inWorld(t, 1, func(w *world, m *Monitor) {
			time.Sleep(time.Minute)
			before := of(t, m, w.targets[0])
			w.set(func() {
				change(w)
				if w.down {
					w.fate = func(probe.Request) error { return probe.ErrNoAnswer }
				}
			})
			time.Sleep(5 * time.Minute)
			if h := of(t, m, w.targets[0]); h.State == control.HealthSilent || h.Sent > before.Sent+1 || h.Loss.Missed != 0 {
				t.Errorf("%s: it is %+v", name, h)
			}
			w.set(func() { w.down, w.fate = false, nil })
			time.Sleep(time.Minute)
			if h := of(t, m, w.targets[0]); h.State != control.HealthAnswers || h.Problem != "" || w.lines("answer") != 0 {
				t.Errorf("%s: it is %+v; the log is\n%s", name, h, &w.log)
			}
		})
	}
}

// Long packets that get lost are told apart from a peer that doesn't answer.
func TestLongPackets(t *testing.T) {
	inWorld(t, 1, func(w *world, m *Monitor) {
		time.Sleep(time.Minute)
		w.set(func() {
			w.fate = func(r probe.Request) error {
				if r.Size > 1400 {
					return probe.ErrNoAnswer
				}
				return nil
			}
		})
		time.Sleep(2 * fullEvery * DefaultInterval)
		if h := of(t, m, w.targets[0]); h.State != control.HealthAnswers || h.FullSize != control.FullSizeLost || h.FullSizeBytes != 1450 || h.Loss.Missed != 0 {
			t.Errorf("it is %+v", h)
		}
		// The path's MTU is known at last.
		w.set(func() {
			w.targets = hosts(1)
			w.targets[0].Size = 1400
		})
		time.Sleep(3 * DefaultInterval)
		if h := of(t, m, w.targets[0]); h.FullSize != control.FullSizePasses || h.FullSizeBytes != 1400 {
			t.Errorf("it is %+v", h)
		}
		if w.lines("long packets to a peer or back are lost") != 1 || w.lines("long packets pass again") != 1 {
			t.Errorf("the log is\n%s", &w.log)
		}
	})
}

// One that a router refuses as too long tells nothing: the path is known anew.
func TestLongPacketsRefused(t *testing.T) {
	inWorld(t, 1, func(w *world, m *Monitor) {
		router := netip.MustParseAddr("10.0.0.1")
		w.set(func() {
			w.fate = func(r probe.Request) error {
				if r.Size > 1400 {
					return &probe.ICMPError{From: router, Type: 3, Code: 4, MTU: 1400}
				}
				return nil
			}
		})
		time.Sleep(2 * fullEvery * DefaultInterval)
		if h := of(t, m, w.targets[0]); h.State != control.HealthAnswers || h.FullSize != "" {
			t.Errorf("it is %+v", h)
		}
	})
}

// Many peers are asked one after the other, within the budget; too many not at all.
// What falls silent at once has few lines in the log.
func TestManyPeers(t *testing.T) {
	inWorld(t, MaxPeers, func(w *world, m *Monitor) {
		time.Sleep(10 * time.Minute)
		w.set(func() {
			for i := 1; i < len(w.sent); i++ {
				if gap := w.sent[i].Sub(w.sent[i-1]); gap < budget {
					t.Fatalf("two requests within %s", gap)
				}
			}
			if n := len(w.sent); n < 20_000 {
				t.Errorf("%d requests in 10 minutes", n)
			}
			w.fate = func(probe.Request) error { return probe.ErrNoAnswer }
		})
		for _, p := range w.targets {
			if h := of(t, m, p); h.State != control.HealthAnswers || h.Sent < 10 {
				t.Fatalf("%s is %+v", p.Subnet, h)
			}
		}
		time.Sleep(5 * time.Minute)
		if n := m.Silent(); n != MaxPeers {
			t.Errorf("%d peers are silent", n)
		}
		if n := w.lines("\n"); n > 100 || w.lines("the health of more peers changed") == 0 {
			t.Errorf("%d lines in the log", n)
		}
		w.set(func() { w.targets = hosts(MaxPeers + 1) })
		m.Changed()
		time.Sleep(DefaultInterval)
		asked := 0
		w.set(func() { asked = len(w.sent) })
		time.Sleep(time.Minute)
		w.set(func() {
			if len(w.sent) != asked {
				t.Errorf("%d requests more", len(w.sent)-asked)
			}
		})
		if m.Off() == "" || m.Silent() != 0 || w.lines("the peers are not probed") != 1 {
			t.Errorf("off: %q", m.Off())
		}
	})
}

// A subnet that goes to another host has another health, and one that is gone none.
func TestPeersChange(t *testing.T) {
	inWorld(t, 2, func(w *world, m *Monitor) {
		time.Sleep(time.Minute)
		w.set(func() {
			w.targets = hosts(2)[:1]
			w.targets[0].Host = netip.MustParseAddr("192.0.2.9")
		})
		m.Changed()
		time.Sleep(2 * retry)
		if h := of(t, m, w.targets[0]); h.Sent > 2 {
			t.Errorf("it is %+v", h)
		}
		gone := []control.Peer{{Subnet: hosts(2)[1].Subnet}}
		if m.Fill(gone); gone[0].Health != nil {
			t.Errorf("it is %+v", gone[0].Health)
		}
		time.Sleep(time.Minute)
		if h := of(t, m, w.targets[0]); h.State != control.HealthAnswers {
			t.Errorf("it is %+v", h)
		}
	})
}

// Without a socket the peers' state isn't known, which is said once.
func TestNoSocket(t *testing.T) {
	inWorld(t, 3, func(w *world, m *Monitor) {
		w.set(func() { w.refused = fmt.Errorf("open prober: %w", unix.EPERM) })
		time.Sleep(5 * time.Minute)
		if h := of(t, m, w.targets[0]); h.State != control.HealthUnknown || !strings.Contains(h.Problem, "operation not permitted") {
			t.Errorf("it is %+v", h)
		}
		if w.lines("peers can't be probed") != 1 || w.lines("CAP_NET_RAW") != 1 {
			t.Errorf("the log is\n%s", &w.log)
		}
	})
}

func TestOff(t *testing.T) {
	m := New(Config{Network: &world{}, Logger: slog.New(slog.DiscardHandler)})
	m.Run(t.Context()) // returns
	if !strings.Contains(m.Off(), "-probe-interval") {
		t.Errorf("it says %q", m.Off())
	}
}

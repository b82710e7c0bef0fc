// Package health asks the other hosts now and then whether they answer, by ICMP echo
// through the overlay, and remembers how each does: its round-trip time, the share of
// requests without an answer, and whether packets as long as the path allows arrive.
//
// All requests together keep to a budget, however many peers there are: a second sees
// no more than 50 of them, one by one. They are packets of this host like any others,
// so each takes the way that the containers' packets take.
package health

import (
	"container/heap"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"uvxlan/cmd/internal/control"
	"uvxlan/cmd/internal/probe"
)

const (
	// DefaultInterval is the time between two requests to a peer.
	DefaultInterval = 10 * time.Second
	// MaxPeers is how many peers are asked at most: with more of them, none is. Each
	// peer asked is a neighbour that the kernel remembers, of which it keeps 1024 by
	// default (net.ipv4.neigh.default.gc_thresh3).
	MaxPeers = 1000
)

const (
	// budget is the least time between two requests.
	budget = time.Second / 50
	// timeout is how long an answer is waited for, if the interval isn't shorter.
	timeout = 3 * time.Second
	// retry is the time from a miss to the next request, while it isn't clear that
	// the peer is silent.
	retry = time.Second
)

// Target is a peer to ask.
type Target struct {
	Subnet netip.Prefix
	// Host is the peer's outer address. A subnet of another host is another peer.
	Host netip.Addr
	// Address is whom to ask.
	Address netip.Addr
	// Size is the longest packet, in bytes, that should reach the peer in one piece; 0
	// if that isn't known.
	Size int
}

// Network is what carries the packets. Its methods may be called from any goroutine.
type Network interface {
	// ProbeTargets lists the peers.
	ProbeTargets() []Target
	// ProbeSources are the addresses to ask from, at most one a family.
	ProbeSources() []netip.Addr
	// Carries tells whether packets pass. While they don't, no peer is asked, and no
	// peer is blamed.
	Carries() bool
	// Heard is when the last packet of a peer's subnet came, zero if that isn't known.
	Heard(subnet netip.Prefix) time.Time
}

// Config is what a Monitor must know.
type Config struct {
	Network Network
	// Interval is about the time between two requests to a peer; more where the budget
	// asks for more. 0 means that no peer is asked.
	Interval time.Duration
	Logger   *slog.Logger
}

// Monitor asks the peers. Its methods may be called from any goroutine.
type Monitor struct {
	// immutable
	network  Network
	interval time.Duration
	log      *slog.Logger
	open     func(source netip.Addr) (prober, error)
	changes  chan struct{} // of the peers; holds one
	queued   chan struct{} // the queue may be due earlier; holds one

	probing sync.WaitGroup
	told    *lines

	// Run's alone
	listed  time.Time // when the peers were last listed
	changed bool      // since then
	paced   time.Time // before which nothing may be sent
	// by whether it is for IPv6
	probers map[bool]prober
	refused map[bool]string // why there is none, as the log has it

	mu    sync.Mutex // guards the rest, with the peers in it
	peers map[netip.Prefix]*peer
	queue queue // those that aren't being asked at the moment
	off   string
}

// prober is a [probe.Prober].
type prober interface {
	Echo(ctx context.Context, r probe.Request) (probe.Reply, error)
	Close() error
}

// New returns a Monitor that asks nobody yet.
func New(c Config) *Monitor {
	return &Monitor{
		network: c.Network, interval: c.Interval, log: c.Logger, told: newLines(c.Logger),
		open:    func(source netip.Addr) (prober, error) { return probe.Open(probe.Config{Source: source}) },
		changes: make(chan struct{}, 1), queued: make(chan struct{}, 1),
		probers: map[bool]prober{}, refused: map[bool]string{}, peers: map[netip.Prefix]*peer{},
	}
}

// Changed says that the network may have other peers.
func (m *Monitor) Changed() { wake(m.changes) }

func wake(c chan<- struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// Run asks the peers until ctx ends.
func (m *Monitor) Run(ctx context.Context) {
	if m.interval <= 0 {
		return
	}
	defer m.close()
	for timer := time.NewTimer(0); ; {
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case <-m.changes:
			m.changed = true
		case <-m.queued:
		case <-timer.C:
		}
		timer.Reset(m.step(ctx, time.Now()))
	}
}

func (m *Monitor) close() {
	m.probing.Wait() // ctx has ended
	m.told.close()
	for _, p := range m.probers {
		if err := p.Close(); err != nil {
			m.log.Warn("close the prober", "error", err)
		}
	}
}

// step asks whoever is due, at most one peer, and returns the time until the next
// step.
func (m *Monitor) step(ctx context.Context, now time.Time) time.Duration {
	if !m.network.Carries() {
		return retry
	}
	if !m.listAt().After(now) {
		m.listed, m.changed = now, false
		m.list(now)
	}
	next := m.listAt()
	p := m.due(now)
	if p != nil {
		m.paced = now.Add(budget)
		m.ask(ctx, p)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(m.queue) > 0 {
		next = earlier(next, later(m.queue[0].due, m.paced))
	}
	return max(0, next.Sub(now))
}

// listAt is when the peers are to be listed again: not for each change of many.
func (m *Monitor) listAt() time.Time {
	if m.changed {
		return m.listed.Add(min(m.interval, retry))
	}
	return m.listed.Add(m.interval)
}

func earlier(a, b time.Time) time.Time {
	if a.Before(b) {
		return a
	}
	return b
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// list takes note of peers that have come, changed and gone.
func (m *Monitor) list(now time.Time) {
	targets := m.network.ProbeTargets()
	m.mu.Lock()
	defer m.mu.Unlock()
	m.limitLocked(len(targets))
	if m.off != "" {
		m.peers, m.queue = map[netip.Prefix]*peer{}, nil
		return
	}
	there := make(map[netip.Prefix]*peer, len(targets))
	// A new peer is soon asked, many are asked one after the other.
	spread := min(m.interval, max(retry, time.Duration(len(targets))*budget))
	for _, t := range targets {
		p := m.peers[t.Subnet]
		if p == nil || p.target.Host != t.Host {
			p = &peer{due: now.Add(rand.N(spread)), since: now}
			heap.Push(&m.queue, p)
		}
		p.set(t)
		there[t.Subnet] = p
	}
	m.peers = there // those that have gone leave the queue when they are due
}

func (m *Monitor) limitLocked(peers int) {
	was := m.off
	m.off = ""
	if peers > MaxPeers {
		m.off = fmt.Sprintf("there are more than %d peers", MaxPeers)
	}
	if m.off != "" && was == "" {
		m.log.Info("the peers are not probed", "reason", m.off)
	}
}

// due takes the peer that is to be asked by now from the queue; nil if there is none.
func (m *Monitor) due(now time.Time) *peer {
	m.mu.Lock()
	defer m.mu.Unlock()
	for len(m.queue) > 0 && !m.queue[0].due.After(now) && !m.paced.After(now) {
		p := heap.Pop(&m.queue).(*peer)
		if m.peers[p.target.Subnet] == p {
			return p
		}
	}
	return nil
}

// ask sends a peer's request, and has its result noted.
func (m *Monitor) ask(ctx context.Context, p *peer) {
	m.mu.Lock()
	r, full := p.request()
	r.Timeout = min(timeout, m.interval)
	m.mu.Unlock()
	by, err := m.prober(r.To.Is6())
	if err != nil {
		m.note(p, full, probe.Reply{}, err)
		return
	}
	m.probing.Go(func() {
		reply, err := by.Echo(ctx, r)
		if ctx.Err() == nil {
			m.note(p, full, reply, err)
		}
	})
}

// prober is the one of a family. Where it can't be opened, it is tried again when the
// next peer is due.
func (m *Monitor) prober(v6 bool) (prober, error) {
	if p := m.probers[v6]; p != nil {
		return p, nil
	}
	err := errors.New("this host has no address to ask from")
	for _, source := range m.network.ProbeSources() {
		if source.Is6() != v6 {
			continue
		}
		var p prober
		if p, err = m.open(source); err == nil {
			m.probers[v6], m.refused[v6] = p, ""
			return p, nil
		}
	}
	if m.refused[v6] != err.Error() {
		m.refused[v6] = err.Error()
		attrs := []any{"error", err}
		if errors.Is(err, unix.EPERM) || errors.Is(err, unix.EACCES) {
			attrs = append(attrs, "remedy", "give the daemon CAP_NET_RAW, or its group ping sockets (sysctl net.ipv4.ping_group_range), or set -probe-interval=0")
		}
		m.log.Warn("peers can't be probed", attrs...)
	}
	return nil, err
}

// note takes note of what has become of a peer's request, and when the next one is due.
// While no packets pass it means nothing.
func (m *Monitor) note(p *peer, full bool, reply probe.Reply, err error) {
	now := time.Now()
	carries := m.network.Carries()
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.peers[p.target.Subnet] != p {
		return
	}
	again := time.Duration((0.9 + 0.2*rand.Float64()) * float64(m.interval))
	if carries {
		event := p.take(now, full, reply, err)
		if event != nothing {
			m.told.tell(event, p, m.network.Heard(p.target.Subnet), now)
		}
	}
	if !carries || p.isUnclear() {
		again = min(again, retry)
	}
	p.due = now.Add(again)
	heap.Push(&m.queue, p)
	wake(m.queued)
}

// Fill adds to peers, by their subnets, how they do.
func (m *Monitor) Fill(peers []control.Peer) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for i := range peers {
		if p := m.peers[peers[i].Subnet]; p != nil {
			peers[i].Health = p.health()
		}
	}
}

// Silent is how many peers don't answer.
func (m *Monitor) Silent() (n int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, p := range m.peers {
		if p.state == control.HealthSilent {
			n++
		}
	}
	return n
}

// Off says why no peer is asked, empty if they are.
func (m *Monitor) Off() string {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.interval <= 0 {
		return "by -probe-interval=0"
	}
	return m.off
}

// queue has the peer that is due first at its front.
type queue []*peer

func (q queue) Len() int           { return len(q) }
func (q queue) Less(i, j int) bool { return q[i].due.Before(q[j].due) }
func (q queue) Swap(i, j int)      { q[i], q[j] = q[j], q[i] }

// Push implements [heap.Interface].
func (q *queue) Push(p any) { *q = append(*q, p.(*peer)) }

// Pop implements [heap.Interface].
func (q *queue) Pop() any {
	old := *q
	last := len(old) - 1
	p := old[last]
	old[last] = nil
	*q = old[:last]
	return p
}

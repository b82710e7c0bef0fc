package tunnel

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"uvxlan/encap"
	"uvxlan/lease"
	"uvxlan/tunnel/device"
	"uvxlan/tunnel/internal/testhost"
	"uvxlan/tunnel/link"
	"uvxlan/tunnel/nexthop"
	"uvxlan/tunnel/onlink"
	"uvxlan/tunnel/underlay"
)

// fakePath keeps the peers that it is handed.
type fakePath struct {
	onPut, onRemove, onTraffic, onUsed func()

	waits  atomic.Bool
	passed atomic.Pointer[time.Time] // what was said last

	mu    sync.Mutex
	peers map[netip.Prefix]FastPeer
	put   []netip.Prefix // in the order of the calls
	used  []netip.Prefix
	stats FastPathStats
	of    map[netip.Prefix]PeerTraffic
}

func newFakePath() *fakePath {
	return &fakePath{peers: map[netip.Prefix]FastPeer{}, of: map[netip.Prefix]PeerTraffic{}, onPut: func() {}, onRemove: func() {}, onTraffic: func() {}, onUsed: func() {}}
}

func (f *fakePath) Replace(peers []FastPeer) {
	f.mu.Lock()
	clear(f.peers)
	f.mu.Unlock()
	f.Put(peers)
}

func (f *fakePath) Put(peers []FastPeer) {
	f.onPut()
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, p := range peers {
		f.peers[p.Subnet] = p
		f.put = append(f.put, p.Subnet)
	}
}

func (f *fakePath) Remove(subnets []netip.Prefix) {
	if len(subnets) > 0 {
		f.onRemove()
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, s := range subnets {
		delete(f.peers, s)
		delete(f.of, s)
	}
}

func (f *fakePath) Traffic(subnet netip.Prefix) PeerTraffic {
	f.onTraffic()
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.of[subnet]
}

func (f *fakePath) Stats() FastPathStats { return f.stats }

func (f *fakePath) Waits() bool { return f.waits.Load() }

func (f *fakePath) Passed(before time.Time) { f.passed.Store(&before) }

func (f *fakePath) Used() []netip.Prefix {
	f.onUsed()
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.used
}

// forget forgets what was put so far, not the peers.
func (f *fakePath) forget() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.put = nil
}

func (f *fakePath) get(subnet netip.Prefix) (FastPeer, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	p, ok := f.peers[subnet]
	return p, ok
}

var testPeer8 = Peer{netip.MustParsePrefix("10.0.8.0/24"), netip.MustParseAddr("127.0.0.8"), testMAC(8)}

func TestFastPathFollowsThePeers(t *testing.T) {
	a := startNode(t, 1, testhost.FreePort(t), nil)
	addPeers(t, a, testPeer9)
	f := newFakePath()
	a.UseFastPath(f)
	if p, ok := f.get(testPeer9.Subnet); !ok || p.Peer != testPeer9 || p.MaxPacket == 0 || p.Direct != nil {
		t.Errorf("of the peer before there is %+v, %t", p, ok)
	}
	added := 0
	f.onPut = func() {
		added++
		if !a.HasPeer(testPeer8.Subnet) {
			t.Error("the fast path got the peer before the table did")
		}
	}
	addPeers(t, a, testPeer8)
	if _, ok := f.get(testPeer8.Subnet); !ok || added != 1 {
		t.Errorf("a new peer isn't there when UpdatePeers returns, %d additions", added)
	}
	f.onPut = func() {}

	// Workers may have a peer that the fast path doesn't, and not the other way
	// round: what is revoked is the fast path's first.
	removed := 0
	f.onRemove = func() {
		removed++
		if !a.HasPeer(testPeer8.Subnet) {
			t.Error("the table lost the peer before the fast path did")
		}
	}
	if err := a.Apply(lease.Update{Deleted: []lease.Lease{{Subnet: testPeer8.Subnet}}}); err != nil {
		t.Fatal(err)
	}
	if _, ok := f.get(testPeer8.Subnet); ok || removed != 1 {
		t.Errorf("a revoked lease is there when Apply returns, %d removals", removed)
	}
	addPeers(t, a, testPeer8)
	if err := a.ReplacePeers([]Peer{testPeer9}); err != nil {
		t.Fatal(err)
	}
	if _, ok := f.get(testPeer8.Subnet); ok || removed != 2 {
		t.Errorf("a peer that a new list doesn't have is there, %d removals", removed)
	}

	a.UseFastPath(nil)
	addPeers(t, a, testPeer8)
	if _, ok := f.get(testPeer8.Subnet); ok {
		t.Error("a fast path that isn't used any longer was handed a peer")
	}
}

func TestFastPathCounts(t *testing.T) {
	a := startNode(t, 1, testhost.FreePort(t), nil)
	addPeers(t, a, testPeer9)
	f := newFakePath()
	seen := time.Unix(1_700_000_000, 0)
	f.of[testPeer9.Subnet] = PeerTraffic{TxPackets: 5, TxBytes: 500, RxPackets: 7, RxBytes: 700, LastSeen: seen}
	f.stats = FastPathStats{TxPackets: 4, TxDatagrams: 5, TxBytes: 500, RxPackets: 7, RxDatagrams: 7, RxBytes: 700, TxDirect: 1}
	a.UseFastPath(f)
	check := func(when string) {
		t.Helper()
		if got := a.Traffic(testPeer9.Subnet); got != f.of[testPeer9.Subnet] {
			t.Errorf("%s the peer has %+v", when, got)
		}
		s := a.Stats()
		if s.TxPackets != 4 || s.TxDatagrams != 5 || s.TxBytes != 500 || s.RxPackets != 7 || s.RxDatagrams != 7 || s.RxBytes != 700 || s.TxDirect != 1 || s.FastPath != f.stats {
			t.Errorf("%s there is %+v in all", when, s)
		}
	}
	check("while it is in use")
	a.UseFastPath(nil)
	check("after it was")
}

// A peer's counters never fall, not even while what a fast path has carried is added
// to what the workers have.
func TestFastPathCountersNeverFall(t *testing.T) {
	a := startNode(t, 1, testhost.FreePort(t), nil)
	addPeers(t, a, testPeer9)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for range 5000 {
			f := newFakePath()
			f.of[testPeer9.Subnet] = PeerTraffic{TxPackets: 1}
			f.stats = FastPathStats{TxPackets: 1}
			f.onTraffic = runtime.Gosched // let somebody read meanwhile
			a.UseFastPath(f)
			a.UseFastPath(nil)
		}
	}()
	var peer, all uint64
	for running := true; running; {
		select {
		case <-ended:
			running = false
		default:
		}
		if n := a.Traffic(testPeer9.Subnet).TxPackets; n < peer {
			t.Fatalf("the peer's packets fell from %d to %d", peer, n)
		} else {
			peer = n
		}
		if n := a.Stats().TxPackets; n < all {
			t.Fatalf("the router's packets fell from %d to %d", all, n)
		} else {
			all = n
		}
	}
	if peer != 5000 || all != 5000 {
		t.Errorf("of 5000 packets there are %d of the peer and %d in all", peer, all)
	}
}

// A subnet that one change removes and adds never was without a peer.
func TestFastPathCountsOnAcrossAChangeOfThePeer(t *testing.T) {
	a := startNode(t, 1, testhost.FreePort(t), nil)
	addPeers(t, a, testPeer9)
	f := newFakePath()
	a.UseFastPath(f)
	f.of[testPeer9.Subnet] = PeerTraffic{TxPackets: 5}
	moved := testPeer9
	moved.Underlay = netip.MustParseAddr("127.0.0.8")
	testhost.Must(t, a.UpdatePeers([]Peer{moved}, []netip.Prefix{netip.MustParsePrefix("10.0.9.77/24")}))
	if got := a.Traffic(testPeer9.Subnet).TxPackets; got != 5 {
		t.Errorf("after the change the peer has %d packets of 5", got)
	}
}

func TestFastPathHearsOfPathMTU(t *testing.T) {
	a := startNode(t, 1, testhost.FreePort(t), nil)
	addPeers(t, a, testPeer9)
	f := newFakePath()
	a.UseFastPath(f)
	d := a.destination(testPeer9.Underlay)
	testhost.Await(t, "the fast path to hear of the path's MTU", func() bool {
		d.SetMaxDatagram(1000 + encap.FrameHeaderLen) // the router asks for the real one meanwhile
		a.fast.mark(testPeer9.Underlay)
		p, _ := f.get(testPeer9.Subnet)
		return p.MaxPacket == 1000
	})
}

// A peer that comes to be on-link is handed over as such, and nobody else with it.
func TestFastPathHearsOfWays(t *testing.T) {
	paths, err := onlink.Open(onlink.Config{Mode: onlink.Socket, Sockets: []int{}})
	testhost.Must(t, err)
	a := newNode(t, 1, testhost.FreePort(t), nil)
	a.paths = paths // whose watcher doesn't run: the test says what it finds
	paths.Attach(onlink.Settings{MTU: a.config.Link.MTU, Changed: a.fast.mark})
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		a.followFastPath(ctx)
	}()
	defer func() {
		cancel()
		<-ended
		testhost.Must(t, a.Close())
	}()
	addPeers(t, a, testPeer8, testPeer9)
	f := newFakePath()
	a.UseFastPath(f)
	f.forget()
	for _, c := range []struct {
		next nexthop.Hop
		want *DirectWay
	}{
		{nexthop.Hop{OnLink: true, Link: "eth0", Index: 7, MTU: 1500, Source: testMAC(0xa0), MAC: testMAC(0xb0)}, &DirectWay{7, testMAC(0xa0), testMAC(0xb0)}},
		{nexthop.Hop{OnLink: true, Link: "eth0", Index: 7, MTU: 1500, Source: testMAC(0xa1), MAC: testMAC(0xb0)}, &DirectWay{7, testMAC(0xa1), testMAC(0xb0)}},
		{nexthop.Hop{Reason: "gone"}, nil},
	} {
		paths.Found([]nexthop.Change{{Addr: testPeer9.Underlay, Hop: c.next}})
		testhost.Await(t, "the fast path to hear of the way", func() bool {
			p, _ := f.get(testPeer9.Subnet)
			return p.Direct == nil && c.want == nil || p.Direct != nil && c.want != nil && *p.Direct == *c.want
		})
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, subnet := range f.put {
		if subnet != testPeer9.Subnet {
			t.Errorf("%s was handed over, though nothing has changed about it", subnet)
		}
	}
}

func TestFastPathKeepsWaysInUse(t *testing.T) {
	a := startNode(t, 1, testhost.FreePort(t), nil)
	addPeers(t, a, testPeer9)
	f := newFakePath()
	f.used = []netip.Prefix{testPeer9.Subnet, netip.MustParsePrefix("10.0.77.0/24")}
	a.UseFastPath(f)
	d := a.destination(testPeer9.Underlay)
	testhost.Await(t, "the destination to be marked as used", d.Used)
}

// A fast path is closed once its use has ended, so nobody may be asking it by then.
// A fast path whose packets wait is told what the workers have passed on, though they
// sleep, again and again.
func TestFastPathHearsWhatWorkersHavePassedOn(t *testing.T) {
	a := startNode(t, 1, testhost.FreePort(t), nil)
	f := newFakePath()
	begin := time.Now()
	a.UseFastPath(f)
	told := func() (before time.Time) {
		if p := f.passed.Load(); p != nil {
			before = *p
		}
		return before
	}
	testhost.Await(t, "the answer after a fast path came to use", func() bool { return told().After(begin) })
	f.waits.Store(true)
	for range 3 {
		now := time.Now()
		testhost.Await(t, "an answer while packets wait", func() bool { return told().After(now) })
	}
	if before := told(); before.After(time.Now()) {
		t.Errorf("what comes at %s is passed on already", before)
	}
}

// What had come when a worker was asked is passed on when it answers.
func TestWorkerAnswersWhenAllIsPassedOn(t *testing.T) {
	w := &worker{waker: openWaker(t), passed: make(chan struct{}, 1)}
	if q := w.question(); q != 0 || !w.answered() {
		t.Errorf("question %d before there was one", q)
	}
	w.ask()
	w.ask()
	q := w.question()
	if q != 2 || w.answered() {
		t.Errorf("question %d of 2, answered is %t", q, w.answered())
	}
	w.ask() // too late for what is being moved
	w.answer(q)
	if w.answered() {
		t.Error("a question is answered that came later")
	}
	w.answer(w.question())
	if !w.answered() || w.question() != 0 {
		t.Error("there is a question still")
	}
}

func TestFastPathIsntAskedAfterItsUse(t *testing.T) {
	a := newNode(t, 1, testhost.FreePort(t), nil)
	defer a.Close()
	f := newFakePath()
	asked, answer, ended := make(chan struct{}), make(chan struct{}), make(chan struct{})
	var asking atomic.Bool
	f.onUsed = func() {
		asking.Store(true)
		close(asked)
		<-answer
		asking.Store(false)
	}
	a.UseFastPath(f)
	var wg sync.WaitGroup
	wg.Go(a.markUsed)
	<-asked
	wg.Go(func() {
		a.UseFastPath(nil)
		if asking.Load() {
			t.Error("its use ended while it was asked which peers it carries packets to")
		}
		close(ended)
	})
	// Wrong code ends the use here; right code waits for the answer.
	select {
	case <-ended:
	case <-time.After(50 * time.Millisecond):
	}
	close(answer)
	wg.Wait()
	a.markUsed() // asks nobody: asked would be closed twice
}

// Whoever owns the fast path ends its use before the router is closed or after. Neither
// loses what it has carried.
func TestFastPathOutlivesTheRouter(t *testing.T) {
	for _, before := range []bool{true, false} {
		a := newNode(t, 1, testhost.FreePort(t), nil)
		ended := make(chan error, 1)
		go func() { ended <- a.Run(t.Context()) }()
		addPeers(t, a, testPeer9)
		f := newFakePath()
		f.of[testPeer9.Subnet], f.stats = PeerTraffic{TxPackets: 5}, FastPathStats{TxPackets: 4}
		a.UseFastPath(f)
		if before {
			a.UseFastPath(nil)
		}
		testhost.Must(t, a.Close())
		if err := <-ended; err != nil && !errors.Is(err, ErrClosed) {
			t.Error(err)
		}
		if !before {
			// What is on its way to the router may come late.
			a.fast.mark(testPeer9.Underlay)
			testhost.Must(t, a.UpdatePeers([]Peer{testPeer8}, nil))
			a.UseFastPath(nil)
		}
		if peer, all := a.Traffic(testPeer9.Subnet).TxPackets, a.Stats().TxPackets; peer != 5 || all != 4 {
			t.Errorf("ended before Close: %t: %d packets of the peer and %d in all", before, peer, all)
		}
		if _, ok := f.get(testPeer9.Subnet); !ok {
			t.Errorf("ended before Close: %t: the fast path has lost its peers", before)
		}
	}
}

// kernelLike is a device in memory that passes for one of the kernel's.
type kernelLike struct{ device.Device }

func (kernelLike) Interface() (string, bool) { return "tun7", true }

func TestWire(t *testing.T) {
	port := testhost.FreePort(t)
	a := newNode(t, 1, port, nil)
	if w, err := a.Wire(); !errors.Is(err, ErrNoFastPath) {
		t.Errorf("of a device in memory: %+v, %v", w, err)
	}
	a.device = kernelLike{a.device}
	w, err := a.Wire()
	testhost.Must(t, err)
	if w.Device != "tun7" || len(w.Locals) == 0 || w.Locals[0].Port() != port || w.VNI != testVNI || w.MAC != testMAC(1) || w.MTU != 1450 {
		t.Errorf("the wire is %+v", w)
	}
	ports := w.SourcePorts[w.Locals[0].Addr()]
	if len(ports) == 0 || slices.Contains(ports, 0) {
		t.Errorf("source ports %v", ports)
	}
	testhost.Must(t, a.Close())
	if w, err := a.Wire(); !errors.Is(err, ErrClosed) {
		t.Errorf("of a closed router: %+v, %v", w, err)
	}
}

func TestWireOfMemoryUnderlay(t *testing.T) {
	u, err := underlay.NewMemory().Listen(1, netip.MustParseAddrPort("192.0.2.1:4789"))
	testhost.Must(t, err)
	r, err := New(kernelLike{testhost.NewMemoryDevice(t, 1, 0)}, u, Config{MAC: testMAC(1), Link: link.Config{MTU: 1450}})
	testhost.Must(t, err)
	defer r.Close()
	if w, err := r.Wire(); !errors.Is(err, ErrNoFastPath) {
		t.Errorf("of an underlay in memory: %+v, %v", w, err)
	}
}

// A flow's port is what Wire says of it, lest the flow change its port when it changes
// between the workers and the fast path.
func TestWireTellsAFlowsPort(t *testing.T) {
	a := newNode(t, 1, testhost.FreePort(t), nil)
	a.run(t)
	addPeers(t, a, testPeer9)
	peer := newWire(t, 9, a)
	ports, err := a.underlay.(*underlay.UDP).SourcePorts(a.peer.Underlay)
	testhost.Must(t, err)
	seen := map[uint16]struct{}{}
	buf := make([]byte, device.MaxPacket)
	testhost.Must(t, peer.SetReadDeadline(time.Now().Add(testhost.Patience)))
	for i := range 128 {
		packet := testhost.UDPPacket(fmt.Sprintf("10.0.1.%d", i), "10.0.9.1", 8)
		a.queue.Send(t, packet)
		_, from, err := peer.ReadFromUDPAddrPort(buf)
		testhost.Must(t, err)
		want := ports[encap.FlowHash(packet)%uint32(len(ports))]
		if from.Port() != want {
			t.Fatalf("flow %d left from port %d, want %d of %v", i, from.Port(), want, ports)
		}
		seen[want] = struct{}{}
	}
	if len(seen) < 2 {
		t.Errorf("all flows left from one port of %v", ports)
	}
}

package tunnel

import (
	"net/netip"
	"runtime"
	"slices"
	"sync"
	"testing"
	"time"

	"uvxlan/encap"
	"uvxlan/lease"
	"uvxlan/tunnel/internal/testhost"
)

// fakePath keeps the peers that it is handed.
type fakePath struct {
	onRemove, onTraffic func()

	mu    sync.Mutex
	peers map[netip.Prefix]FastPeer
	used  []netip.Prefix
	stats FastPathStats
	of    map[netip.Prefix]PeerTraffic
}

func newFakePath() *fakePath {
	return &fakePath{peers: map[netip.Prefix]FastPeer{}, of: map[netip.Prefix]PeerTraffic{}, onRemove: func() {}, onTraffic: func() {}}
}

func (f *fakePath) Replace(peers []FastPeer) {
	f.mu.Lock()
	clear(f.peers)
	f.mu.Unlock()
	f.Put(peers)
}

func (f *fakePath) Put(peers []FastPeer) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, p := range peers {
		f.peers[p.Subnet] = p
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

func (f *fakePath) Used() []netip.Prefix {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.used
}

func (f *fakePath) get(subnet netip.Prefix) (FastPeer, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	p, ok := f.peers[subnet]
	return p, ok
}

func TestFastPathFollowsThePeers(t *testing.T) {
	a := startNode(t, 1, testhost.FreePort(t), nil)
	peer8 := Peer{netip.MustParsePrefix("10.0.8.0/24"), netip.MustParseAddr("127.0.0.8"), testMAC(8)}
	addPeers(t, a, testPeer9)
	f := newFakePath()
	a.UseFastPath(f)
	if p, ok := f.get(testPeer9.Subnet); !ok || p.Peer != testPeer9 || p.MaxPacket == 0 || p.Direct != nil {
		t.Errorf("of the peer before there is %+v, %t", p, ok)
	}
	addPeers(t, a, peer8)
	if _, ok := f.get(peer8.Subnet); !ok {
		t.Error("a new peer isn't there when UpdatePeers returns")
	}

	// Workers may have a peer that the fast path doesn't, and not the other way
	// round: what is revoked is the fast path's first.
	removed := 0
	f.onRemove = func() {
		removed++
		if !a.HasPeer(peer8.Subnet) {
			t.Error("the table lost the peer before the fast path did")
		}
	}
	if err := a.Apply(lease.Update{Deleted: []lease.Lease{{Subnet: peer8.Subnet}}}); err != nil {
		t.Fatal(err)
	}
	if _, ok := f.get(peer8.Subnet); ok || removed != 1 {
		t.Errorf("a revoked lease is there when Apply returns, %d removals", removed)
	}
	addPeers(t, a, peer8)
	if err := a.ReplacePeers([]Peer{testPeer9}); err != nil {
		t.Fatal(err)
	}
	if _, ok := f.get(peer8.Subnet); ok || removed != 2 {
		t.Errorf("a peer that a new list doesn't have is there, %d removals", removed)
	}

	a.UseFastPath(nil)
	addPeers(t, a, peer8)
	if _, ok := f.get(peer8.Subnet); ok {
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
		a.fast.mark()
		p, _ := f.get(testPeer9.Subnet)
		return p.MaxPacket == 1000
	})
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

func TestWire(t *testing.T) {
	port := testhost.FreePort(t)
	a := startNode(t, 1, port, nil)
	w, err := a.Wire()
	if err != nil {
		t.Fatal(err)
	}
	if len(w.Locals) == 0 || w.Locals[0].Port() != port || w.VNI != testVNI || w.MAC != testMAC(1) {
		t.Errorf("the wire is %+v", w)
	}
	ports := w.SourcePorts[w.Locals[0].Addr()]
	if len(ports) == 0 || slices.Contains(ports, 0) {
		t.Errorf("source ports %v", ports)
	}
}

package tunnel

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"time"

	"uvxlan/encap"
	"uvxlan/tunnel/device"
	"uvxlan/tunnel/onlink"
	"uvxlan/tunnel/underlay"
)

// FastPath carries packets of peers past the workers, in the kernel; package fastpath
// has the one that there is. It is handed peers, and takes of their packets those
// that it can carry just as a worker would. All others come to the workers. A router
// holds locks while it calls a method, which must not call the router. It never calls
// two of the first three at a time, and none once its use has ended.
type FastPath interface {
	// Replace makes peers all there are. The slice is the fast path's to keep, as
	// are those of the other methods.
	Replace(peers []FastPeer)
	// Put adds peers, each in the place of the one that has its subnet, whose traffic
	// goes on. One that hasn't changed is passed over at little cost.
	Put(peers []FastPeer)
	// Remove takes the peers of subnets away, with their traffic: when it returns,
	// nothing is carried for them.
	Remove(subnets []netip.Prefix)
	// Traffic is what was carried for the peer of a subnet since there has been one,
	// zero if there is none. Any goroutine may ask, as for what follows.
	Traffic(subnet netip.Prefix) PeerTraffic
	// Stats is what was carried in all, since the fast path was made. It never falls.
	Stats() FastPathStats
	// Used lists the subnets of the peers that packets were carried to since it was
	// last asked, about once a second.
	Used() []netip.Prefix
	// Waits tells whether since it was last asked packets were left to the workers that
	// could have been carried, had it been certain that none of their flow is in
	// front of them at the workers.
	Waits() bool
	// Passed says that the workers have passed on all that came to the device and the
	// sockets before a moment.
	Passed(before time.Time)
}

// FastPeer is a peer as a [FastPath] must know it.
type FastPeer struct {
	Peer
	// MaxPacket is the longest packet, in bytes, that travels to the peer in one
	// piece by VXLAN; longer ones are the workers'. A direct way takes any.
	MaxPacket encap.InnerMTU
	// Direct is the way without VXLAN to a peer on the same Ethernet, nil for VXLAN.
	Direct *DirectWay
}

// DirectWay is where frames to an on-link peer leave, and the MACs that they have.
type DirectWay struct {
	Link           int // interface index
	Source, Target encap.MAC
}

// FastPathStats is what a [FastPath] has carried, in the terms of [Stats].
type FastPathStats struct {
	TxPackets, RxPackets     uint64
	TxDatagrams, RxDatagrams uint64
	TxBytes, RxBytes         uint64
	TxDirect                 uint64
}

func (s FastPathStats) plus(o FastPathStats) FastPathStats {
	s.TxPackets += o.TxPackets
	s.RxPackets += o.RxPackets
	s.TxDatagrams += o.TxDatagrams
	s.RxDatagrams += o.RxDatagrams
	s.TxBytes += o.TxBytes
	s.RxBytes += o.RxBytes
	s.TxDirect += o.TxDirect
	return s
}

// ErrNoFastPath says that a router's packets can't take a fast path: its device is no
// interface of the kernel's, or its underlay isn't [underlay.UDP].
var ErrNoFastPath = errors.New("the router's device or underlay isn't the kernel's")

// Wire is what a [FastPath] must know of a router.
type Wire struct {
	// Device is the name that the TUN interface has at the moment, in the network
	// namespace of the router's descriptors.
	Device string
	VNI    encap.VNI
	MAC    encap.MAC
	// MTU is the device's.
	MTU encap.InnerMTU
	// Locals are the addresses and the port that frames arrive at.
	Locals []netip.AddrPort
	// SourcePorts are the ports that frames leave from, by the local address: a flow's
	// is the one whose place is [encap.FlowHash] modulo their number.
	SourcePorts map[netip.Addr][]uint16
}

// Wire tells a [FastPath] of the router. It returns [ErrNoFastPath], and [ErrClosed] on
// a router that was closed or released before.
func (r *Router) Wire() (w Wire, err error) {
	err = ErrClosed
	r.life.While(func() { w, err = r.wire() })
	if err != nil {
		return Wire{}, fmt.Errorf("tell the fast path of the router: %w", err)
	}
	return w, nil
}

func (r *Router) wire() (Wire, error) {
	u, sockets := r.underlay.(*underlay.UDP)
	name, kernel := device.Interface(r.device)
	if !sockets || !kernel {
		return Wire{}, ErrNoFastPath
	}
	w := Wire{
		Device: name, VNI: r.config.VNI, MAC: r.config.MAC, MTU: r.config.Link.MTU,
		Locals: u.Locals(), SourcePorts: map[netip.Addr][]uint16{},
	}
	for _, local := range w.Locals {
		ports, err := u.SourcePorts(local.Addr())
		if err != nil {
			return Wire{}, err
		}
		w.SourcePorts[local.Addr()] = ports
	}
	return w, nil
}

// fastPath is the one in use, and what those before it have carried.
type fastPath struct {
	mu   sync.Mutex // guards path and past; held briefly
	path FastPath   // changed under Router.changing too
	past FastPathStats

	// Code that finds a change of the way to a host, or of its MTU, may hold a lock that
	// a change of the peers waits for: so it only leaves word.
	dirty   chan struct{} // gets a value when a host is added to changed
	passed  chan struct{} // and when a worker has answered
	begun   chan struct{} // and when a fast path has new peers
	marking sync.Mutex    // guards changed; no other lock is taken under it
	changed map[netip.Addr]struct{}
}

func newFastPath() fastPath {
	return fastPath{dirty: make(chan struct{}, 1), passed: make(chan struct{}, 1), begun: make(chan struct{}, 1), changed: map[netip.Addr]struct{}{}}
}

// UseFastPath hands all peers to f and keeps it up to date from then on: a change of
// the peers is in force there, too, when the method that makes it returns. A peer that
// is removed is gone from f before the workers stop serving it, and one that is added
// is theirs first. What f carries is part of what [Router.Traffic] and [Router.Stats]
// count. A fast path is used once, by one router.
//
// A further call, with nil or another fast path, ends the use of f, which keeps the
// peers that it has and hears of no further change: so it should carry nothing by
// then, unless it is about to be handed over. What it has carried stays counted. When that
// call returns, none of f's methods is at work, nor will one be called: f may be
// closed.
//
// Close and Release leave f alone, and it goes on with the peers that it has. Its owner
// closes it before the router or after, and ends its use in either case; its Stats and
// Traffic are asked for until then.
func (r *Router) UseFastPath(f FastPath) {
	r.changing.Lock()
	defer r.changing.Unlock()
	peers := r.peers.load()
	r.fast.replace(f, peers)
	if f != nil {
		f.Replace(r.fastPeers(peers.entries()))
		notify(r.fast.begun)
	}
}

// replace puts f in use and adds what the one before has carried to the workers'
// counters.
func (p *fastPath) replace(f FastPath, peers *table) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.path != nil {
		p.past = p.past.plus(p.path.Stats())
		for subnet, e := range peers.subnets.All() {
			e.traffic.add(p.path.Traffic(subnet))
		}
	}
	p.path = f
}

// traffic is what workers and fast path have carried for a peer. Both are read under
// the lock, lest replace move the one's part to the other in between.
func (p *fastPath) traffic(e *entry) PeerTraffic {
	p.mu.Lock()
	defer p.mu.Unlock()
	t := e.traffic.load()
	if p.path == nil {
		return t
	}
	return t.plus(p.path.Traffic(e.Subnet))
}

// addTo adds what the fast paths have carried.
func (p *fastPath) addTo(s *Stats) {
	p.mu.Lock()
	all := p.past
	if p.path != nil {
		all = all.plus(p.path.Stats())
	}
	p.mu.Unlock()
	s.TxPackets += all.TxPackets
	s.RxPackets += all.RxPackets
	s.TxDatagrams += all.TxDatagrams
	s.RxDatagrams += all.RxDatagrams
	s.TxBytes += all.TxBytes
	s.RxBytes += all.RxBytes
	s.TxDirect += all.TxDirect
	s.FastPath = all
}

// fastPeers are entries as a fast path must know them.
func (r *Router) fastPeers(entries []*entry) []FastPeer {
	peers := make([]FastPeer, len(entries))
	for i, e := range entries {
		peers[i] = FastPeer{Peer: e.Peer, MaxPacket: min(innerMTU(e.to), r.config.Link.MTU), Direct: directWay(e.hop)}
	}
	return peers
}

func directWay(h *onlink.Hop) *DirectWay {
	n := h.Neighbour()
	if n == nil {
		return nil
	}
	index, source, target := n.Link()
	return &DirectWay{Link: index, Source: source, Target: target}
}

// mark leaves word that the way to a host has changed, or its MTU.
func (p *fastPath) mark(host netip.Addr) {
	p.marking.Lock()
	p.changed[host] = struct{}{}
	p.marking.Unlock()
	notify(p.dirty)
}

// notify gives a channel of one value its value.
func notify(c chan<- struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// takeChanged returns the hosts that were marked since it was last called.
func (p *fastPath) takeChanged() map[netip.Addr]struct{} {
	p.marking.Lock()
	defer p.marking.Unlock()
	changed := p.changed
	p.changed = map[netip.Addr]struct{}{}
	return changed
}

// usedInterval is the time between two looks at which peers the fast path carries
// packets to.
const usedInterval = time.Second

// followFastPath hands over what changes about peers without a change of the leases,
// and has the ways to peers looked after whose packets never meet a worker, until ctx
// ends.
func (r *Router) followFastPath(ctx context.Context) {
	tick, again := time.NewTicker(usedInterval), time.NewTimer(usedInterval)
	defer tick.Stop()
	defer again.Stop()
	again.Stop()
	var asked time.Time // what the workers have passed on; zero after their answer
	times := 0
	ask := func(more int) {
		asked, times = r.askWorkers(), more
		if more > 0 {
			again.Reset(askInterval)
		}
	}
	const often = int(usedInterval/askInterval) - 1
	for {
		select {
		case <-ctx.Done():
			return
		case <-r.fast.dirty:
			r.refreshFastPath()
		case <-r.fast.begun:
			ask(often)
		case <-tick.C:
			r.markUsed()
			if r.fastPathWaits() {
				ask(often)
			}
		case <-again.C:
			ask(times - 1)
		case <-r.fast.passed:
			if !asked.IsZero() && r.haveAnswered() {
				r.tellPassed(asked)
				asked = time.Time{}
			}
		}
	}
}

// askInterval is the time between two questions to the workers while the fast path
// waits for them: between two packets of a stream there must be one with its answer.
const askInterval = 100 * time.Millisecond

// askWorkers has each worker tell once it has passed on all that it has at the moment.
func (r *Router) askWorkers() time.Time {
	now := time.Now()
	for _, w := range r.workers {
		w.ask()
	}
	return now
}

func (r *Router) haveAnswered() bool {
	return !slices.ContainsFunc(r.workers, func(w *worker) bool { return !w.answered() })
}

func (r *Router) fastPathWaits() bool {
	r.changing.Lock()
	defer r.changing.Unlock()
	return r.fast.path != nil && r.fast.path.Waits()
}

func (r *Router) tellPassed(before time.Time) {
	r.changing.Lock()
	defer r.changing.Unlock()
	if f := r.fast.path; f != nil {
		f.Passed(before)
	}
}

// refreshFastPath hands over the peers behind the hosts that were marked.
func (r *Router) refreshFastPath() {
	changed := r.fast.takeChanged()
	r.changing.Lock()
	defer r.changing.Unlock()
	f := r.fast.path
	if f == nil {
		return
	}
	var entries []*entry
	for _, e := range r.peers.load().subnets.All() {
		if _, ok := changed[e.Underlay]; ok {
			entries = append(entries, e)
		}
	}
	if len(entries) > 0 {
		f.Put(r.fastPeers(entries))
	}
}

// markUsed holds the lock while f is asked: once UseFastPath has ended its use, f may
// be gone.
func (r *Router) markUsed() {
	r.changing.Lock()
	defer r.changing.Unlock()
	f := r.fast.path
	if f == nil {
		return
	}
	peers := r.peers.load()
	for _, subnet := range f.Used() {
		if e, ok := peers.subnets.Get(subnet); ok {
			e.to.Use()
			e.hop.Use()
		}
	}
}

// plus adds what was counted elsewhere of the same peer.
func (p PeerTraffic) plus(o PeerTraffic) PeerTraffic {
	p.TxPackets += o.TxPackets
	p.TxBytes += o.TxBytes
	p.TxDropped += o.TxDropped
	p.RxPackets += o.RxPackets
	p.RxBytes += o.RxBytes
	if o.LastSeen.After(p.LastSeen) {
		p.LastSeen = o.LastSeen
	}
	return p
}

// add counts what was counted elsewhere.
func (t *traffic) add(p PeerTraffic) {
	t.sent.Packets.Add(p.TxPackets)
	t.sent.Bytes.Add(p.TxBytes)
	t.sent.Dropped.Add(p.TxDropped)
	t.rxPackets.Add(p.RxPackets)
	t.rxBytes.Add(p.RxBytes)
	if seen := p.LastSeen; !seen.IsZero() {
		t.seen.Store(max(t.seen.Load(), seen.UnixNano()))
	}
}

// entries lists the peers.
func (t *table) entries() []*entry {
	all := make([]*entry, 0, t.subnets.Size())
	for _, e := range t.subnets.All() {
		all = append(all, e)
	}
	return all
}

// allSubnets lists the peers'.
func (t *table) allSubnets() []netip.Prefix {
	all := make([]netip.Prefix, 0, t.subnets.Size())
	for subnet := range t.subnets.All() {
		all = append(all, subnet)
	}
	return all
}

// without lists those of subnets that none of entries has.
func without(subnets []netip.Prefix, entries []*entry) (gone []netip.Prefix) {
	stays := make(map[netip.Prefix]struct{}, len(entries))
	for _, e := range entries {
		stays[e.Subnet] = struct{}{}
	}
	for _, subnet := range subnets {
		if _, ok := stays[subnet]; !ok {
			gone = append(gone, subnet)
		}
	}
	return gone
}

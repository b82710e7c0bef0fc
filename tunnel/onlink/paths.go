// Package onlink keeps hosts of the same layer-2 network on a path without VXLAN:
// [Paths] follows the host's routes and neighbours and knows at each moment which
// hosts are on-link and by which MAC, and [Sender] sends them packets through a
// packet socket (packet(7)) as they were read from a TUN device. With [Route] it
// keeps kernel routes instead.
package onlink

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"time"

	"uvxlan/encap"
	"uvxlan/tunnel/internal/descriptor"
	"uvxlan/tunnel/internal/lifecycle"
	"uvxlan/tunnel/kroute"
	"uvxlan/tunnel/nexthop"

	"golang.org/x/sys/unix"
)

// Mode says how packets to on-link peers travel.
type Mode uint8

// The modes.
const (
	// Off: by VXLAN, as to all others.
	Off Mode = iota
	// Socket: through a packet socket, while the kernel knows the peer's
	// MAC. The host's routes stay as they are. It takes CAP_NET_RAW, and
	// CAP_NET_ADMIN for the kernel to look for MACs that nothing else asks for.
	Socket
	// Route: by a kernel route to each peer's subnet, so that they never
	// come to the device. It takes CAP_NET_ADMIN.
	Route
)

// ErrClosed is what Run returns on what was closed before.
var ErrClosed = lifecycle.ErrClosed

// How long a link that refused a frame isn't tried again; twice as long each time
// until the underlay changes.
const (
	minRetry = time.Second
	maxRetry = time.Minute
)

// Path is how packets to a peer travel at a moment.
type Path struct {
	// Direct says that they go without VXLAN.
	Direct bool
	// Link and MAC are where a direct path leaves and arrives; by a kernel route
	// the MAC is the kernel's business and zero.
	Link string
	MAC  encap.MAC
	// Unreachable says that there is none, since a [hostgw.Gateway] has no VXLAN.
	Unreachable bool
	// Reason says why the path isn't direct.
	Reason string
	// Since is when the path became what it is.
	Since time.Time
}

// String is "direct via eth0 02:…", or "vxlan: " or "unreachable: " and the
// reason.
func (p Path) String() string {
	kind := "vxlan"
	switch {
	case p.Direct:
		return "direct via " + p.via()
	case p.Unreachable:
		kind = "unreachable"
	}
	if p.Reason == "" {
		return kind
	}
	return kind + ": " + p.Reason
}

func (p Path) via() string {
	if p.MAC == (encap.MAC{}) {
		return p.Link
	}
	return p.Link + " " + p.MAC.String()
}

// same compares all but the moment.
func (p Path) same(o Path) bool {
	p.Since, o.Since = time.Time{}, time.Time{}
	return p == o
}

// Paths keeps each peer on the best path that the underlay has at the moment:
// it follows the kernel's routes and neighbours, and sets hops' links or kernel
// routes to what they say.
type Paths struct {
	// immutable after New
	log     *slog.Logger
	watcher *nexthop.Watcher
	routes  *kroute.Set      // nil with Socket
	sockets []int            // packet sockets, nil with Route
	only    string           // the one link that may be used, if not empty
	alone   bool             // there is no VXLAN to take instead
	mtu     int              // packets are no longer
	changed func(netip.Addr) // a host's way has

	mu     sync.Mutex // guards the rest
	hops   map[netip.Addr]*Hop
	owners map[netip.Prefix]netip.Addr
	// stale says that the kernel may have routes of an earlier run or of peers
	// that are gone: they are removed once every hop's way is known.
	stale bool
	// failed has the routes that the kernel was last heard to refuse, by words.
	failed map[netip.Prefix]string
	closed bool // routes stay as they are
}

// Config says what [Open] opens.
type Config struct {
	// Mode says how packets to on-link hosts travel: [Socket] or
	// [Route].
	Mode Mode
	// Workers is how many packet sockets there are to be with [Socket], one
	// for each worker; 0 means one.
	Workers int
	// Sockets are packet sockets (packet(7)) with PACKET_VNET_HDR to adopt with
	// [Socket]; nil means that they are opened.
	Sockets []int
	// Link is the one interface that hosts may be on; empty means any.
	Link string
	// Exclusive says that there is no VXLAN to take instead: a host that isn't
	// on-link is unreachable.
	Exclusive bool
}

// Open opens what follows the host's routes and neighbours, and the packet
// sockets, in the calling thread's network namespace. It starts nothing. Adopted
// sockets are owned from here on; after an error they are still the caller's.
func Open(c Config) (p *Paths, err error) {
	p = &Paths{
		log: slog.New(slog.DiscardHandler), changed: func(netip.Addr) {},
		only: c.Link, alone: c.Exclusive,
		hops: map[netip.Addr]*Hop{}, owners: map[netip.Prefix]netip.Addr{}, failed: map[netip.Prefix]string{},
	}
	if err := p.open(c); err != nil {
		if c.Sockets != nil {
			p.sockets = nil
		}
		return nil, errors.Join(fmt.Errorf("follow on-link hosts: %w", err), p.Close())
	}
	return p, nil
}

// Settings are what a router or gateway tells of itself.
type Settings struct {
	// MTU is the overlay's: a link with a smaller one isn't used.
	MTU encap.InnerMTU
	// Networks are the overlay's: kernel routes that lead into no network of ours
	// are left alone, as another router or gateway may keep them; nil means that
	// all are ours.
	Networks []netip.Prefix
	// Changed is told a host of the underlay whose way may have changed. It must not
	// block, nor call the paths, whose lock is held. Nil is for nobody who wants to
	// know.
	Changed func(netip.Addr)
	// Logger gets what happens rarely; nil means nothing is logged.
	Logger *slog.Logger
}

// Attach is called once, before anything else.
func (p *Paths) Attach(s Settings) {
	p.mtu = int(s.MTU)
	if s.Changed != nil {
		p.changed = s.Changed
	}
	if s.Logger != nil {
		p.log = s.Logger
		p.watcher.SetLogger(s.Logger)
	}
	if p.routes != nil {
		p.routes.Limit(s.Networks...)
		p.routes.SetLogger(p.log)
	}
}

func (p *Paths) open(c Config) (err error) {
	n := nexthop.Config{Neighbours: c.Mode == Socket, InUse: p.inUse, Changed: p.Found}
	switch c.Mode {
	case Route:
		if p.routes, err = kroute.Open(kroute.Config{Protocol: kroute.Protocol}); err != nil {
			return err
		}
		n.Routes = p.restore
	case Socket:
		if err := p.openSockets(c); err != nil {
			return err
		}
	default:
		return fmt.Errorf("direct mode %d isn't one that opens anything", c.Mode)
	}
	p.watcher, err = nexthop.Open(n)
	return err
}

func (p *Paths) openSockets(c Config) error {
	for i, fd := range c.Sockets {
		if slices.Contains(c.Sockets[:i], fd) {
			return fmt.Errorf("packet socket %d: %w: it is there twice", fd, descriptor.ErrUnfit)
		}
		if v, err := unix.GetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_VNET_HDR); err != nil || v == 0 {
			return fmt.Errorf("packet socket %d: %w: it has no PACKET_VNET_HDR", fd, descriptor.ErrUnfit)
		}
	}
	if c.Sockets != nil {
		if err := descriptor.Own(c.Sockets); err != nil {
			return err
		}
		p.sockets = c.Sockets
		return nil
	}
	for range max(c.Workers, 1) {
		fd, err := openSocket()
		if err != nil {
			return err
		}
		p.sockets = append(p.sockets, fd)
	}
	return nil
}

// Run follows the underlay until ctx ends or close is called. If it can't any
// longer, everything takes VXLAN, which needs no watching; where there is none,
// the last paths stay.
func (p *Paths) Run(ctx context.Context) error {
	err := p.watcher.Run(ctx)
	switch {
	case errors.Is(err, ErrClosed):
		return ErrClosed
	case err != nil && !p.alone:
		p.giveUp()
	}
	return err
}

// giveUp puts all hosts on VXLAN, and those that come later.
func (p *Paths) giveUp() {
	p.mu.Lock()
	defer p.mu.Unlock()
	var changes []change
	for _, h := range p.hops {
		changes = p.moveLocked(changes, h, nexthop.Hop{Reason: "the underlay can't be followed"})
	}
	p.logLocked(changes)
	if p.routes == nil || p.closed {
		return
	}
	p.stale = false
	clear(p.failed)
	p.reportLocked(p.routes.Replace(nil))
}

// Release ends Run; the routes that p made and the packet sockets stay.
func (p *Paths) Release() error { return p.end(true) }

// Close ends Run, removes the routes that p made and closes the packet sockets.
func (p *Paths) Close() error { return p.end(false) }

func (p *Paths) end(leave bool) error {
	if p == nil {
		return nil
	}
	var err error
	if p.watcher != nil {
		err = p.watcher.Close() // its goroutine may wait for the mutex
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return err
	}
	p.closed = true
	if !leave {
		err = errors.Join(err, p.removeRoutesLocked(), descriptor.CloseAll(p.sockets))
	}
	return errors.Join(err, p.closeRoutes())
}

// removeRoutesLocked also removes an earlier run's routes if it is up to us
// which of them stay.
func (p *Paths) removeRoutesLocked() error {
	switch {
	case p.routes == nil:
		return nil
	case p.stale:
		return p.routes.Replace(nil)
	}
	return p.routes.Clear()
}

func (p *Paths) closeRoutes() error {
	if p.routes == nil {
		return nil
	}
	return p.routes.Close()
}

// Member is a subnet behind a host of the underlay.
type Member struct {
	Subnet   netip.Prefix
	Underlay netip.Addr
}

// Sockets are the packet sockets, in the order of the workers, nil with [Route].
// They stay the paths'.
func (p *Paths) Sockets() []int {
	if p == nil {
		return nil
	}
	return p.sockets
}

// Members lists the subnets and their hosts, sorted by subnet.
func (p *Paths) Members() []Member {
	p.mu.Lock()
	defer p.mu.Unlock()
	all := make([]Member, 0, len(p.owners))
	for subnet, host := range p.owners {
		all = append(all, Member{subnet, host})
	}
	slices.SortFunc(all, func(a, b Member) int { return a.Subnet.Compare(b.Subnet) })
	return all
}

// Len is how many subnets there are.
func (p *Paths) Len() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.owners)
}

// Replace makes members all there are.
func (p *Paths) Replace(members []Member) {
	keep := make(map[netip.Prefix]struct{}, len(members))
	for _, m := range members {
		keep[m.Subnet] = struct{}{}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	var gone []netip.Prefix
	for subnet := range p.owners {
		if _, stays := keep[subnet]; !stays {
			gone = append(gone, subnet)
		}
	}
	p.stale = p.routes != nil
	p.updateLocked(members, gone)
	p.removeStaleLocked()
}

// Update removes the subnets gone, then adds members.
func (p *Paths) Update(members []Member, gone []netip.Prefix) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.updateLocked(members, gone)
}

func (p *Paths) updateLocked(members []Member, gone []netip.Prefix) {
	var routes routeChanges
	var left []*Hop
	for _, subnet := range gone {
		if h := p.leaveLocked(subnet); h != nil {
			left = append(left, h)
			routes.remove = append(routes.remove, subnet)
		}
	}
	var fresh []netip.Addr
	var changes []change
	for _, m := range members {
		m.Underlay = m.Underlay.Unmap() // as the watcher tells it
		if p.owners[m.Subnet] == m.Underlay {
			continue
		}
		before := p.leaveLocked(m.Subnet)
		if before != nil {
			left = append(left, before)
		}
		h := p.hops[m.Underlay]
		if h == nil {
			h = p.newHopLocked(m.Underlay)
			fresh = append(fresh, m.Underlay)
		}
		h.subnets[m.Subnet] = struct{}{}
		p.owners[m.Subnet] = m.Underlay
		if before != nil && !h.known {
			routes.remove = append(routes.remove, m.Subnet)
		}
		routes.set(h, m.Subnet)
		if h.known {
			changes = append(changes, change{hop: h, only: m.Subnet})
		}
	}
	p.logLocked(changes)
	p.watcher.Track(fresh, p.dropLocked(left))
	p.applyLocked(routes)
}

// leaveLocked takes a subnet from its host and returns that, nil if it has none.
func (p *Paths) leaveLocked(subnet netip.Prefix) *Hop {
	h := p.hops[p.owners[subnet]]
	if h == nil {
		return nil
	}
	delete(p.owners, subnet)
	delete(h.subnets, subnet)
	return h
}

// dropLocked forgets those of the hosts that no subnet is behind any more, and
// returns their addresses.
func (p *Paths) dropLocked(hops []*Hop) (gone []netip.Addr) {
	for _, h := range hops {
		if len(h.subnets) == 0 {
			delete(p.hops, h.addr)
			gone = append(gone, h.addr)
		}
	}
	return gone
}

func (p *Paths) newHopLocked(underlay netip.Addr) *Hop {
	h := &Hop{addr: underlay, subnets: map[netip.Prefix]struct{}{}}
	h.path = Path{Reason: "not looked at yet", Unreachable: p.alone, Since: time.Now()}
	p.hops[underlay] = h
	return h
}

// Hop is the way to a peer that was told by replace or update.
func (p *Paths) Hop(underlay netip.Addr) *Hop {
	if p == nil {
		return nil
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.hops[underlay.Unmap()]
}

// Path is how packets to a peer travel.
func (p *Paths) Path(subnet netip.Prefix) Path {
	if p == nil {
		return Path{}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	h := p.hops[p.owners[subnet]]
	if h == nil {
		return Path{}
	}
	p.noticeLocked(h)
	if p.failed[subnet] != "" && h.path.Direct {
		return Path{Reason: p.failed[subnet], Unreachable: p.alone, Since: h.path.Since}
	}
	return h.path
}

// inUse tells the watcher whether packets went to a host since it last asked,
// and hears at the same time of what the kernel refused.
func (p *Paths) inUse(addr netip.Addr) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	h := p.hops[addr]
	if h == nil {
		return false
	}
	p.noticeLocked(h)
	p.retryLocked(h, time.Now())
	return h.used.Swap(false)
}

// noticeLocked takes over that the kernel took no frames to a host.
func (p *Paths) noticeLocked(h *Hop) {
	if !h.path.Direct || h.link.Load() != nil {
		return
	}
	if r := h.refusal.Swap(nil); r != nil {
		h.wait = min(max(2*h.wait, minRetry), maxRetry)
		h.retry = time.Now().Add(h.wait)
		p.logLocked(p.recordLocked(nil, h, Path{Reason: fmt.Sprintf("%s takes no frames: %v", h.path.Link, r.err)}))
	}
}

// retryLocked puts a host back on a link that rested: the reason to refuse a
// Frame may have been the frame itself, or one that nobody tells has gone.
func (p *Paths) retryLocked(h *Hop, now time.Time) {
	if h.retry.IsZero() || now.Before(h.retry) {
		return
	}
	h.retry = time.Time{}
	p.logLocked(p.applyHopLocked(nil, h))
}

// Found takes over where hosts are. Run finds that out by itself.
func (p *Paths) Found(found []nexthop.Change) {
	p.mu.Lock()
	defer p.mu.Unlock()
	var routes routeChanges
	var changes []change
	for _, c := range found {
		h := p.hops[c.Addr]
		if h == nil {
			continue
		}
		changes = p.moveLocked(changes, h, c.Hop)
		for subnet := range h.subnets {
			routes.set(h, subnet)
		}
	}
	p.logLocked(changes)
	p.applyLocked(routes)
	p.removeStaleLocked()
}

// moveLocked puts a host on the path that next allows, and adds that to changes if
// it is another than before.
func (p *Paths) moveLocked(changes []change, h *Hop, next nexthop.Hop) []change {
	h.known, h.next = true, next
	h.retry, h.wait = time.Time{}, 0
	return p.applyHopLocked(changes, h)
}

func (p *Paths) applyHopLocked(changes []change, h *Hop) []change {
	reason := p.objection(h.next)
	h.refusal.Store(nil) // first, lest it be the next link's
	if p.routes == nil && reason == "" {
		h.link.Store(newNeighbour(h.next.Index, h.next.Source, h.next.MAC))
	} else {
		h.link.Store(nil)
	}
	p.changed(h.addr)
	if reason != "" {
		return p.recordLocked(changes, h, Path{Reason: reason, Unreachable: p.alone})
	}
	return p.recordLocked(changes, h, Path{Direct: true, Link: h.next.Link, MAC: h.next.MAC})
}

// objection is why a host can't be reached directly; empty if it can.
func (p *Paths) objection(next nexthop.Hop) string {
	switch {
	case !next.OnLink:
		return next.Reason
	case p.only != "" && next.Link != p.only:
		return "on-link via " + next.Link + ", not via " + p.only
	case p.routes == nil && !next.Resolved():
		return next.Reason
	case int(next.MTU) < p.mtu:
		return fmt.Sprintf("the MTU of %s is %d, below the overlay's %d", next.Link, next.MTU, p.mtu)
	}
	return ""
}

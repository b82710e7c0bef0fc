package tunnel

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"sync"
	"time"

	"uvxlan/encap"
	"uvxlan/tunnel/kroute"
	"uvxlan/tunnel/nexthop"
)

// DirectMode says how packets to on-link peers travel.
type DirectMode uint8

// The modes.
const (
	// DirectOff: by VXLAN, as to all others.
	DirectOff DirectMode = iota
	// DirectSocket: through a packet socket, while the kernel knows the peer's
	// MAC. The host's routes stay as they are. It takes CAP_NET_RAW, and
	// CAP_NET_ADMIN for the kernel to look for MACs that nothing else asks for.
	DirectSocket
	// DirectRoute: by a kernel route to each peer's subnet, so that they never
	// come to the device. It takes CAP_NET_ADMIN.
	DirectRoute
)

// How long a link that refused a frame isn't tried again; twice as long each time
// until the underlay changes.
const (
	shortestRest = time.Second
	longestRest  = time.Minute
)

// Path is how packets to a peer travel at a moment.
type Path struct {
	// Direct says that they go without VXLAN.
	Direct bool
	// Link and MAC are where a direct path leaves and arrives; by a kernel route
	// the MAC is the kernel's business and zero.
	Link string
	MAC  encap.MAC
	// Unreachable says that there is none, since a [Gateway] has no VXLAN.
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

// paths keeps each peer on the best path that the underlay has at the moment:
// it follows the kernel's routes and neighbours, and sets hops' links or kernel
// routes to what they say.
type paths struct {
	// immutable after New
	log     *slog.Logger
	watcher *nexthop.Watcher
	routes  *kroute.Set // nil with DirectSocket
	only    string      // the one link that may be used, if not empty
	alone   bool        // there is no VXLAN to take instead
	mtu     int         // packets are no longer

	mu     sync.Mutex // guards the rest
	hops   map[netip.Addr]*hop
	owners map[netip.Prefix]netip.Addr
	// stale says that the kernel may have routes of an earlier run or of peers
	// that are gone: they are removed once every hop's way is known.
	stale bool
	// failed has the routes that the kernel was last heard to refuse, by words.
	failed map[netip.Prefix]string
	closed bool // routes stay as they are
}

// openPaths opens what follows the underlay in the calling thread's network
// namespace. It starts nothing.
func openPaths(mode DirectMode, log *slog.Logger) (p *paths, err error) {
	p = &paths{
		log:  cmp.Or(log, slog.New(slog.DiscardHandler)),
		hops: map[netip.Addr]*hop{}, owners: map[netip.Prefix]netip.Addr{}, failed: map[netip.Prefix]string{},
	}
	c := nexthop.Config{Neighbours: mode == DirectSocket, InUse: p.inUse, Changed: p.changed, Logger: log}
	if mode == DirectRoute {
		if p.routes, err = kroute.Open(kroute.Config{Protocol: kroute.Protocol, Logger: log}); err != nil {
			return nil, err
		}
		c.Routes = p.restore
	}
	if p.watcher, err = nexthop.Open(c); err != nil {
		return nil, errors.Join(err, p.closeRoutes())
	}
	return p, nil
}

// run follows the underlay until ctx ends or close is called. If it can't any
// longer, everything takes VXLAN, which needs no watching; where there is none,
// the last paths stay.
func (p *paths) run(ctx context.Context) error {
	err := p.watcher.Run(ctx)
	switch {
	case errors.Is(err, nexthop.ErrClosed):
		return ErrClosed
	case err != nil && !p.alone:
		p.giveUp()
	}
	return err
}

// giveUp puts all hosts on VXLAN, and those that come later.
func (p *paths) giveUp() {
	p.mu.Lock()
	defer p.mu.Unlock()
	var turns []turn
	for _, h := range p.hops {
		turns = p.moveLocked(turns, h, nexthop.Hop{Reason: "the underlay can't be followed"})
	}
	p.tellLocked(turns)
	if p.routes == nil || p.closed {
		return
	}
	p.stale = false
	clear(p.failed)
	p.reportLocked(p.routes.Replace(nil))
}

// close ends run; the routes that p made stay.
func (p *paths) close() error { return p.end(false) }

// clear ends run and removes the routes that p made.
func (p *paths) clear() error { return p.end(true) }

func (p *paths) end(removeRoutes bool) error {
	if p == nil {
		return nil
	}
	err := p.watcher.Close() // its goroutine may wait for the mutex
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return err
	}
	p.closed = true
	if removeRoutes {
		err = errors.Join(err, p.removeRoutesLocked())
	}
	return errors.Join(err, p.closeRoutes())
}

// removeRoutesLocked also removes an earlier run's routes if it is up to us
// which of them stay.
func (p *paths) removeRoutesLocked() error {
	switch {
	case p.routes == nil:
		return nil
	case p.stale:
		return p.routes.Replace(nil)
	}
	return p.routes.Clear()
}

func (p *paths) closeRoutes() error {
	if p.routes == nil {
		return nil
	}
	return p.routes.Close()
}

// member is a subnet behind a host of the underlay.
type member struct {
	subnet   netip.Prefix
	underlay netip.Addr
}

// replace makes members all there are.
func (p *paths) replace(members []member) {
	keep := make(map[netip.Prefix]struct{}, len(members))
	for _, m := range members {
		keep[m.subnet] = struct{}{}
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

// update removes the subnets gone, then adds members.
func (p *paths) update(members []member, gone []netip.Prefix) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.updateLocked(members, gone)
}

func (p *paths) updateLocked(members []member, gone []netip.Prefix) {
	var changes routeChanges
	var left []*hop
	for _, subnet := range gone {
		if h := p.leaveLocked(subnet); h != nil {
			left = append(left, h)
			changes.remove = append(changes.remove, subnet)
		}
	}
	var fresh []netip.Addr
	var turns []turn
	for _, m := range members {
		m.underlay = m.underlay.Unmap() // as the watcher tells it
		if p.owners[m.subnet] == m.underlay {
			continue
		}
		before := p.leaveLocked(m.subnet)
		if before != nil {
			left = append(left, before)
		}
		h := p.hops[m.underlay]
		if h == nil {
			h = p.newHopLocked(m.underlay)
			fresh = append(fresh, m.underlay)
		}
		h.subnets[m.subnet] = struct{}{}
		p.owners[m.subnet] = m.underlay
		if before != nil && !h.known {
			changes.remove = append(changes.remove, m.subnet)
		}
		changes.settle(h, m.subnet)
		if h.known {
			turns = append(turns, turn{hop: h, only: m.subnet})
		}
	}
	p.tellLocked(turns)
	p.watcher.Track(fresh, p.dropLocked(left))
	p.applyLocked(changes)
}

// leaveLocked takes a subnet from its host and returns that, nil if it has none.
func (p *paths) leaveLocked(subnet netip.Prefix) *hop {
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
func (p *paths) dropLocked(hops []*hop) (gone []netip.Addr) {
	for _, h := range hops {
		if len(h.subnets) == 0 {
			delete(p.hops, h.addr)
			gone = append(gone, h.addr)
		}
	}
	return gone
}

func (p *paths) newHopLocked(underlay netip.Addr) *hop {
	h := &hop{addr: underlay, subnets: map[netip.Prefix]struct{}{}}
	h.path = Path{Reason: "not looked at yet", Unreachable: p.alone, Since: time.Now()}
	p.hops[underlay] = h
	return h
}

// hop is the way to a peer that was told by replace or update.
func (p *paths) hop(underlay netip.Addr) *hop {
	if p == nil {
		return nil
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.hops[underlay.Unmap()]
}

// path is how packets to a peer travel.
func (p *paths) path(subnet netip.Prefix) Path {
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
func (p *paths) inUse(addr netip.Addr) bool {
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
func (p *paths) noticeLocked(h *hop) {
	if !h.path.Direct || h.link.Load() != nil {
		return
	}
	if r := h.refusal.Swap(nil); r != nil {
		h.wait = min(max(2*h.wait, shortestRest), longestRest)
		h.retry = time.Now().Add(h.wait)
		p.tellLocked(p.turnLocked(nil, h, Path{Reason: fmt.Sprintf("%s takes no frames: %v", h.path.Link, r.err)}))
	}
}

// retryLocked puts a host back on a link that rested: the reason to refuse a
// frame may have been the frame itself, or one that nobody tells has gone.
func (p *paths) retryLocked(h *hop, now time.Time) {
	if h.retry.IsZero() || now.Before(h.retry) {
		return
	}
	h.retry = time.Time{}
	p.tellLocked(p.settleLocked(nil, h))
}

// changed takes over what the watcher found out.
func (p *paths) changed(changes []nexthop.Change) {
	p.mu.Lock()
	defer p.mu.Unlock()
	var routes routeChanges
	var turns []turn
	for _, c := range changes {
		h := p.hops[c.Addr]
		if h == nil {
			continue
		}
		turns = p.moveLocked(turns, h, c.Hop)
		for subnet := range h.subnets {
			routes.settle(h, subnet)
		}
	}
	p.tellLocked(turns)
	p.applyLocked(routes)
	p.removeStaleLocked()
}

// moveLocked puts a host on the path that next allows, and adds that to turns if
// it is another than before.
func (p *paths) moveLocked(turns []turn, h *hop, next nexthop.Hop) []turn {
	h.known, h.next = true, next
	h.retry, h.wait = time.Time{}, 0
	return p.settleLocked(turns, h)
}

func (p *paths) settleLocked(turns []turn, h *hop) []turn {
	reason := p.objection(h.next)
	h.refusal.Store(nil) // first, lest it be the next link's
	if p.routes == nil && reason == "" {
		h.link.Store(newNeighbour(h.next.Index, h.next.Source, h.next.MAC))
	} else {
		h.link.Store(nil)
	}
	if reason != "" {
		return p.turnLocked(turns, h, Path{Reason: reason, Unreachable: p.alone})
	}
	return p.turnLocked(turns, h, Path{Direct: true, Link: h.next.Link, MAC: h.next.MAC})
}

// objection is why a host can't be reached directly; empty if it can.
func (p *paths) objection(next nexthop.Hop) string {
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

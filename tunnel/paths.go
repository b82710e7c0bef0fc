package tunnel

import (
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
	// MAC. The host's routes stay as they are. It takes CAP_NET_RAW.
	DirectSocket
	// DirectRoute: by a kernel route to each peer's subnet, so that they never
	// come to the device.
	DirectRoute
)

// Path is how packets to a peer travel at a moment.
type Path struct {
	// Direct says that they go without VXLAN.
	Direct bool
	// Link and MAC are where a direct path leaves and arrives; by a kernel route
	// the MAC is the kernel's business and zero.
	Link string
	MAC  encap.MAC
	// Reason says why the path isn't direct.
	Reason string
	// Since is when the path became what it is.
	Since time.Time
}

// String is "direct via eth0 02:…", or "vxlan: " and the reason.
func (p Path) String() string {
	switch {
	case p.Direct:
		return "direct via " + p.via()
	case p.Reason != "":
		return "vxlan: " + p.Reason
	}
	return "vxlan"
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
}

// openPaths opens what follows the underlay in the calling thread's network
// namespace. It starts nothing.
func openPaths(mode DirectMode) (p *paths, err error) {
	p = &paths{
		log:  slog.New(slog.DiscardHandler),
		hops: map[netip.Addr]*hop{}, owners: map[netip.Prefix]netip.Addr{}, failed: map[netip.Prefix]string{},
	}
	c := nexthop.Config{Neighbours: mode == DirectSocket, InUse: p.inUse, Changed: p.changed}
	if mode == DirectRoute {
		if p.routes, err = kroute.Open(kroute.Config{Protocol: RouteProtocol}); err != nil {
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
// longer, everything takes VXLAN, which needs no watching.
func (p *paths) run(ctx context.Context) error {
	err := p.watcher.Run(ctx)
	if err == nil {
		return nil
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, h := range p.hops {
		p.moveLocked(h, nexthop.Hop{Reason: "the underlay can't be followed"})
	}
	return err
}

// close ends run; the routes that p made stay.
func (p *paths) close() error {
	if p == nil {
		return nil
	}
	return errors.Join(p.watcher.Close(), p.closeRoutes())
}

// clear ends run and removes the routes that p made.
func (p *paths) clear() error {
	if p == nil {
		return nil
	}
	err := p.watcher.Close()
	if p.routes != nil {
		err = errors.Join(err, p.routes.Clear())
	}
	return errors.Join(err, p.closeRoutes())
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
	var track tracking
	for _, subnet := range gone {
		if p.leaveLocked(subnet, &track) {
			changes.remove = append(changes.remove, subnet)
		}
	}
	for _, m := range members {
		if p.owners[m.subnet] == m.underlay {
			continue
		}
		moved := p.leaveLocked(m.subnet, &track)
		h := p.joinLocked(m, &track)
		if moved && !h.known {
			changes.remove = append(changes.remove, m.subnet)
		}
		changes.settle(h, m.subnet)
		if h.known {
			p.tellLocked(h, m.subnet, Path{})
		}
	}
	p.watcher.Track(track.add, track.remove)
	p.applyLocked(changes)
}

// tracking is what the watcher is to be told.
type tracking struct{ add, remove []netip.Addr }

func (p *paths) leaveLocked(subnet netip.Prefix, t *tracking) (left bool) {
	addr, there := p.owners[subnet]
	if !there {
		return false
	}
	delete(p.owners, subnet)
	h := p.hops[addr]
	delete(h.subnets, subnet)
	if len(h.subnets) == 0 {
		delete(p.hops, addr)
		t.remove = append(t.remove, addr)
	}
	return true
}

func (p *paths) joinLocked(m member, t *tracking) *hop {
	h := p.hops[m.underlay]
	if h == nil {
		h = &hop{addr: m.underlay, subnets: map[netip.Prefix]struct{}{}}
		h.path = Path{Reason: "not looked at yet", Since: time.Now()}
		p.hops[m.underlay] = h
		t.add = append(t.add, m.underlay)
	}
	h.subnets[m.subnet] = struct{}{}
	p.owners[m.subnet] = m.underlay
	return h
}

// hop is the way to a peer that was told by replace or update.
func (p *paths) hop(underlay netip.Addr) *hop {
	if p == nil {
		return nil
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.hops[underlay]
}

// path is how packets to a peer travel.
func (p *paths) path(subnet netip.Prefix) Path {
	if p == nil {
		return Path{}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	h := p.hops[p.owners[subnet]]
	switch {
	case h == nil:
		return Path{}
	case p.failed[subnet] != "" && h.path.Direct:
		return Path{Reason: p.failed[subnet], Since: h.path.Since}
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
	if r := h.refusal.Swap(nil); r != nil && h.link.Load() == nil && h.path.Direct {
		p.turnLocked(h, Path{Reason: fmt.Sprintf("%s takes no frames: %v", h.path.Link, r.err)})
	}
	return h.used.Swap(false)
}

// changed takes over what the watcher found out.
func (p *paths) changed(changes []nexthop.Change) {
	p.mu.Lock()
	defer p.mu.Unlock()
	var routes routeChanges
	for _, c := range changes {
		h := p.hops[c.Addr]
		if h == nil {
			continue
		}
		p.moveLocked(h, c.Hop)
		for subnet := range h.subnets {
			routes.settle(h, subnet)
		}
	}
	p.applyLocked(routes)
	p.removeStaleLocked()
}

// moveLocked puts a host on the path that next allows.
func (p *paths) moveLocked(h *hop, next nexthop.Hop) {
	h.known = true
	reason := p.objection(next)
	if p.routes == nil && reason == "" {
		h.link.Store(newLink(next.Index, next.Source, next.MAC))
	} else {
		h.link.Store(nil)
	}
	h.refusal.Store(nil)
	h.index = next.Index
	path := Path{Reason: reason}
	if reason == "" {
		path = Path{Direct: true, Link: next.Link, MAC: next.MAC}
	}
	p.turnLocked(h, path)
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

// turnLocked records a path and tells of it.
func (p *paths) turnLocked(h *hop, path Path) {
	if h.path.same(path) {
		return
	}
	path.Since = time.Now()
	before := h.path
	h.path = path
	for subnet := range h.subnets {
		p.tellLocked(h, subnet, before)
	}
}

// tellLocked logs the way to a peer that had another one before.
func (p *paths) tellLocked(h *hop, subnet netip.Prefix, before Path) {
	switch {
	case h.path.Direct:
		p.log.Info("peer is direct now", "subnet", subnet, "public_ip", h.addr, "via", h.path.via())
	case p.alone:
		p.log.Error("peer can't be reached", "subnet", subnet, "public_ip", h.addr, "error", "not on-link: "+h.path.Reason)
	case before.Direct:
		p.log.Info("peer is back to vxlan", "subnet", subnet, "public_ip", h.addr, "reason", h.path.Reason)
	default:
		p.log.Debug("peer stays on vxlan", "subnet", subnet, "public_ip", h.addr, "reason", h.path.Reason)
	}
}

package onlink

import (
	"context"
	"log/slog"
	"net/netip"
	"time"

	"uvxlan/tunnel/kroute"
)

// manyChanges is how many hosts or routes may change at once, each with a line in
// the log. Of more there is one line, and theirs are for debugging.
const manyChanges = 20

// change is a host that came to another path, and the one before; or a subnet that
// came to a host.
type change struct {
	hop    *Hop
	before Path
	only   netip.Prefix // of the host's subnets, if valid
}

// notable tells a change that changes how packets travel.
func (c change) notable() bool { return c.hop.path.Direct || c.before.Direct || c.hop.path.Unreachable }

// recordLocked records a path, and adds it to changes if it is another than before.
func (p *Paths) recordLocked(changes []change, h *Hop, path Path) []change {
	if h.path.same(path) {
		return changes
	}
	path.Since = time.Now()
	before := h.path
	h.path = path
	p.changed(h.addr)
	return append(changes, change{hop: h, before: before})
}

// logLocked logs changes that happened at once.
func (p *Paths) logLocked(changes []change) {
	var direct, vxlan, unreachable int
	for _, t := range changes {
		switch {
		case t.hop.path.Direct:
			direct++
		case t.hop.path.Unreachable:
			unreachable++
		case t.before.Direct:
			vxlan++
		}
	}
	many := direct+vxlan+unreachable > manyChanges
	if many && p.alone {
		p.log.Info("paths changed", "direct", direct, "unreachable", unreachable)
	} else if many {
		p.log.Info("paths changed", "direct", direct, "vxlan", vxlan)
	}
	for _, t := range changes {
		p.logOne(t, many)
	}
}

// logOne logs a host's change, for each subnet behind it.
func (p *Paths) logOne(t change, many bool) {
	level := slog.LevelInfo
	switch {
	case many || !t.notable():
		level = slog.LevelDebug
	case t.hop.path.Unreachable:
		level = slog.LevelError
	}
	ctx := context.Background()
	if !p.log.Enabled(ctx, level) {
		return
	}
	h := t.hop
	for subnet := range h.subnets {
		switch {
		case t.only.IsValid() && subnet != t.only:
		case h.path.Direct:
			p.log.Log(ctx, level, "peer is direct now", "subnet", subnet, "public_ip", h.addr, "via", h.path.via())
		case h.path.Unreachable:
			p.log.Log(ctx, level, "peer can't be reached", "subnet", subnet, "public_ip", h.addr, "error", "not on-link: "+h.path.Reason)
		case t.before.Direct:
			p.log.Log(ctx, level, "peer is back to vxlan", "subnet", subnet, "public_ip", h.addr, "reason", h.path.Reason)
		default:
			p.log.Log(ctx, level, "peer stays on vxlan", "subnet", subnet, "public_ip", h.addr, "reason", h.path.Reason)
		}
	}
}

// logRoutes logs which routes can't be there and which can again.
func (p *Paths) logRoutes(failed []*kroute.Error, healed []kroute.Route) {
	bad, good := slog.LevelWarn, slog.LevelInfo
	if len(failed) > manyChanges {
		bad = slog.LevelDebug
		p.log.Warn("no routes to peers", "count", len(failed), "error", failed[0])
	}
	if len(healed) > manyChanges {
		good = slog.LevelDebug
		p.log.Info("routes to peers are there now", "count", len(healed))
	}
	ctx := context.Background()
	for _, f := range failed {
		p.log.Log(ctx, bad, "no route to peer", "subnet", f.Route.Subnet, "public_ip", f.Route.Via, "error", f.Reason)
	}
	for _, r := range healed {
		p.log.Log(ctx, good, "route to peer is there now", "subnet", r.Subnet, "public_ip", r.Via)
	}
}

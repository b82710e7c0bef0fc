package onlink

import (
	"errors"
	"maps"
	"net/netip"

	"uvxlan/tunnel/kroute"
)

// routeChanges are kernel routes to add or change, and subnets to have none.
type routeChanges struct {
	add    []kroute.Route
	remove []netip.Prefix
}

// set makes a subnet's route what its host's path says. As long as nobody
// has looked at the path, a route that is there stays.
func (c *routeChanges) set(h *Hop, subnet netip.Prefix) {
	switch {
	case !h.known:
	case h.path.Direct:
		c.add = append(c.add, kroute.Route{Subnet: subnet, Via: h.addr, Link: h.next.Index})
	default:
		c.remove = append(c.remove, subnet)
	}
}

// applyLocked puts changes in force.
func (p *Paths) applyLocked(c routeChanges) {
	if p.routes == nil || p.closed || len(c.add)+len(c.remove) == 0 {
		return
	}
	for _, subnet := range c.remove {
		delete(p.failed, subnet)
	}
	p.reportLocked(p.routes.Update(c.add, c.remove))
}

// removeStaleLocked removes routes that nobody wants any more, as soon as it is
// known which are wanted: those of an earlier run carry packets until then.
func (p *Paths) removeStaleLocked() {
	if !p.stale || p.closed {
		return
	}
	var c routeChanges
	for _, h := range p.hops {
		if !h.known {
			return
		}
		for subnet := range h.subnets {
			c.set(h, subnet)
		}
	}
	p.stale = false
	p.reportLocked(p.routes.Replace(c.add))
}

// restore puts back what somebody removed or altered.
func (p *Paths) restore() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return
	}
	n, err := p.routes.Restore()
	if n > 0 {
		p.log.Info("routes put back", "count", n)
	}
	p.reportLocked(err)
}

// reportLocked tells of routes that can't be there, once each, and of those that
// can again.
func (p *Paths) reportLocked(err error) {
	failed := map[netip.Prefix]string{}
	var fresh []*kroute.Error
	for _, err := range parts(err) {
		route, ok := errors.AsType[*kroute.Error](err)
		if !ok {
			p.log.Error("set routes", "error", err)
			continue
		}
		words := route.Reason.Error()
		failed[route.Route.Subnet] = words
		if p.failed[route.Route.Subnet] != words {
			fresh = append(fresh, route)
		}
	}
	healed := p.healedLocked(failed)
	maps.Copy(p.failed, failed)
	p.logRoutes(fresh, healed)
}

// healedLocked forgets failures of routes that are there now, and returns those.
func (p *Paths) healedLocked(failed map[netip.Prefix]string) (healed []kroute.Route) {
	if len(p.failed) == 0 {
		return nil
	}
	for _, r := range p.routes.Routes() {
		if p.failed[r.Subnet] != "" && failed[r.Subnet] == "" {
			delete(p.failed, r.Subnet)
			healed = append(healed, r)
		}
	}
	return healed
}

// parts are the errors that were joined to err.
func parts(err error) []error {
	if err == nil {
		return nil
	}
	if joined, ok := err.(interface{ Unwrap() []error }); ok {
		var all []error
		for _, e := range joined.Unwrap() {
			all = append(all, parts(e)...)
		}
		return all
	}
	return []error{err}
}

package overlay

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"uvxlan/cmd/internal/host"
	"uvxlan/lease"
	"uvxlan/tunnel/device"
	"uvxlan/tunnel/link"
)

// devicePart is the name of the device's part.
const devicePart = "device"

// Parts are what the overlay needs on the host: the device with its addresses,
// MTU, settings and routes; no foreign routes that lead its packets elsewhere.
func (v *Overlay) Parts() []host.Part {
	return []host.Part{
		{
			Name: devicePart, Check: v.checkDevice, Repair: v.repairDevice,
			Wakes: v.concernsDevice, Interval: 30 * time.Second,
		},
		{Name: "foreign-routes", Check: v.checkForeignRoutes, Wakes: v.concernsRoutes, Interval: 30 * time.Second},
		v.fast.Part(),
	}
}

// concernsDevice passes over routes that can't be in the place of ours.
func (v *Overlay) concernsDevice(e host.Event) bool {
	if e.Kind == host.Route {
		v.mu.Lock()
		defer v.mu.Unlock()
		return slices.Contains(v.routesLocked(), e.Prefix)
	}
	return host.Is(host.Link, host.Address, host.Setting)(e)
}

func (v *Overlay) checkDevice(context.Context) (faults []host.Fault) {
	if _, down := v.inForce(); down != nil {
		return []host.Fault{{What: fmt.Sprintf("%s: %v", v.name, down), Stops: true, Starting: errors.Is(down, ErrLoading)}}
	}
	for _, wrong := range link.Check(v.name, v.link()) {
		f := host.Fault{What: fmt.Sprintf("%s: %v", v.name, wrong), Stops: true}
		if errors.Is(wrong, link.ErrRouteExists) {
			f.Remedy = "remove it (ip route), or set another Network in the network config"
		}
		faults = append(faults, f)
	}
	return faults
}

// repairDevice leaves a device alone that is gone, being made or not to be up yet.
func (v *Overlay) repairDevice(context.Context) error {
	if !v.carries() {
		return nil
	}
	err := link.Configure(v.name, v.link())
	if errors.Is(err, device.ErrGone) {
		return nil // the router hears of it as well
	}
	return err
}

// routesLocked are the routes into the device.
func (v *Overlay) routesLocked() []netip.Prefix {
	routes := v.config.Allocatable()
	for subnet := range v.outliers {
		routes = append(routes, subnet)
	}
	return routes
}

// routeOutliersLocked has peers routed into the device that lie outside of what
// the configuration gives to hosts, such as a reservation or a lease by an earlier
// configuration.
func (v *Overlay) routeOutliersLocked(u lease.Update) {
	before := len(v.outliers)
	changed := false
	if u.Reset {
		v.outliers, changed = nil, before > 0
	}
	for _, l := range u.Deleted {
		for _, n := range l.Subnets() {
			if _, was := v.outliers[n]; was {
				delete(v.outliers, n)
				changed = true
			}
		}
	}
	for _, l := range u.Leases {
		for _, n := range l.Subnets() {
			if v.isOutlier(n) && v.router.HasPeer(n) && !v.hidesLocked(n, l) {
				if v.outliers == nil {
					v.outliers = map[netip.Prefix]struct{}{}
				}
				v.outliers[n] = struct{}{}
				changed = true
			}
		}
	}
	if changed {
		v.wake(devicePart)
	}
}

// hidesLocked tells whether a route to a lease's subnet would lead the underlay's
// packets into the device, where they would loop.
func (v *Overlay) hidesLocked(n netip.Prefix, l lease.Lease) bool {
	return slices.ContainsFunc([]netip.Addr{
		v.ext.Address, v.ext.AddressV6, v.ext.PublicIP, v.ext.PublicIPv6, l.Attrs.PublicIP, l.Attrs.PublicIPv6,
	}, n.Contains)
}

// isOutlier tells whether a subnet lies in a network and in none of the routes to
// what hosts can have.
func (v *Overlay) isOutlier(n netip.Prefix) bool {
	within := func(outer netip.Prefix) bool { return outer.Bits() <= n.Bits() && outer.Contains(n.Addr()) }
	return slices.ContainsFunc(v.config.Networks(), within) && !slices.ContainsFunc(v.config.Allocatable(), within)
}

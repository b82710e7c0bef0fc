package nexthop

import (
	"errors"
	"fmt"
	"net/netip"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"uvxlan/tunnel/internal/dump"
)

// recheckAfter is when all addresses are decided once more after a link went down or
// an address of ours was removed: the kernel says so first, drops routes after,
// and for IPv4 doesn't report those. It is also when a failed request is
// repeated.
const recheckAfter = time.Second

var errShort = errors.New("short message")

// topology takes an event of links, addresses, routes and rules, and marks what
// it may change.
func (w *Watcher) topology(m syscall.NetlinkMessage) error {
	switch m.Header.Type {
	case unix.RTM_NEWLINK, unix.RTM_DELLINK:
		return w.linkEvent(m)
	case unix.RTM_NEWADDR:
		// The routes that it brings are reported themselves.
		w.debounce.event(time.Now())
	case unix.RTM_DELADDR:
		w.affectAll()
		w.again()
	case unix.RTM_NEWROUTE, unix.RTM_DELROUTE:
		return w.routeEvent(m)
	case unix.RTM_NEWRULE, unix.RTM_DELRULE, unix.RTM_NEWNEXTHOP, unix.RTM_DELNEXTHOP:
		w.affectAll()
	}
	return nil
}

// linkEvent takes note of a link. The kernel reports links for many reasons,
// most of which change nothing here.
func (w *Watcher) linkEvent(m syscall.NetlinkMessage) error {
	if len(m.Data) < unix.SizeofIfInfomsg {
		return errShort
	}
	if m.Data[0] != unix.AF_UNSPEC { // a bridge's ports, or IPv6's view
		return nil
	}
	parsed, err := netlink.LinkDeserialize(nil, m.Data)
	if err != nil {
		return fmt.Errorf("parse link: %w", err)
	}
	index := parsed.Attrs().Index
	before, known := w.links[index]
	if m.Header.Type == unix.RTM_DELLINK {
		delete(w.links, index)
		if known {
			w.linkChanged(before.carries())
		}
		return nil
	}
	if parsed.Attrs().MTU == 0 { // an event of a wireless driver's, which describes nothing
		return nil
	}
	now := newLink(parsed, w.excluded)
	w.links[index] = now
	if now != before {
		w.linkChanged(before.carries() || now.carries())
	}
	return nil
}

// linkChanged marks all addresses if routes may have come or gone by the change.
func (w *Watcher) linkChanged(carries bool) {
	w.debounce.event(time.Now())
	if carries {
		w.all = true
		w.again()
	}
}

// routeEvent marks the addresses within the route's destination; no other's way
// can depend on it. Container networks, of which there may be thousands, have
// none.
func (w *Watcher) routeEvent(m syscall.NetlinkMessage) error {
	if len(m.Data) < unix.SizeofRtMsg {
		return errShort
	}
	head := nl.DeserializeRtMsg(m.Data)
	if head.Flags&unix.RTM_F_CLONED != 0 || head.Family != unix.AF_INET && head.Family != unix.AF_INET6 {
		return nil
	}
	attributes, err := nl.ParseRouteAttr(m.Data[unix.SizeofRtMsg:])
	if err != nil {
		return fmt.Errorf("parse route: %w", err)
	}
	destination := netip.IPv4Unspecified()
	if head.Family == unix.AF_INET6 {
		destination = netip.IPv6Unspecified()
	}
	for _, a := range attributes {
		if a.Attr.Type == unix.RTA_DST {
			destination, _ = netip.AddrFromSlice(a.Value)
		}
	}
	prefix := netip.PrefixFrom(destination, int(head.Dst_len))
	if !prefix.IsValid() {
		return fmt.Errorf("parse route: destination %s/%d", destination, head.Dst_len)
	}
	w.debounce.event(time.Now())
	if !w.all {
		for a := range w.addresses.within(prefix) {
			w.affect(a)
		}
	}
	return nil
}

func (w *Watcher) affect(a *address) {
	if !a.marked {
		a.marked = true
		w.marked = append(w.marked, a)
	}
}

func (w *Watcher) affectAll() {
	w.all = true
	w.debounce.event(time.Now())
}

// again has all addresses decided anew after recheckAfter.
func (w *Watcher) again() { w.repeat = time.Now().Add(recheckAfter) }

// path asks the kernel for the way to an address.
func (w *Watcher) path(a netip.Addr) Hop {
	if reason := foreclosed(a); reason != "" {
		return Hop{Reason: reason}
	}
	routes, err := w.handle.RouteGetWithOptions(ipOf(a), &netlink.RouteGetOptions{FIBMatch: true})
	if err != nil {
		if passing(err) {
			w.again()
		}
		return routeError(err)
	}
	return decide(routes, w.links)
}

// resync asks for everything that events tell the changes of. Events that are
// older and still to come are followed by those that led to what it found.
func (w *Watcher) resync() error {
	links, err := dump.List(w.handle.LinkList)
	if err != nil {
		return fmt.Errorf("list links: %w", err)
	}
	clear(w.links)
	for _, l := range links {
		w.links[l.Attrs().Index] = newLink(l, w.excluded)
	}
	if !w.config.Neighbours {
		return nil
	}
	entries, err := dump.List(func() ([]netlink.Neigh, error) { return w.handle.NeighList(0, unix.AF_UNSPEC) })
	if err != nil {
		return fmt.Errorf("list neighbours: %w", err)
	}
	clear(w.neighbours)
	for i := range entries {
		if key, n, ok := parseNeighbour(&entries[i]); ok {
			w.neighbours[key] = n
		}
	}
	for a := range w.onLink {
		w.touch(a)
	}
	return nil
}

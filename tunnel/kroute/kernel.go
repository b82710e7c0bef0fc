package kroute

import (
	"errors"
	"fmt"
	"net/netip"
	"strconv"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// dumpTries bounds how often a listing starts again because routes changed
// meanwhile.
const dumpTries = 10

// PriorityV6 is what the kernel makes of an IPv6 route's priority 0
// (IP6_RT_PRIO_USER).
const PriorityV6 = 1024

// kernel is the main table of one network namespace.
type kernel struct {
	handle   *netlink.Handle
	protocol int
}

// openKernel opens the calling thread's. The caller closes the handle.
func openKernel(protocol int) (kernel, error) {
	if protocol <= unix.RTPROT_STATIC || protocol > 255 {
		return kernel{}, fmt.Errorf("open routes: protocol %d: must be from %d to 255", protocol, unix.RTPROT_STATIC+1)
	}
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return kernel{}, fmt.Errorf("open routes: %w", err)
	}
	// The kernel then sends only what is asked for.
	if err := h.SetStrictCheck(true); err != nil {
		h.Close()
		return kernel{}, fmt.Errorf("open routes: strict check: %w", err)
	}
	return kernel{h, protocol}, nil
}

// entry is a route of the kernel's.
type entry struct {
	Route
	protocol, priority, tos int
	scope                   netlink.Scope
	unicast                 bool
}

// ours tells whether the route may be changed or removed.
func (k kernel) ours(e entry) bool {
	return e.protocol == k.protocol && e.unicast && e.Via.IsValid()
}

// competes tells whether the route takes the place that one of ours would have:
// the kernel tells routes to a subnet apart by TOS and priority.
func (e entry) competes() bool {
	if e.family() == netlink.FAMILY_V6 {
		return e.priority == PriorityV6
	}
	return e.priority == 0 && e.tos == 0
}

// add adds a route unless there is one in its place (unix.EEXIST).
func (k kernel) add(r Route) error {
	return k.handle.RouteAdd(r.netlink(k.protocol))
}

// replace puts a route into the place of the first that competes with it,
// whoever owns that one.
func (k kernel) replace(r Route) error {
	return k.handle.RouteReplace(r.netlink(k.protocol))
}

// remove removes a route of ours. That it isn't there is no error.
func (k kernel) remove(e entry) error {
	n := e.netlink(k.protocol)
	n.Priority, n.Tos, n.Scope = e.priority, e.tos, e.scope
	if err := k.handle.RouteDel(n); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("remove route %s via %s dev %s: %w", e.Subnet, e.Via, k.device(e.Link), err)
	}
	return nil
}

// dump lists the routes of the families, those of one protocol if it isn't 0,
// each family's in the order in which the kernel looks at those to one subnet.
func (k kernel) dump(protocol int, families ...int) ([]entry, error) {
	var all []entry
	for _, family := range families {
		err := retryInterrupted(func() error {
			entries, err := k.dumpFamily(protocol, family)
			if err == nil {
				all = append(all, entries...)
			}
			return err
		})
		if err != nil {
			return nil, fmt.Errorf("list routes: %w", err)
		}
	}
	return all, nil
}

// retryInterrupted repeats a listing that wasn't of one moment.
func retryInterrupted(list func() error) error {
	var err error
	for range dumpTries {
		if err = list(); !errors.Is(err, netlink.ErrDumpInterrupted) {
			return err
		}
	}
	return err
}

func (k kernel) dumpFamily(protocol, family int) ([]entry, error) {
	filter, mask := &netlink.Route{Table: unix.RT_TABLE_MAIN}, netlink.RT_FILTER_TABLE
	if protocol != 0 {
		filter.Protocol, mask = netlink.RouteProtocol(protocol), mask|netlink.RT_FILTER_PROTOCOL
	}
	var entries []entry
	err := k.handle.RouteListFilteredIter(family, filter, mask, func(n netlink.Route) bool {
		if e, ok := makeEntry(&n); ok {
			entries = append(entries, e)
		}
		return true
	})
	if errors.Is(err, unix.ENOENT) { // a table comes with its first route
		return nil, nil
	}
	return entries, err
}

// makeEntry reports false for a route to no prefix. What goes several ways has
// no gateway.
func makeEntry(n *netlink.Route) (e entry, ok bool) {
	if n.Dst == nil {
		return e, false
	}
	addr, ok := netip.AddrFromSlice(n.Dst.IP)
	bits, _ := n.Dst.Mask.Size()
	e.Subnet = netip.PrefixFrom(addr, bits)
	e.Via, _ = netip.AddrFromSlice(n.Gw)
	e.Source, _ = netip.AddrFromSlice(n.Src)
	e.Link, e.scope = n.LinkIndex, n.Scope
	e.protocol, e.priority, e.tos, e.unicast = int(n.Protocol), n.Priority, n.Tos, n.Type == unix.RTN_UNICAST
	return e, ok
}

// device is an interface's name for an error's sake.
func (k kernel) device(index int) string {
	link, err := k.handle.LinkByIndex(index)
	if err != nil {
		return strconv.Itoa(index)
	}
	return link.Attrs().Name
}

// describe says whose a foreign route is and where it goes.
func (k kernel) describe(e entry) string {
	way := "several ways or nowhere"
	switch {
	case e.Via.IsValid():
		way = fmt.Sprintf("via %s dev %s", e.Via, k.device(e.Link))
	case e.Link != 0:
		way = "dev " + k.device(e.Link)
	}
	return fmt.Sprintf("%s proto %s", way, netlink.RouteProtocol(e.protocol))
}

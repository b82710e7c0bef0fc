package fastpath

import (
	"errors"
	"fmt"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"uvxlan/encap"
	"uvxlan/tunnel/internal/tcprog"
)

// attachment is where the programs are attached: by tcx links, which end with their
// last descriptor, or as filters of clsact qdiscs.
type attachment struct {
	netlink *netlink.Handle
	links   []link.Link // of the egress and the ingress program
	filters []*netlink.BpfFilter
}

// Kind says how the programs are attached.
func (a *attachment) kind() string {
	if len(a.filters) > 0 {
		return "clsact"
	}
	return "tcx"
}

// attach attaches the programs behind those that others have attached.
func attach(h *netlink.Handle, p *tcprog.Programs, o owner, device, underlay int, clsact bool, inherited *Descriptors) (*attachment, error) {
	if len(inherited.Links) > 0 {
		return takeOver(h, p, inherited)
	}
	if !clsact {
		a, err := attachTCX(h, p, device, underlay)
		if !errors.Is(err, ebpf.ErrNotSupported) {
			return a, err
		}
	}
	return attachClsact(h, p, o, device, underlay)
}

func attachTCX(h *netlink.Handle, p *tcprog.Programs, device, underlay int) (*attachment, error) {
	a := &attachment{netlink: h}
	for _, at := range []link.TCXOptions{
		{Interface: device, Program: p.Egress(), Attach: ebpf.AttachTCXEgress, Anchor: link.Tail()},
		{Interface: underlay, Program: p.Ingress(), Attach: ebpf.AttachTCXIngress, Anchor: link.Tail()},
	} {
		l, err := link.AttachTCX(at)
		if err != nil {
			return nil, errors.Join(err, a.detach())
		}
		a.links = append(a.links, l)
	}
	return a, nil
}

// takeOver puts the programs in the place of those of inherited links.
func takeOver(h *netlink.Handle, p *tcprog.Programs, inherited *Descriptors) (*attachment, error) {
	a := &attachment{netlink: h}
	programs := []*ebpf.Program{p.Egress(), p.Ingress()}
	if len(inherited.Links) != len(programs) {
		return nil, fmt.Errorf("inherited %d links, not %d", len(inherited.Links), len(programs))
	}
	fds := inherited.Links
	inherited.Links = nil
	for i, fd := range fds {
		l, err := link.NewFromFD(fd)
		if err == nil {
			a.links = append(a.links, l)
			err = l.Update(programs[i])
		} else {
			unix.Close(fd)
		}
		if err != nil {
			for _, rest := range fds[i+1:] {
				unix.Close(rest)
			}
			return nil, errors.Join(fmt.Errorf("take an inherited link over: %w", err), a.detach())
		}
	}
	return a, nil
}

// Our filters have a priority, and a name and a handle that tell those of the host's
// networks apart, by which a later run knows them.
const (
	filterName     = "uvxlan-fastpath"
	filterPriority = 49152 // behind those whose priority the kernel chose
)

// owner is a router as its filters tell of it.
type owner struct {
	device string
	vni    encap.VNI
}

func (o owner) name() string { return filterName + " " + o.device }

// handle isn't 0, which would be the kernel's choice.
func (o owner) handle() uint32 { return uint32(o.vni) + 1 }

func attachClsact(h *netlink.Handle, p *tcprog.Programs, o owner, device, underlay int) (*attachment, error) {
	a := &attachment{netlink: h}
	for _, at := range []struct {
		index   int
		parent  uint32
		program *ebpf.Program
	}{
		{device, netlink.HANDLE_MIN_EGRESS, p.Egress()},
		{underlay, netlink.HANDLE_MIN_INGRESS, p.Ingress()},
	} {
		filter, err := addFilter(h, o, at.index, at.parent, at.program)
		if err != nil {
			return nil, errors.Join(fmt.Errorf("%w: attach by clsact: %w", ErrUnsupported, err), a.detach())
		}
		a.filters = append(a.filters, filter)
	}
	return a, nil
}

func addFilter(h *netlink.Handle, o owner, index int, parent uint32, program *ebpf.Program) (*netlink.BpfFilter, error) {
	qdisc := &netlink.Clsact{QdiscAttrs: netlink.QdiscAttrs{
		LinkIndex: index, Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_CLSACT,
	}}
	if err := h.QdiscAdd(qdisc); err != nil && !errors.Is(err, unix.EEXIST) {
		return nil, fmt.Errorf("add a clsact qdisc: %w", err)
	}
	filter := &netlink.BpfFilter{
		FilterAttrs: netlink.FilterAttrs{
			LinkIndex: index, Parent: parent, Handle: o.handle(), Protocol: unix.ETH_P_ALL, Priority: filterPriority,
		},
		Fd: program.FD(), Name: o.name(), DirectAction: true,
	}
	if err := h.FilterReplace(filter); err != nil {
		return nil, fmt.Errorf("add a filter: %w", err)
	}
	return filter, nil
}

// detach takes the programs away. A nil attachment has none.
func (a *attachment) detach() error {
	if a == nil {
		return nil
	}
	var errs []error
	for _, l := range a.links {
		if err := l.Detach(); err != nil && !isGone(err) {
			errs = append(errs, fmt.Errorf("detach: %w", err))
		}
		errs = append(errs, l.Close())
	}
	for _, filter := range a.filters {
		errs = append(errs, removeFilter(a.netlink, filter))
	}
	return errors.Join(errs...)
}

// isGone tells that what an operation was about has gone with its interface.
func isGone(err error) bool {
	return errors.Is(err, unix.ENOLINK) || errors.Is(err, unix.ENODEV) || errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EINVAL)
}

// removeFilter removes a filter and, if there is nothing else in it, its qdisc.
func removeFilter(h *netlink.Handle, filter *netlink.BpfFilter) error {
	if err := h.FilterDel(filter); err != nil && !isGone(err) {
		return fmt.Errorf("remove a filter: %w", err)
	}
	link := &netlink.Dummy{LinkAttrs: netlink.LinkAttrs{Index: filter.LinkIndex}}
	for _, parent := range []uint32{netlink.HANDLE_MIN_INGRESS, netlink.HANDLE_MIN_EGRESS} {
		filters, err := h.FilterList(link, parent)
		if err != nil || len(filters) > 0 {
			return nil //nolint:nilerr // the interface is gone, or the qdisc is somebody else's
		}
	}
	qdisc := &netlink.Clsact{QdiscAttrs: netlink.QdiscAttrs{
		LinkIndex: filter.LinkIndex, Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_CLSACT,
	}}
	if err := h.QdiscDel(qdisc); err != nil && !isGone(err) {
		return fmt.Errorf("remove the clsact qdisc: %w", err)
	}
	return nil
}

// RemoveStale removes filters that an earlier run left on the interfaces of the calling
// thread's network namespace when it was killed, of the router with that device, or of
// all routers if device is empty. It tells in words what it removed. The filters of a
// fast path that is attached are removed as well. tcx links leave none.
func RemoveStale(device string) (removed []string, err error) { return stale(device, true) }

// Stale tells of what [RemoveStale] would remove.
func Stale(device string) (found []string, err error) { return stale(device, false) }

func stale(device string, remove bool) (found []string, err error) {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("open netlink socket: %w", err)
	}
	defer h.Close()
	links, err := h.LinkList()
	if err != nil {
		return nil, fmt.Errorf("list interfaces: %w", err)
	}
	var errs []error
	for _, l := range links {
		for at, parent := range map[string]uint32{"ingress": netlink.HANDLE_MIN_INGRESS, "egress": netlink.HANDLE_MIN_EGRESS} {
			filters, err := h.FilterList(l, parent)
			if err != nil {
				continue // no such qdisc, or the interface has gone
			}
			for _, filter := range filters {
				ours, ok := filter.(*netlink.BpfFilter)
				if !ok || !isOurs(filter) || device != "" && ours.Name != (owner{device: device}).name() {
					continue
				}
				if remove {
					errs = append(errs, removeFilter(h, ours))
				}
				found = append(found, fmt.Sprintf("tc filter %q at the %s of %s", ours.Name, at, l.Attrs().Name))
			}
		}
	}
	return found, errors.Join(errs...)
}

func isOurs(f netlink.Filter) bool {
	b, ok := f.(*netlink.BpfFilter)
	return ok && strings.HasPrefix(b.Name, filterName) && b.Priority == filterPriority
}

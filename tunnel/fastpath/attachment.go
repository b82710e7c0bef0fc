package fastpath

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"uvxlan/encap"
	"uvxlan/tunnel/internal/dump"
	"uvxlan/tunnel/internal/tcprog"
)

// attachment is where the programs are attached: by tcx links, which end with their
// last descriptor, or as filters of clsact qdiscs.
type attachment struct {
	place   place
	links   []link.Link // of the egress and the ingress program
	filters []*netlink.BpfFilter
}

// place is where programs are to be attached.
type place struct {
	netlink          *netlink.Handle
	programs         *tcprog.Programs
	owner            owner
	device, underlay int // interface indexes
	clsact           bool
}

// hook is the place of one of the programs.
type hook struct {
	index   int
	program *ebpf.Program
	tcx     ebpf.AttachType
	parent  uint32 // of filters
}

// hooks are the places of the egress and the ingress program.
func (p place) hooks() []hook {
	return []hook{
		{p.device, p.programs.Egress(), ebpf.AttachTCXEgress, netlink.HANDLE_MIN_EGRESS},
		{p.underlay, p.programs.Ingress(), ebpf.AttachTCXIngress, netlink.HANDLE_MIN_INGRESS},
	}
}

// kind says how the programs are attached. A nil attachment is none.
func (a *attachment) kind() string {
	switch {
	case a == nil:
		return ""
	case len(a.filters) > 0:
		return "clsact"
	}
	return "tcx"
}

// attach attaches the programs behind those that others have attached. The calling
// thread is in the network namespace of the interfaces.
func attach(p place, inherited *Descriptors) (*attachment, error) {
	a, refused := takeOver(p, inherited)
	if a != nil {
		return a, nil
	}
	err := p.programs.Attach(func() (err error) {
		a, err = attachAnew(p)
		return err
	})
	if err != nil {
		return nil, errors.Join(err, refused, a.detach())
	}
	return a, nil
}

func attachAnew(p place) (*attachment, error) {
	if !p.clsact {
		a, err := attachTCX(p)
		if err == nil || !errors.Is(err, ebpf.ErrNotSupported) {
			return a, err
		}
	}
	return attachClsact(p)
}

func attachTCX(p place) (*attachment, error) {
	a := &attachment{place: p}
	for _, at := range p.hooks() {
		l, err := link.AttachTCX(link.TCXOptions{Interface: at.index, Program: at.program, Attach: at.tcx, Anchor: link.Tail()})
		if err != nil {
			return nil, errors.Join(fmt.Errorf("%w: %w", ErrUnsupported, err), a.detach())
		}
		a.links = append(a.links, l)
	}
	return a, nil
}

// takeOver puts the programs in the place of those of inherited links. Links that are
// of no use, such as those at an interface that has gone, are closed: that detaches
// what they held.
func takeOver(p place, inherited *Descriptors) (a *attachment, err error) {
	fds := inherited.Links
	inherited.Links = nil
	if len(fds) == 0 {
		return nil, nil //nolint:nilnil // nothing to take over isn't an error
	}
	a = &attachment{place: p}
	for _, fd := range fds {
		l, e := link.NewFromFD(fd)
		if e != nil {
			err = errors.Join(err, e, unix.Close(fd))
			continue
		}
		a.links = append(a.links, l)
	}
	if err == nil {
		err = a.replacePrograms()
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("take inherited links over: %w", err), a.detach())
	}
	return a, nil
}

// replacePrograms has the links hold this process's programs.
func (a *attachment) replacePrograms() error {
	hooks := a.place.hooks()
	if len(a.links) != len(hooks) {
		return fmt.Errorf("there are %d, not %d", len(a.links), len(hooks))
	}
	for i, at := range hooks {
		info, err := a.links[i].Info()
		if err != nil {
			return err
		}
		if tcx := info.TCX(); tcx == nil || int(tcx.Ifindex) != at.index || uint32(tcx.AttachType) != uint32(at.tcx) {
			return errors.New("they are at other interfaces")
		}
	}
	for i, at := range hooks {
		if err := a.links[i].Update(at.program); err != nil {
			return err
		}
	}
	return nil
}

// stands tells whether the programs are attached still, and which others' programs have
// come behind ours since: those don't see what ours take. The calling thread is in the
// network namespace of the interfaces.
func (a *attachment) stands() (ok bool, behind []ebpf.ProgramID) {
	for _, at := range a.place.hooks() {
		if len(a.filters) > 0 {
			ok = hasFilter(a.place.netlink, at, a.place.owner)
		} else {
			var after []ebpf.ProgramID
			ok, after = behindTCX(at)
			behind = append(behind, after...)
		}
		if !ok {
			return false, nil
		}
	}
	return true, behind
}

// behindTCX lists the programs behind ours; false if ours isn't there.
func behindTCX(at hook) (ok bool, behind []ebpf.ProgramID) {
	info, err := at.program.Info()
	if err != nil {
		return true, nil // nobody can tell
	}
	ours, _ := info.ID()
	all, err := link.QueryPrograms(link.QueryOptions{Target: at.index, Attach: at.tcx})
	if err != nil {
		return !errors.Is(err, unix.ENODEV), nil // the interface has gone, or nobody can tell
	}
	for _, p := range all.Programs {
		if ok {
			behind = append(behind, p.ID)
		}
		ok = ok || p.ID == ours
	}
	return ok, behind
}

// hasFilter tells whether a hook has our filter.
func hasFilter(h *netlink.Handle, at hook, o owner) bool {
	filters, err := filtersAt(h, at.index, at.parent)
	return err != nil || // nobody can tell
		slices.ContainsFunc(filters, func(f netlink.Filter) bool { return isOurs(f) && f.(*netlink.BpfFilter).Name == o.name() })
}

// filtersAt lists the filters of one direction. An interface without a qdisc for
// them, or that has gone, has none.
func filtersAt(h *netlink.Handle, index int, parent uint32) ([]netlink.Filter, error) {
	l := &netlink.Dummy{LinkAttrs: netlink.LinkAttrs{Index: index}}
	filters, err := dump.List(func() ([]netlink.Filter, error) { return h.FilterList(l, parent) })
	switch {
	case errors.Is(err, unix.EOPNOTSUPP):
		return nil, nil // a kernel without filters
	case err != nil:
		return nil, fmt.Errorf("list filters: %w", err)
	}
	return filters, nil
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

func attachClsact(p place) (*attachment, error) {
	a := &attachment{place: p}
	for _, at := range p.hooks() {
		filter, err := addFilter(p, at)
		if err != nil {
			return nil, errors.Join(fmt.Errorf("%w: attach by clsact: %w", ErrUnsupported, err), a.detach())
		}
		a.filters = append(a.filters, filter)
	}
	return a, nil
}

func addFilter(p place, at hook) (*netlink.BpfFilter, error) {
	err := p.netlink.QdiscAdd(clsact(at.index))
	if errors.Is(err, unix.EEXIST) {
		err = sharable(p.netlink, at.index)
	}
	if err != nil {
		return nil, fmt.Errorf("add a clsact qdisc: %w", err)
	}
	filter := &netlink.BpfFilter{
		FilterAttrs: netlink.FilterAttrs{
			LinkIndex: at.index, Parent: at.parent, Handle: p.owner.handle(), Protocol: unix.ETH_P_ALL, Priority: filterPriority,
		},
		Fd: at.program.FD(), Name: p.owner.name(), DirectAction: true,
	}
	if err := p.netlink.FilterReplace(filter); err != nil {
		err = fmt.Errorf("add a filter: %w", err)
		return nil, errors.Join(err, removeQdisc(p.netlink, at.index))
	}
	return filter, nil
}

func clsact(index int) *netlink.Clsact {
	return &netlink.Clsact{QdiscAttrs: netlink.QdiscAttrs{
		LinkIndex: index, Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_CLSACT,
	}}
}

// sharable tells whether uvxlan made the qdisc that an interface has: nobody but uvxlan
// has filters in it, and uvxlan has. An empty one is taken for somebody else's, who is
// about to fill it.
func sharable(h *netlink.Handle, index int) error {
	filters, err := allFilters(h, index)
	if err != nil {
		return err
	}
	if len(filters) == 0 || slices.ContainsFunc(filters, func(f netlink.Filter) bool { return !isOurs(f) }) {
		return errors.New("the interface has one that is somebody else's")
	}
	return nil
}

// allFilters lists the filters of both directions.
func allFilters(h *netlink.Handle, index int) (all []netlink.Filter, err error) {
	for _, parent := range []uint32{netlink.HANDLE_MIN_INGRESS, netlink.HANDLE_MIN_EGRESS} {
		filters, err := filtersAt(h, index, parent)
		if err != nil {
			return nil, err
		}
		all = append(all, filters...)
	}
	return all, nil
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
		errs = append(errs, removeFilter(a.place.netlink, filter))
	}
	return errors.Join(errs...)
}

// isGone tells that what an operation was about has gone with its interface.
func isGone(err error) bool {
	return errors.Is(err, unix.ENOLINK) || errors.Is(err, unix.ENODEV) || errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EINVAL)
}

// removeFilter removes a filter, and its qdisc if that has no other filters.
func removeFilter(h *netlink.Handle, filter *netlink.BpfFilter) error {
	if err := h.FilterDel(filter); err != nil && !isGone(err) {
		return fmt.Errorf("remove a filter: %w", err)
	}
	return removeQdisc(h, filter.LinkIndex)
}

// removeQdisc removes a qdisc of uvxlan's that has no filters any longer.
func removeQdisc(h *netlink.Handle, index int) error {
	if filters, err := allFilters(h, index); err != nil || len(filters) > 0 {
		return nil //nolint:nilerr // the interface is gone, or the qdisc is in use
	}
	if err := h.QdiscDel(clsact(index)); err != nil && !isGone(err) {
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
	links, err := dump.List(h.LinkList)
	if err != nil {
		return nil, fmt.Errorf("list interfaces: %w", err)
	}
	var errs []error
	for _, l := range links {
		for at, parent := range map[string]uint32{"ingress": netlink.HANDLE_MIN_INGRESS, "egress": netlink.HANDLE_MIN_EGRESS} {
			filters, err := filtersAt(h, l.Attrs().Index, parent)
			errs = append(errs, err)
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

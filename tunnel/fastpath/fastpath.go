package fastpath

import (
	"cmp"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"uvxlan/tunnel"
	"uvxlan/tunnel/internal/family"
	"uvxlan/tunnel/internal/lifecycle"
	"uvxlan/tunnel/internal/tcprog"
	"uvxlan/tunnel/internal/wake"
)

// ErrUnsupported says that there is no fast path here: the kernel, the interface or
// the process's privileges don't allow it. The error's text says what is missing.
var ErrUnsupported = errors.New("no fast path here")

// ErrClosed is what Run returns on a fast path that was closed or released before.
var ErrClosed = lifecycle.ErrClosed

// Config is what [Attach] may be told. The zero Config is fine.
type Config struct {
	// Link is the underlay's interface, whose name may change later; empty means the one
	// that has the router's IPv4 address at the moment or, without one, its IPv6 address.
	Link string
	// Clsact attaches the programs as filters of a clsact qdisc even where the kernel
	// has tcx links (Linux 6.6). The kernel doesn't remove filters when the process
	// is killed, and they take nothing from then on: [RemoveStale] does.
	Clsact bool
	// Inherited is what Release of an earlier fast path has returned, perhaps in
	// another process. Attach owns its descriptors.
	Inherited *Descriptors
	// Logger gets what happens rarely; nil means nothing is logged.
	Logger *slog.Logger
}

// FastPath is attached to a router. Its methods may be called from any goroutine.
type FastPath struct {
	// immutable
	router   *tunnel.Router
	config   Config
	wire     tunnel.Wire
	locals   []netip.AddrPort // one of a family, IPv4's first
	device   int              // index of the TUN
	programs *tcprog.Programs
	log      *slog.Logger
	host     *host
	waker    wake.Waker
	life     lifecycle.Life

	mu       sync.Mutex // guards the rest
	link     underlayLink
	attached *attachment             // nil if there is nothing to be attached to
	released bool                    // what is attached is somebody else's
	passed   map[ebpf.ProgramID]bool // programs that ours were moved behind
	broken   string                  // why nothing is carried any longer; empty if it is
	ended    string                  // likewise; the programs are no longer to be asked
	final    tunnel.FastPathStats    // when it ended
	members  map[netip.Prefix]*member
	view     view // of the host
	usedAll  tcprog.Totals
	used     map[netip.Prefix]uint64 // packets sent to each when Used last looked
	held     uint64                  // packets left to stay behind others when Waits last looked
	relay    relaying
}

// member is a peer of the router's.
type member struct {
	tunnel.FastPeer
	reason string // why the programs don't carry it; empty if they do
}

// Attach puts the programs into the kernel, hands them the router's peers and attaches
// them, in the calling thread's network namespace, which has to be that of the
// router's device and sockets. Until Run is called it doesn't follow what changes
// on the host. It may be closed before the router or after.
func Attach(r *tunnel.Router, c Config) (*FastPath, error) {
	f := &FastPath{
		router: r, config: c, log: cmp.Or(c.Logger, slog.New(slog.DiscardHandler)), waker: wake.Waker{FD: -1},
		passed: map[ebpf.ProgramID]bool{}, members: map[netip.Prefix]*member{}, used: map[netip.Prefix]uint64{},
	}
	inherited := cmp.Or(c.Inherited, &Descriptors{})
	// Filters stay without a descriptor, with the peers that they have.
	filters := c.Inherited != nil && len(c.Inherited.Links) == 0
	err := f.open(inherited)
	if filters && f.wire.Device != "" && f.attached.kind() != "clsact" {
		_, e := RemoveStale(f.wire.Device)
		err = errors.Join(err, e)
	}
	err = errors.Join(err, inherited.Close()) // what is of no use
	if err == nil {
		return f, nil
	}
	if errors.Is(err, unix.EPERM) && !errors.Is(err, ErrUnsupported) {
		err = fmt.Errorf("%w: %w", ErrUnsupported, err)
	}
	err = errors.Join(fmt.Errorf("attach fast path: %w", err), f.attached.detach())
	if f.programs != nil {
		r.UseFastPath(nil)
	}
	return nil, errors.Join(err, f.release())
}

// open does what Attach is for. Whatever it has opened is to be closed after an error.
func (f *FastPath) open(inherited *Descriptors) (err error) {
	if f.wire, err = f.router.Wire(); err != nil {
		return fmt.Errorf("%w: %w", ErrUnsupported, err)
	}
	if f.host, err = openHost(); err != nil {
		return err
	}
	if f.waker, err = wake.Open(); err != nil {
		return err
	}
	if err := f.find(); err != nil {
		return err
	}
	if f.programs, err = tcprog.Load(len(f.router.Peers()), inherited.takeMaps()); err != nil {
		return fmt.Errorf("%w: %w", ErrUnsupported, err)
	}
	if err := f.programs.Deliver(f.device); err != nil {
		return err
	}
	v := f.host.look(f.locals, f.device, f.link)
	f.haveRelay(v, inherited)
	f.apply(v)
	f.router.UseFastPath(f)
	f.attached, err = attach(f.place(f.link), inherited)
	return err
}

func (f *FastPath) place(l underlayLink) place {
	return place{
		netlink: f.host.netlink, programs: f.programs, owner: owner{f.wire.Device, f.wire.VNI},
		device: f.device, underlay: l.index, clsact: f.config.Clsact,
	}
}

// find finds the two interfaces.
func (f *FastPath) find() error {
	f.locals = slices.Clone(f.wire.Locals)
	slices.SortFunc(f.locals, func(a, b netip.AddrPort) int { return int(family.Of(a.Addr())) - int(family.Of(b.Addr())) })
	for _, local := range f.locals {
		// With some of the ports only, a flow would change its port with who carries it.
		if n := len(f.wire.SourcePorts[local.Addr()]); n > tcprog.MaxSourcePorts {
			return fmt.Errorf("%w: the underlay sends from %d ports, more than %d", ErrUnsupported, n, tcprog.MaxSourcePorts)
		}
	}
	device, err := f.host.netlink.LinkByName(f.wire.Device)
	if err != nil {
		return fmt.Errorf("%w: find %s: %w", ErrUnsupported, f.wire.Device, err)
	}
	f.device = device.Attrs().Index
	f.link, err = f.host.underlay(f.locals[0].Addr(), f.config.Link, underlayLink{})
	if err != nil {
		return fmt.Errorf("%w: %w", ErrUnsupported, err)
	}
	return nil
}

// Replace, Put, Remove, Traffic, Stats, Used, Waits and Passed implement
// [tunnel.FastPath], for the router to call.

// Replace is described with the interface.
func (f *FastPath) Replace(peers []tunnel.FastPeer) {
	f.mu.Lock()
	defer f.mu.Unlock()
	stays := make(map[netip.Prefix]struct{}, len(peers))
	for _, p := range peers {
		stays[p.Subnet] = struct{}{}
	}
	var gone []netip.Prefix
	for _, subnet := range f.programs.Subnets() { // inherited ones, too
		if _, ok := stays[subnet]; !ok {
			gone = append(gone, subnet)
		}
	}
	f.removeLocked(gone)
	for subnet := range f.members {
		if _, ok := stays[subnet]; !ok {
			delete(f.members, subnet)
		}
	}
	f.putLocked(peers)
}

// Put is described with the interface.
func (f *FastPath) Put(peers []tunnel.FastPeer) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.putLocked(peers)
}

// Remove is described with the interface.
func (f *FastPath) Remove(subnets []netip.Prefix) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.removeLocked(subnets)
	for _, subnet := range subnets {
		delete(f.members, subnet)
	}
}

func (f *FastPath) putLocked(peers []tunnel.FastPeer) {
	all := make([]tcprog.Peer, 0, len(peers))
	for _, p := range peers {
		m := f.members[p.Subnet]
		if m == nil {
			m = &member{}
			f.members[p.Subnet] = m
		}
		m.FastPeer, m.reason = p, f.view.objection(f.locals, p)
		all = append(all, programPeer(m))
	}
	if err := f.programs.Put(all); err != nil {
		f.log.Warn("the fast path doesn't carry all peers", "error", err)
		f.noteRefusedLocked(all)
		if errors.Is(err, tcprog.ErrStale) {
			f.breakLocked(err)
		}
	}
}

// noteRefusedLocked finds out which peers the kernel didn't take. Packets of one that
// lies inside another's subnet would be taken for the other's.
func (f *FastPath) noteRefusedLocked(peers []tcprog.Peer) {
	for _, p := range peers {
		if _, ok := f.programs.Counters(p.Subnet); ok {
			continue
		}
		f.members[p.Subnet].reason = "the kernel refused it"
		for bits := range p.Subnet.Bits() {
			if wider := netip.PrefixFrom(p.Subnet.Addr(), bits).Masked(); f.members[wider] != nil {
				f.breakLocked(fmt.Errorf("the kernel refused %s, which lies inside %s", p.Subnet, wider))
			}
		}
	}
}

func programPeer(m *member) tcprog.Peer {
	return tcprog.Peer{
		Subnet: m.Subnet, Underlay: m.Underlay, MAC: m.MAC, MaxPacket: int(m.MaxPacket), Direct: (*tcprog.Direct)(m.Direct),
		Excluded: m.reason != "",
	}
}

func (f *FastPath) removeLocked(subnets []netip.Prefix) {
	if err := f.programs.Remove(subnets); err != nil {
		f.breakLocked(fmt.Errorf("the kernel keeps peers that are gone: %w", err))
	}
}

// breakLocked has nothing carried from here on: the programs have what they must not.
func (f *FastPath) breakLocked(err error) {
	f.broken = err.Error()
	f.log.Error("the fast path is off: the workers carry everything", "error", err)
	if err := f.programs.Configure(f.settingsLocked()); err != nil {
		f.log.Error("turn the fast path off", "error", err)
	}
}

// offLocked is why nothing is carried, empty if that isn't so.
func (f *FastPath) offLocked() string { return cmp.Or(f.ended, f.broken, f.view.off) }

// Traffic is described with the interface.
func (f *FastPath) Traffic(subnet netip.Prefix) tunnel.PeerTraffic {
	f.mu.Lock()
	defer f.mu.Unlock()
	c, _ := f.programs.Counters(subnet)
	return tunnel.PeerTraffic{TxPackets: c.TxPackets, TxBytes: c.TxBytes, RxPackets: c.RxPackets, RxBytes: c.RxBytes, LastSeen: c.Seen}
}

// Stats is described with the interface.
func (f *FastPath) Stats() tunnel.FastPathStats {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.ended != "" {
		return f.final
	}
	return f.statsLocked()
}

func (f *FastPath) statsLocked() tunnel.FastPathStats {
	t, err := f.programs.Totals()
	if err != nil {
		f.log.Error("read the fast path's counters", "error", err)
	}
	return tunnel.FastPathStats(t)
}

// Used is described with the interface.
func (f *FastPath) Used() (used []netip.Prefix) {
	f.mu.Lock()
	defer f.mu.Unlock()
	all, err := f.programs.Totals()
	if err != nil || all.TxPackets == f.usedAll.TxPackets {
		return nil
	}
	f.usedAll = all
	now := make(map[netip.Prefix]uint64, len(f.used))
	for subnet, c := range f.programs.AllCounters() {
		now[subnet] = c.TxPackets
		if c.TxPackets != f.used[subnet] {
			used = append(used, subnet)
		}
	}
	f.used = now
	return used
}

// Waits is described with the interface.
func (f *FastPath) Waits() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	left, err := f.programs.Left()
	if err != nil {
		return false
	}
	before := f.held
	f.held = left.Tx[tcprog.Flowlet] + left.Rx[tcprog.Flowlet]
	return f.held != before
}

// queued is the most that it takes a packet that the programs have left to come to
// the device's queue or a socket's.
const queued = time.Millisecond

// Passed is described with the interface.
func (f *FastPath) Passed(before time.Time) {
	if err := f.programs.Passed(tcprog.Monotonic(before.Add(-queued))); err != nil {
		f.log.Error("follow the workers", "error", err)
	}
}

// settingsLocked are what the programs are to do as the host is.
func (f *FastPath) settingsLocked() tcprog.Settings {
	s := tcprog.Settings{
		On:     f.offLocked() == "",
		Device: f.device, MTU: f.wire.MTU, Underlay: f.link.index, Port: f.locals[0].Port(), VNI: f.wire.VNI, MAC: f.wire.MAC,
		Superpackets: f.view.superpackets, FlowLabels: f.view.flowLabels, Guard: tcprog.FlowGuard,
	}
	if f.relay.relay != nil {
		s.Relay = f.relay.index
	}
	for _, local := range f.locals {
		l := tcprog.Local{Address: local.Addr(), SourcePorts: f.wire.SourcePorts[local.Addr()]}
		if local.Addr().Is4() {
			s.IPv4 = l
		} else {
			s.IPv6 = l
		}
	}
	if !s.Superpackets {
		s.Bulk = int(f.wire.MTU) * 3 / 4
	}
	return s
}

// Close detaches the programs and ends Run. Further calls do nothing.
func (f *FastPath) Close() error {
	return f.life.Close(f.waker.Wake, func() error {
		err := f.attached.detach()
		f.router.UseFastPath(nil)
		f.emptyRelay()
		f.end("it is closed")
		return errors.Join(err, f.release())
	})
}

// end says why nothing is carried from here on, before what tells of it is closed.
func (f *FastPath) end(why string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.final, f.ended, f.attached = f.statsLocked(), why, nil
}

// release closes what Attach opened.
func (f *FastPath) release() error {
	f.mu.Lock()
	errs := []error{f.relay.close()}
	f.relay.relay = nil
	f.mu.Unlock()
	if f.programs != nil {
		errs = append(errs, f.programs.Close())
	}
	if f.host != nil {
		errs = append(errs, f.host.close())
	}
	return errors.Join(append(errs, f.waker.Close())...)
}

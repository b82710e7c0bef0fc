package tcprog

import (
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/rlimit"
	"golang.org/x/sys/unix"

	"uvxlan/encap"
)

// MaxSourcePorts is how many source ports frames of a family may have.
const MaxSourcePorts = 64

// FlowGuard is how long a flow stays with the workers at most after one of its packets
// was left to them, or may have been: before the programs began to carry packets, or a
// peer's packets, all were. It ends earlier where Passed says that they have passed on
// what they had, and so counts while they are too busy for that. None is so late, even
// if it waits for a CPU.
const FlowGuard = 2 * time.Second

// Settings are what the programs must know besides the peers. All are required but one
// of IPv4 and IPv6, MTU, Bulk and Relay.
type Settings struct {
	// On has packets carried at all.
	On bool
	// Device and Underlay are interface indexes: of the TUN, and of the Ethernet
	// that frames leave and arrive by.
	Device, Underlay int
	// IPv4 and IPv6 are where frames leave from and arrive at, of each family. Without an
	// address none of that family are carried.
	IPv4, IPv6 Local
	// FlowLabels gives frames over IPv6 the flow label of what is inside.
	FlowLabels bool
	// Port is the VXLAN port, ours and every peer's.
	Port uint16
	VNI  encap.VNI
	MAC  encap.MAC
	// MTU is the device's, in bytes.
	MTU encap.InnerMTU
	// Superpackets says that the underlay passes TCP superpackets in VXLAN unsplit,
	// or segments them itself. Over IPv6 none are sent in any case.
	Superpackets bool
	// Guard is [FlowGuard], or another time.
	Guard time.Duration
	// Bulk is the length in bytes from which TCP packets that arrive one by one are
	// left to the workers, who join them; 0 means never.
	Bulk int
	// Relay is the interface that leads to the relay, of which [Programs.DeliverRelay]
	// tells the rest; 0 if there is none.
	Relay int
}

// Local is an address of ours on the underlay.
type Local struct {
	Address netip.Addr // invalid if there is none
	// SourcePorts are those that frames leave from: a flow's is the one whose place
	// is [encap.FlowHash] modulo their number. Without any it is the VXLAN port.
	SourcePorts []uint16
}

// fits tells whether the programs can have the address as one of its family.
func (l Local) fits(is func(netip.Addr) bool) bool {
	return (!l.Address.IsValid() || is(l.Address)) && len(l.SourcePorts) <= MaxSourcePorts
}

// Direct is a way on the peers' common Ethernet.
type Direct struct {
	Link           int // interface index
	Source, Target encap.MAC
}

// Peer is another VTEP and the subnet behind it.
type Peer struct {
	Subnet   netip.Prefix
	Underlay netip.Addr
	MAC      encap.MAC
	// MaxPacket is the longest packet that travels to the peer in one piece, in
	// bytes.
	MaxPacket int
	// Excluded leaves the peer's packets to the workers. Without it they would be those
	// of a peer whose subnet holds this one's.
	Excluded bool
	// Direct is the way without VXLAN, nil for VXLAN.
	Direct *Direct
}

// Programs are the programs with their maps. Its methods may be called from any
// goroutine.
type Programs struct {
	objects vxlanObjects
	options uint32 // what the kernel was found to be able to

	mu     sync.Mutex    // guards the rest
	config vxlanSettings // in force
	peers  map[netip.Prefix]vxlanPeer
	next   uint32 // id
}

// Load loads the programs into the kernel, with maps for a number of peers that may be
// exceeded. Inherited are maps of earlier programs, by name, as Descriptors told them;
// those that fit go on being used, and all are owned from here on. The programs do
// nothing before Configure. Load needs CAP_NET_ADMIN and CAP_BPF, or CAP_SYS_ADMIN
// instead of CAP_BPF; the error says what the kernel refused.
func Load(peers int, inherited map[string]int) (*Programs, error) {
	memlock := rlimit.RemoveMemlock() // matters before Linux 5.11, and may be enough as it is
	spec, err := loadVxlan()
	if err != nil {
		return nil, fmt.Errorf("read the fast path's programs: %w", err)
	}
	size := uint32(max(16384, 2*peers)) // entries come with peers' first packets
	spec.Maps[vxlanMapCounters].MaxEntries = size
	replaced, err := adopt(spec, inherited)
	if err != nil {
		return nil, err
	}
	p := &Programs{peers: map[netip.Prefix]vxlanPeer{}}
	err = spec.LoadAndAssign(&p.objects, &ebpf.CollectionOptions{MapReplacements: replaced})
	for _, m := range replaced {
		err = errors.Join(err, m.Close()) // the collection has its own
	}
	if err == nil {
		err = p.start(replaced)
	}
	if err != nil {
		return nil, errors.Join(explain(err, memlock), p.Close())
	}
	return p, nil
}

// explain says what the kernel refused, and what is missing if it is privileges or, on
// old kernels, memory that may be locked.
func explain(err, memlock error) error {
	switch {
	case !errors.Is(err, unix.EPERM):
		return fmt.Errorf("load the fast path's programs: %w", err)
	case !mayLoad(): // whatever else the kernel's refusal of the first map may have been for
		return fmt.Errorf("load the fast path's programs, which takes CAP_BPF and CAP_NET_ADMIN: %w", unix.EPERM)
	case memlock != nil:
		err = fmt.Errorf("%w; raise RLIMIT_MEMLOCK: %w", err, memlock)
	}
	return fmt.Errorf("load the fast path's programs, which takes CAP_BPF and CAP_NET_ADMIN: %w", err)
}

// mayLoad tells whether the calling thread has the capabilities that Load needs, or that
// this can't be told.
func mayLoad() bool {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	has := func(c int) bool { return data[c/32].Effective&(1<<(c%32)) != 0 }
	err := unix.Capget(&header, &data[0])
	return err != nil || has(unix.CAP_NET_ADMIN) && (has(unix.CAP_BPF) || has(unix.CAP_SYS_ADMIN))
}

// adopt opens the maps that the programs can go on with and closes the others.
func adopt(spec *ebpf.CollectionSpec, inherited map[string]int) (fit map[string]*ebpf.Map, err error) {
	fit = map[string]*ebpf.Map{}
	for name, fd := range inherited {
		m, e := ebpf.NewMapFromFD(fd)
		if e != nil {
			err = errors.Join(err, fmt.Errorf("adopt map %q: %w", name, e))
			continue
		}
		want := spec.Maps[name]
		if name == vxlanMapCounters {
			want.MaxEntries = m.MaxEntries() // of the peers that there were at that time
		}
		if want == nil || want.Compatible(m) != nil {
			err = errors.Join(err, m.Close())
			continue
		}
		fit[name] = m
	}
	if err != nil {
		for _, m := range fit {
			err = errors.Join(err, m.Close())
		}
		return nil, err
	}
	return fit, nil
}

// start finds out what the kernel can do and which peers inherited maps have.
func (p *Programs) start(inherited map[string]*ebpf.Map) error {
	options, err := probe()
	if err != nil {
		return err
	}
	p.options = options
	if inherited[vxlanMapConfig] != nil {
		if err := p.objects.Config.Lookup(uint32(0), &p.config); err != nil {
			return fmt.Errorf("read inherited settings: %w", err)
		}
	}
	if inherited[vxlanMapPeers4] != nil || inherited[vxlanMapPeers6] != nil {
		err = p.readPeers()
	}
	return errors.Join(err, p.countAnew(inherited))
}

func (p *Programs) readPeers() error {
	var key4 vxlanPrefix4
	var key6 vxlanPrefix6
	var v vxlanPeer
	all := p.objects.Peers4.Iterate()
	for all.Next(&key4, &v) {
		var a [4]byte
		binary.NativeEndian.PutUint32(a[:], key4.Address)
		p.keep(netip.PrefixFrom(netip.AddrFrom4(a), int(key4.Bits)), v)
	}
	err := all.Err()
	all = p.objects.Peers6.Iterate()
	for all.Next(&key6, &v) {
		var a [16]byte
		for i, w := range key6.Address {
			binary.NativeEndian.PutUint32(a[4*i:], w)
		}
		p.keep(netip.PrefixFrom(netip.AddrFrom16(a), int(key6.Bits)), v)
	}
	if err := errors.Join(err, all.Err()); err != nil {
		return fmt.Errorf("read the peers of inherited maps: %w", err)
	}
	return nil
}

func (p *Programs) keep(subnet netip.Prefix, v vxlanPeer) {
	p.peers[subnet] = v
	p.next = max(p.next, v.Id)
}

// Egress is the program for packets that leave by the TUN. It stays the Programs'.
func (p *Programs) Egress() *ebpf.Program { return p.objects.VxlanEgress }

// Ingress is the program for what arrives at the underlay's interface. It stays the
// Programs'.
func (p *Programs) Ingress() *ebpf.Program { return p.objects.VxlanIngress }

// Configure changes the settings; packets meet the old ones or the new. When it turns
// the programs on, all flows stay with the workers until Passed, or for the guard's time.
func (p *Programs) Configure(s Settings) error {
	if !s.IPv4.fits(netip.Addr.Is4) || !s.IPv6.fits(netip.Addr.Is6) {
		return fmt.Errorf("configure the fast path: %s or %s isn't of its family, or has more than %d source ports", s.IPv4.Address, s.IPv6.Address, MaxSourcePorts)
	}
	v := vxlanSettings{
		Device: uint32(s.Device), Underlay: uint32(s.Underlay),
		Vni: order32(uint32(s.VNI) << 8), Guard: uint64(s.Guard), Options: p.options, Bulk: uint32(s.Bulk),
		Port: order16(s.Port), Ports4: uint16(len(s.IPv4.SourcePorts)), Ports6: uint16(len(s.IPv6.SourcePorts)),
		Mac: s.MAC, Mtu: uint32(s.MTU), Relay: uint32(s.Relay),
	}
	if a := s.IPv4.Address; a.IsValid() {
		v.Has4, v.Local4 = 1, word(a.AsSlice())
	}
	if a := s.IPv6.Address; a.IsValid() {
		v.Has6, v.Local6 = 1, words(a)
	}
	if s.On {
		v.Options |= optionOn
	}
	if s.Superpackets {
		v.Options |= optionSuperpackets
	}
	if s.FlowLabels {
		v.Options |= optionFlowLabels
	}
	for i, port := range s.IPv4.SourcePorts {
		v.SourcePorts4[i] = order16(port)
	}
	for i, port := range s.IPv6.SourcePorts {
		v.SourcePorts6[i] = order16(port)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	v.Since = p.config.Since
	if s.On && p.config.Options&optionOn == 0 && v.Since != attaching {
		// A program that runs meanwhile may see some of it only.
		off := p.config
		off.Since = attaching
		if err := p.configureLocked(off); err != nil {
			return err
		}
		v.Since = monotonic()
	}
	return p.configureLocked(v)
}

func (p *Programs) configureLocked(v vxlanSettings) error {
	if err := p.objects.Config.Put(uint32(0), &v); err != nil {
		return fmt.Errorf("configure the fast path: %w", err)
	}
	p.config = v
	return nil
}

// attaching is a moment to come: until there is another, all flows stay with the workers.
const attaching = 1 << 62

// Attach calls a function that attaches the programs where they weren't before. All
// packets went to the workers until then: so all flows stay with them meanwhile, and
// until Passed or for the guard's time after.
func (p *Programs) Attach(attach func() error) error {
	err := p.setSince(attaching)
	if err == nil {
		err = attach()
	}
	return errors.Join(err, p.setSince(monotonic()))
}

func (p *Programs) setSince(t uint64) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	v := p.config
	v.Since = t
	return p.configureLocked(v)
}

// Passed tells the programs that the workers have passed on all that came to them before
// a moment of the monotonic clock, in nanoseconds: flows of which they got nothing since
// are carried.
func (p *Programs) Passed(before uint64) error {
	if err := p.objects.Passed.Put(uint32(0), before); err != nil {
		return fmt.Errorf("tell the fast path what the workers have passed on: %w", err)
	}
	return nil
}

// The options of the programs.
const (
	optionSuperpackets = 1 << iota
	optionDecapL4UDP
	optionDecapOther
	optionOn
	optionEncapEthernet
	optionFlowLabels
)

// word is four bytes as they lie in memory.
func word(b []byte) uint32 { return binary.NativeEndian.Uint32(b) }

// words is an IPv6 address as it lies in memory.
func words(a netip.Addr) (w [4]uint32) {
	b := a.As16()
	for i := range w {
		w[i] = word(b[4*i:])
	}
	return w
}

func order32(v uint32) uint32 {
	return binary.NativeEndian.Uint32(binary.BigEndian.AppendUint32(nil, v))
}
func order16(v uint16) uint16 {
	return binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, v))
}

// ErrStale says that the programs carry packets by what isn't so any longer.
var ErrStale = errors.New("the kernel keeps peers that have changed")

// Put adds peers, each in the place of the one that has its subnet, whose counters go
// on. The flows of a peer whose subnet none had, or an excluded one, stay with the
// workers until Passed, or for the guard's time: so the workers know the peer before.
// The error says how many of them the kernel has refused; the others are in force. It
// is [ErrStale] if the programs have what some of them were before.
func (p *Programs) Put(peers []Peer) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	var keys4 []vxlanPrefix4
	var keys6 []vxlanPrefix6
	var values4, values6 []vxlanPeer
	var subnets4, subnets6 []netip.Prefix
	for _, peer := range peers {
		subnet := peer.Subnet.Masked()
		v := p.value(peer, subnet)
		if before, ok := p.peers[subnet]; ok && before == v {
			continue
		}
		if subnet.Addr().Is4() {
			keys4, values4, subnets4 = append(keys4, key4(subnet)), append(values4, v), append(subnets4, subnet)
		} else {
			keys6, values6, subnets6 = append(keys6, key6(subnet)), append(values6, v), append(subnets6, subnet)
		}
	}
	n, err := put(p.objects.Peers4, keys4, values4)
	for i, subnet := range subnets4[:n] {
		p.peers[subnet] = values4[i]
	}
	m, err6 := put(p.objects.Peers6, keys6, values6)
	for i, subnet := range subnets6[:m] {
		p.peers[subnet] = values6[i]
	}
	if err := errors.Join(err, err6); err != nil {
		// What the maps have of them is out of date.
		if e := p.removeLocked(slices.Concat(subnets4[n:], subnets6[m:])); e != nil {
			err = errors.Join(err, fmt.Errorf("%w: %w", ErrStale, e))
		}
		all := len(keys4) + len(keys6)
		return fmt.Errorf("put %d peers on the fast path, %d are left out: %w", all, all-n-m, err)
	}
	return nil
}

// value is what the programs know of a peer.
func (p *Programs) value(peer Peer, subnet netip.Prefix) vxlanPeer {
	var v vxlanPeer
	before, ok := p.peers[subnet]
	if v.Id, v.Since = before.Id, before.Since; !ok {
		p.next++
		v.Id = p.next
	}
	if peer.Excluded {
		return v
	}
	if before.Longest == 0 { // it was the workers'
		v.Since = monotonic()
	}
	v.Longest, v.Mac = uint32(peer.MaxPacket), peer.MAC
	if a := peer.Underlay.Unmap(); a.Is4() {
		v.Address[0] = word(a.AsSlice())
	} else {
		v.Address, v.V6 = words(a), 1
	}
	if d := peer.Direct; d != nil {
		v.Link, v.Source, v.Target = uint32(d.Link), d.Source, d.Target
	}
	return v
}

func key4(subnet netip.Prefix) vxlanPrefix4 {
	return vxlanPrefix4{Bits: uint32(subnet.Bits()), Address: word(subnet.Addr().AsSlice())}
}

func key6(subnet netip.Prefix) vxlanPrefix6 {
	return vxlanPrefix6{Bits: uint32(subnet.Bits()), Address: words(subnet.Addr())}
}

// Remove takes the peers of subnets away, with their counters. A subnet that no peer
// has is passed over.
func (p *Programs) Remove(subnets []netip.Prefix) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.removeLocked(subnets)
}

func (p *Programs) removeLocked(subnets []netip.Prefix) error {
	var errs []error
	for _, subnet := range subnets {
		subnet = subnet.Masked()
		v, ok := p.peers[subnet]
		if !ok {
			continue
		}
		var err error
		if subnet.Addr().Is4() {
			err = p.objects.Peers4.Delete(key4(subnet))
		} else {
			err = p.objects.Peers6.Delete(key6(subnet))
		}
		if err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			errs = append(errs, fmt.Errorf("remove %s from the fast path: %w", subnet, err))
			continue
		}
		delete(p.peers, subnet)
		if err := p.objects.Counters.Delete(v.Id); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			errs = append(errs, fmt.Errorf("remove the counters of %s: %w", subnet, err))
		}
	}
	return errors.Join(errs...)
}

// Subnets lists the peers' subnets, in no order.
func (p *Programs) Subnets() []netip.Prefix {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Collect(maps.Keys(p.peers))
}

// Deliver makes a device, by its interface index in the calling thread's network namespace,
// the one that packets come in by, for as long as it exists. Without one all frames are
// left. It is that of the settings.
func (p *Programs) Deliver(device int) error {
	if err := p.objects.Devices.Put(uint32(0), uint32(device)); err != nil {
		return fmt.Errorf("give the fast path its device: %w", err)
	}
	return nil
}

// Tolerate makes links the interfaces that may get superpackets of TCP which still
// bear the marks of a UDP tunnel; it matters before Linux has
// BPF_F_ADJ_ROOM_DECAP_L4_UDP. Interfaces that segment in software take them.
func (p *Programs) Tolerate(links []int) error {
	want := make(map[uint32]bool, len(links))
	for _, l := range links {
		want[uint32(l)] = true
	}
	var key, value uint32
	var gone []uint32
	all := p.objects.Tolerant.Iterate()
	for all.Next(&key, &value) {
		if !want[key] {
			gone = append(gone, key)
		}
		delete(want, key)
	}
	errs := []error{all.Err()}
	for _, link := range gone {
		errs = append(errs, p.objects.Tolerant.Delete(link))
	}
	added := slices.Collect(maps.Keys(want))
	_, err := put(p.objects.Tolerant, added, slices.Repeat([]uint32{1}, len(added)))
	errs = append(errs, err)
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("tell the fast path which interfaces take superpackets: %w", err)
	}
	return nil
}

// Descriptors are the maps', by name, for Load in a successor. They stay the Programs'.
func (p *Programs) Descriptors() map[string]int {
	o := &p.objects.vxlanMaps
	return map[string]int{
		vxlanMapConfig: o.Config.FD(), vxlanMapCounters: o.Counters.FD(), vxlanMapDevices: o.Devices.FD(), vxlanMapFlowlets: o.Flowlets.FD(),
		vxlanMapLeft: o.Left.FD(), vxlanMapPassed: o.Passed.FD(), vxlanMapPeers4: o.Peers4.FD(), vxlanMapPeers6: o.Peers6.FD(),
		vxlanMapRelayed: o.Relayed.FD(), vxlanMapSums: o.Sums.FD(), vxlanMapTolerant: o.Tolerant.FD(),
	}
}

// Close gives up programs and maps. Those that are attached stay in the kernel until
// they are detached.
func (p *Programs) Close() error {
	var errs []error
	for _, c := range []interface{ Close() error }{
		p.objects.VxlanEgress, p.objects.VxlanIngress, p.objects.VxlanRelayIn, p.objects.VxlanRelayOut, p.objects.Config, p.objects.Counters, p.objects.Devices, p.objects.Flowlets,
		p.objects.Left, p.objects.Passed, p.objects.Peers4, p.objects.Peers6, p.objects.Relayed, p.objects.Scratches, p.objects.Sums, p.objects.Tolerant,
	} {
		errs = append(errs, c.Close()) // of nil too
	}
	return errors.Join(errs...)
}

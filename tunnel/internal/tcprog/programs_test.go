package tcprog

import (
	"encoding/binary"
	"errors"
	"net/netip"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"golang.org/x/sys/unix"

	"uvxlan/encap"
)

// Without CAP_PERFMON the verifier trusts programs less, and without others less
// still; CAP_BPF and CAP_NET_ADMIN are enough.
func TestLoadWithFewPrivileges(t *testing.T) {
	load(t) // skips where there are none
	for _, c := range []struct {
		name string
		caps uint64
		ok   bool
	}{
		{"CAP_BPF and CAP_NET_ADMIN", 1<<unix.CAP_BPF | 1<<unix.CAP_NET_ADMIN, true},
		{"CAP_NET_ADMIN", 1 << unix.CAP_NET_ADMIN, false},
	} {
		p, err := loadWith(c.caps)
		switch {
		case c.ok && err != nil:
			if v, ok := errors.AsType[*ebpf.VerifierError](err); ok {
				t.Logf("%+v", v)
			}
			t.Errorf("%s: %v", c.name, err)
		case !c.ok && (!errors.Is(err, unix.EPERM) || !strings.Contains(err.Error(), "takes CAP_BPF")):
			t.Errorf("%s: error %v, want EPERM and what is missing", c.name, err)
		case !c.ok && strings.Contains(err.Error(), "MEMLOCK"):
			t.Errorf("%s: error %v speaks of what isn't at fault", c.name, err)
		}
		if err == nil {
			must(t, p.Close())
		}
	}
}

// Verifiers before Linux 6.13, without CAP_PERFMON, refuse a store of less than eight
// bytes to a place on the stack that a number of eight was stored at: the programs do
// no other stores there.
func TestStackStores(t *testing.T) {
	spec, err := loadVxlan()
	must(t, err)
	for name, p := range spec.Programs {
		stores := 0
		for i, ins := range p.Instructions {
			class := ins.OpCode.Class()
			if (class != asm.StClass && class != asm.StXClass) || ins.Dst != asm.RFP {
				continue
			}
			stores++
			if ins.OpCode.Size() != asm.DWord {
				t.Errorf("%s: instruction %d, %v", name, i, ins)
			}
		}
		if stores == 0 {
			t.Errorf("%s: no stores on the stack were found", name)
		}
	}
}

// loadWith loads the programs on a thread that has these capabilities alone, and ends
// with that.
func loadWith(caps uint64) (p *Programs, err error) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread()
		header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
		data := [2]unix.CapUserData{
			{Effective: uint32(caps), Permitted: uint32(caps)},
			{Effective: uint32(caps >> 32), Permitted: uint32(caps >> 32)},
		}
		if err = unix.Capset(&header, &data[0]); err == nil {
			p, err = Load(0, nil)
		}
	}()
	<-done
	return p, err
}

// duplicates are descriptors to be inherited.
func duplicates(t *testing.T, p *Programs) map[string]int {
	t.Helper()
	all := map[string]int{}
	for name, fd := range p.Descriptors() {
		d, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
		must(t, err)
		all[name] = d
	}
	return all
}

// A successor goes on with the maps: peers and settings. It counts anew, as all that
// begins with it does.
func TestInherit(t *testing.T) {
	in := newInbound(t)
	for range 3 {
		in.check(pingFrame(0, 0))
	}
	in.check(pingFrame(3, 0)) // is left
	p, err := Load(0, duplicates(t, in.Programs))
	must(t, err)
	defer func() { must(t, p.Close()) }()
	successor := &inbound{p, t, testPeers, in.out}
	if len(p.Subnets()) != len(testPeers) {
		t.Errorf("the successor has %v", p.Subnets())
	}
	clearFlowlets(t, p)
	if !successor.check(pingFrame(0, 0)) {
		t.Error("not carried without being configured anew")
	}
	c, ok := p.Counters(testPeers[0].Subnet)
	if !ok || c.RxPackets != 1 || time.Since(c.Seen) > time.Hour || time.Since(c.Seen) < 0 {
		t.Errorf("counters %+v, want 1 packet", c)
	}
	if all, err := p.Totals(); err != nil || all.RxPackets != 1 {
		t.Errorf("%+v in all, error %v; want 1 packet", all, err)
	}
	if l, err := p.Left(); err != nil || l != (Left{}) {
		t.Errorf("left %s, error %v", p.reasons(), err)
	}
	// A peer that comes gets counters of its own.
	late := Peer{Subnet: netip.MustParsePrefix("10.0.77.0/24"), Underlay: netip.MustParseAddr("10.66.0.7"), MaxPacket: testMTU}
	must(t, p.Put([]Peer{late}))
	if c, ok := p.Counters(late.Subnet); !ok || c != (Counters{}) {
		t.Errorf("a new peer has %+v", c)
	}
}

// Maps of another make are replaced: here of a version with fewer reasons.
func TestInheritOtherMaps(t *testing.T) {
	in := newInbound(t)
	fds := duplicates(t, in.Programs)
	must(t, unix.Close(fds[vxlanMapLeft]))
	other, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.PerCPUArray, KeySize: 4, ValueSize: 8, MaxEntries: 5})
	must(t, err)
	defer other.Close()
	fds[vxlanMapLeft], err = unix.FcntlInt(uintptr(other.FD()), unix.F_DUPFD_CLOEXEC, 0)
	must(t, err)
	p, err := Load(0, fds)
	must(t, err)
	defer func() { must(t, p.Close()) }()
	successor := &inbound{p, t, testPeers, in.out}
	successor.check(pingFrame(3, 0))
	if l, err := p.Left(); err != nil || l.Rx[ECN] != 1 {
		t.Errorf("left %s, error %v", p.reasons(), err)
	}
	if len(p.Subnets()) != len(testPeers) {
		t.Errorf("the successor has %v", p.Subnets())
	}
}

// Counters are the peer's, go with it, and don't pass to whoever comes after it.
func TestCounters(t *testing.T) {
	in := newInbound(t)
	frame := pingFrame(0, 0)
	before := time.Now()
	for range 5 {
		if !in.check(frame) {
			t.Fatal("not carried")
		}
	}
	subnet := testPeers[0].Subnet
	c, ok := in.Counters(subnet)
	if !ok || c.RxPackets != 5 || c.RxBytes != 5*64 || c.TxPackets != 0 || c.Seen.Before(before.Add(-time.Second)) {
		t.Errorf("counters %+v, want 5 packets of 64 bytes", c)
	}
	if all := in.AllCounters(); len(all) != 1 || all[subnet].RxPackets != 5 {
		t.Errorf("all counters %+v", all)
	}
	if c, ok := in.Counters(testPeers[2].Subnet); !ok || c != (Counters{}) {
		t.Errorf("counters of a quiet peer: %+v, %v", c, ok)
	}
	id := in.Programs.peers[subnet].Id
	must(t, in.Remove([]netip.Prefix{subnet}))
	if _, ok := in.Counters(subnet); ok {
		t.Error("a peer that is gone has counters")
	}
	// A packet that was on its way as the peer went.
	stale := make([]vxlanTraffic, ebpf.MustPossibleCPU())
	stale[0].RxPackets = 9
	must(t, in.objects.Counters.Put(id, stale))
	if all := in.AllCounters(); len(all) != 0 {
		t.Errorf("counters of nobody: %+v", all)
	}
	if err := in.objects.Counters.Lookup(id, &stale); !errors.Is(err, ebpf.ErrKeyNotExist) {
		t.Errorf("counters of nobody stay: %v", err)
	}
	must(t, in.Put(testPeers[:1]))
	if c, ok := in.Counters(subnet); !ok || c != (Counters{}) {
		t.Errorf("the peer has come back with %+v", c)
	}
	if !in.check(frame) {
		t.Error("not carried for the peer that came back")
	}
}

// The kernel's reserve of entries may be empty for a moment, at each of them.
func TestEachRoom(t *testing.T) {
	const n = 10
	tries, refused := 0, errors.New("refused")
	for _, c := range []struct {
		name     string
		patience time.Duration
		write    func(from int) (int, error)
		written  int
		err      error
	}{
		{"all at once", 0, func(int) (int, error) { return n, nil }, n, nil},
		{"room for one after each wait", time.Hour, func(int) (int, error) {
			if tries++; tries%3 != 0 {
				return 0, unix.ENOMEM
			}
			return 1, nil
		}, n, nil},
		{"room for one", time.Millisecond, func(from int) (int, error) { return 1 - from, unix.ENOMEM }, 1, unix.ENOMEM},
		{"refused", time.Hour, func(int) (int, error) { return 4, refused }, 4, refused},
	} {
		if written, err := eachRoom(n, c.patience, c.write); written != c.written || !errors.Is(err, c.err) {
			t.Errorf("%s: %d written, %v; want %d, %v", c.name, written, err, c.written, c.err)
		}
	}
}

// Where there is no memory for a peer's counters the workers carry its packets, who
// have counters.
func TestCountersFull(t *testing.T) {
	in := newInbound(t)
	none := make([]vxlanTraffic, ebpf.MustPossibleCPU())
	const first = 1 << 20
	n := in.objects.Counters.MaxEntries()
	_, err := eachRoom(int(n), time.Minute, func(from int) (int, error) {
		if err := in.objects.Counters.Put(first+uint32(from), none); err != nil {
			return 0, err
		}
		return 1, nil
	})
	must(t, err)
	if in.check(pingFrame(0, 0)) {
		t.Error("carried without being counted")
	}
	if l, err := in.Left(); err != nil || l.Rx[Error] != 1 {
		t.Errorf("left: %s", in.reasons())
	}
	must(t, in.objects.Counters.Delete(uint32(first)))
	if !in.check(pingFrame(0, 0)) {
		t.Errorf("not carried with room for counters (%s)", in.reasons())
	}
}

// Peers have addresses of either family.
func TestPutFamilies(t *testing.T) {
	p := load(t)
	peers := []Peer{
		{Subnet: netip.MustParsePrefix("10.0.8.0/24"), Underlay: netip.MustParseAddr("fd66::8"), MaxPacket: testMTU},
		{Subnet: netip.MustParsePrefix("10.0.9.0/24"), Underlay: netip.MustParseAddr("::ffff:10.66.0.9"), MaxPacket: testMTU},
	}
	must(t, p.Put(peers))
	if v := p.peers[peers[0].Subnet]; v.V6 != 1 || v.Address != words(peers[0].Underlay) {
		t.Errorf("the peer is %+v", v)
	}
	if v := p.peers[peers[1].Subnet]; v.V6 != 0 || v.Address != [4]uint32{word([]byte{10, 66, 0, 9})} {
		t.Errorf("the other peer is %+v", v)
	}
}

func TestConfigureRefuses(t *testing.T) {
	p := load(t)
	many := make([]uint16, MaxSourcePorts+1)
	for name, s := range map[string]Settings{
		"IPv6 for IPv4": {IPv4: Local{Address: testLocal6}}, "IPv4 for IPv6": {IPv6: Local{Address: testLocal}},
		"too many ports": {IPv4: Local{testLocal, many}}, "too many ports of IPv6": {IPv6: Local{testLocal6, many}},
	} {
		if err := p.Configure(s); err == nil {
			t.Errorf("configured with %s", name)
		}
	}
}

func TestTolerate(t *testing.T) {
	p := load(t)
	for _, want := range [][]int{{3, 5}, {5, 8, 13}, nil} {
		must(t, p.Tolerate(want))
		var got []uint32
		var key, value uint32
		all := p.objects.Tolerant.Iterate()
		for all.Next(&key, &value) {
			got = append(got, key)
		}
		must(t, all.Err())
		if len(got) != len(want) {
			t.Errorf("links are %v, want %v", got, want)
		}
		for _, link := range want {
			if err := p.objects.Tolerant.Lookup(uint32(link), &value); err != nil {
				t.Errorf("link %d: %v", link, err)
			}
		}
	}
}

// As many peers as any cluster has are taken, and all can be had again.
func TestManyPeers(t *testing.T) {
	p := load(t)
	peers := manyPeers(100_000)
	must(t, p.Put(peers))
	if n := len(p.Subnets()); n != len(peers) {
		t.Errorf("%d peers of %d", n, len(peers))
	}
	subnets := make([]netip.Prefix, len(peers))
	for i := range peers {
		subnets[i] = peers[i].Subnet
	}
	must(t, p.Remove(subnets))
	var key vxlanPrefix4
	var value vxlanPeer
	if all := p.objects.Peers4.Iterate(); all.Next(&key, &value) {
		t.Errorf("%+v is left", key)
	}
}

func TestReasons(t *testing.T) {
	seen := map[string]bool{}
	for _, r := range Reasons() {
		if s := r.String(); s == "" || s == "unknown" || seen[s] {
			t.Errorf("reason %d is %q", r, s)
		} else {
			seen[s] = true
		}
	}
	if Reason(200).String() != "unknown" {
		t.Error("a reason that there isn't has a name")
	}
	spec, err := loadVxlan()
	must(t, err)
	if n := spec.Maps[vxlanMapLeft].MaxEntries; n != uint32(2*reasons) {
		t.Errorf("the programs have %d reasons, not %d", n/2, reasons)
	}
}

// A peer whose address changes its family isn't carried as it was.
func TestPeerChangesFamily(t *testing.T) {
	in := newInbound(t)
	frame := pingFrame(0, 0)
	if !in.check(frame) {
		t.Fatal("not carried")
	}
	in.peers = slices.Clone(testPeers)
	in.peers[0].Underlay = netip.MustParseAddr("fd66::2")
	must(t, in.Put(in.peers))
	if in.check(frame) {
		t.Error("carried as it was")
	}
	h := encap.MakeFrameHeader(testVNI, testMAC, testPeers[0].MAC, encap.EtherTypeIPv4)
	if !in.check(datagram(in.peers[0].Underlay, encap.MAC{}, 0, h, ping("10.0.2.9", "10.0.1.9", 0))) {
		t.Errorf("not carried as it is (%s)", in.reasons())
	}
}

// A program that finds another at work on its CPU leaves the packet.
func TestBusyCPU(t *testing.T) {
	in := newInbound(t)
	scratches := make([][]byte, ebpf.MustPossibleCPU())
	for _, busy := range []uint32{1, 0} {
		for i := range scratches {
			scratches[i] = make([]byte, in.objects.Scratches.ValueSize())
			binary.NativeEndian.PutUint32(scratches[i], busy)
		}
		must(t, in.objects.Scratches.Put(uint32(0), scratches))
		if got := in.check(pingFrame(0, 0)); got != (busy == 0) {
			t.Errorf("busy %d: carried is %v", busy, got)
		}
	}
	if !in.check(pingFrame(0, 0)) {
		t.Error("busy after a packet")
	}
}

// More counters than are read in one call are read once each, whichever way the kernel
// has.
func TestCountersOfMany(t *testing.T) {
	in := newInbound(t)
	const many = 2*counterBatch + 7
	cpus := ebpf.MustPossibleCPU()
	for id := range uint32(many) {
		byCPU := make([]vxlanTraffic, cpus)
		byCPU[cpus-1].TxPackets = uint64(id)
		must(t, in.objects.Counters.Put(id, byCPU))
	}
	for name, each := range map[string]func(func(uint32, []vxlanTraffic)) error{
		"batches": in.eachCounters, "one by one": in.eachCountersSlowly,
	} {
		seen := map[uint32]int{}
		must(t, each(func(id uint32, byCPU []vxlanTraffic) {
			seen[id]++
			if len(byCPU) != cpus || byCPU[cpus-1].TxPackets != uint64(id) {
				t.Errorf("%s: %d has %+v", name, id, byCPU)
			}
		}))
		for id := range uint32(many) {
			if seen[id] != 1 {
				t.Fatalf("%s: %d was read %d times", name, id, seen[id])
			}
		}
	}
}

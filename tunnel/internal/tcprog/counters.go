package tcprog

import (
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/cilium/ebpf"
)

// Counters are what was carried for a peer, in packets on the wire, each segment of a
// superpacket one, and their bytes without what encapsulates them.
type Counters struct {
	TxPackets, TxBytes uint64
	// TxDirect is how many of TxPackets left without VXLAN.
	TxDirect           uint64
	RxPackets, RxBytes uint64
	// Seen is when the last of RxPackets came, zero if none has.
	Seen time.Time
}

// Totals are what was carried in all. Packets are those of the device, a superpacket
// one, datagrams those on the wire.
type Totals struct {
	TxPackets, RxPackets     uint64
	TxDatagrams, RxDatagrams uint64
	TxBytes, RxBytes         uint64
	TxDirect                 uint64
}

// countAnew removes what inherited maps have counted, which was somebody else's.
func (p *Programs) countAnew(inherited map[string]*ebpf.Map) error {
	var errs []error
	if inherited[vxlanMapCounters] != nil {
		var ids []uint32
		errs = append(errs, p.eachCounters(func(id uint32, _ []vxlanTraffic) {
			ids = append(ids, id)
			p.next = max(p.next, id) // a program that has just met it may make it again
		}))
		for _, id := range ids {
			if err := p.objects.Counters.Delete(id); !errors.Is(err, ebpf.ErrKeyNotExist) {
				errs = append(errs, err)
			}
		}
	}
	cpus, err := ebpf.PossibleCPU()
	errs = append(errs, err)
	if inherited[vxlanMapSums] != nil {
		errs = append(errs, p.objects.Sums.Put(uint32(0), make([]vxlanTotals, cpus)))
	}
	if inherited[vxlanMapLeft] != nil {
		for key := range 2 * uint32(reasons) {
			errs = append(errs, p.objects.Left.Put(key, make([]uint64, cpus)))
		}
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("count anew: %w", err)
	}
	return nil
}

// Counters are those of the peer of a subnet; false if there is no such peer.
func (p *Programs) Counters(subnet netip.Prefix) (Counters, bool) {
	p.mu.Lock()
	v, ok := p.peers[subnet.Masked()]
	p.mu.Unlock()
	if !ok {
		return Counters{}, false
	}
	var all []vxlanTraffic
	if err := p.objects.Counters.Lookup(v.Id, &all); err != nil {
		return Counters{}, true // no packets yet
	}
	return sum(all, now()), true
}

// AllCounters are those of every peer that packets were carried for. It removes
// counters of peers that are gone: a packet that was on its way when its peer was
// removed makes them anew.
func (p *Programs) AllCounters() map[netip.Prefix]Counters {
	p.mu.Lock()
	ids := make(map[uint32]netip.Prefix, len(p.peers))
	for subnet, v := range p.peers {
		ids[v.Id] = subnet
	}
	newest := p.next
	p.mu.Unlock()
	var gone []uint32
	counters, clock := map[netip.Prefix]Counters{}, now()
	_ = p.eachCounters(func(id uint32, values []vxlanTraffic) { // what it misses comes at the next look
		if subnet, ok := ids[id]; ok {
			counters[subnet] = sum(values, clock)
		} else if id <= newest {
			gone = append(gone, id)
		}
	})
	for _, id := range gone {
		_ = p.objects.Counters.Delete(id) // or at the next look
	}
	return counters
}

// counterBatch is how many peers' counters are read in one call.
const counterBatch = 1024

// eachCounters calls f with the counters of each id, by CPU: many at a time if the
// kernel can. The slice is f's until it returns.
func (p *Programs) eachCounters(f func(id uint32, byCPU []vxlanTraffic)) error {
	cpus, err := ebpf.PossibleCPU()
	if err != nil {
		return fmt.Errorf("count CPUs: %w", err)
	}
	ids, values := make([]uint32, counterBatch), make([]vxlanTraffic, counterBatch*cpus)
	var cursor ebpf.MapBatchCursor
	for {
		n, err := p.objects.Counters.BatchLookup(&cursor, ids, values, nil)
		for i, id := range ids[:n] {
			f(id, values[i*cpus:][:cpus])
		}
		switch {
		case errors.Is(err, ebpf.ErrKeyNotExist):
			return nil // that was all
		case errors.Is(err, ebpf.ErrNotSupported):
			return p.eachCountersSlowly(f)
		case err != nil:
			return fmt.Errorf("read counters: %w", err)
		}
	}
}

// eachCountersSlowly takes two calls for each id.
func (p *Programs) eachCountersSlowly(f func(id uint32, byCPU []vxlanTraffic)) error {
	var id uint32
	var byCPU []vxlanTraffic
	all := p.objects.Counters.Iterate()
	for all.Next(&id, &byCPU) {
		f(id, byCPU)
	}
	if err := all.Err(); err != nil {
		return fmt.Errorf("read counters: %w", err)
	}
	return nil
}

// sum adds what the CPUs have counted.
func sum(all []vxlanTraffic, clock clock) (c Counters) {
	var seen uint64
	for _, t := range all {
		c.TxPackets += t.TxPackets
		c.TxBytes += t.TxBytes
		c.TxDirect += t.TxDirect
		c.RxPackets += t.RxPackets
		c.RxBytes += t.RxBytes
		seen = max(seen, t.RxSeen)
	}
	if seen > 0 {
		c.Seen = clock.at(seen)
	}
	return c
}

// Totals are what was carried since Load.
func (p *Programs) Totals() (t Totals, err error) {
	var all []vxlanTotals
	if err := p.objects.Sums.Lookup(uint32(0), &all); err != nil {
		return t, fmt.Errorf("read what the fast path carried: %w", err)
	}
	for _, c := range all {
		t.TxPackets += c.TxPackets
		t.TxDatagrams += c.TxDatagrams
		t.TxBytes += c.TxBytes
		t.TxDirect += c.TxDirect
		t.RxPackets += c.RxPackets
		t.RxDatagrams += c.RxDatagrams
		t.RxBytes += c.RxBytes
	}
	return t, nil
}

// Left counts packets by [Reason], each direction's, of those that the programs left
// to the workers.
type Left struct{ Tx, Rx [reasons]uint64 }

// Left reads how many packets were left.
func (p *Programs) Left() (l Left, err error) {
	var all []uint64
	for direction, counts := range []*[reasons]uint64{&l.Tx, &l.Rx} {
		for r := NotIP; r < reasons; r++ {
			if err := p.objects.Left.Lookup(uint32(direction)*uint32(reasons)+uint32(r), &all); err != nil {
				return l, fmt.Errorf("read what the fast path left: %w", err)
			}
			for _, n := range all {
				counts[r] += n
			}
		}
	}
	return l, nil
}

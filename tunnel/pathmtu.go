package tunnel

import (
	"context"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"time"

	"uvxlan/encap"
	"uvxlan/tunnel/batch"
)

// A path to a peer may take less than the device's MTU and the frame's headers. The
// outer packets have no DF, so they would be fragmented, which RFC 7348, section 4.3
// forbids a VTEP; the inner packet's sender, who could send smaller ones, would never
// know. So each destination has the longest datagram that its path takes whole, and
// a packet that makes a longer one and must not be fragmented is refused as any
// router refuses it.
//
// The kernel knows the MTU of each path: it keeps what ICMP tells of any socket's
// packets, and forgets it after net.ipv4.route.mtu_expires. It reports neither, so a
// goroutine asks for the destinations in use.

const (
	// mtuInterval is the time between two looks at the paths in use.
	mtuInterval = time.Second
	// mtuBudget is how many paths are asked for in a look, at some microseconds
	// each.
	mtuBudget = 1000
	// mtuLines is how many lines a look may log.
	mtuLines = 3
)

// mtuFollower keeps destinations' path MTUs. One goroutine uses it.
type mtuFollower struct {
	// immutable
	ask          func(netip.Addr) encap.OuterMTU // 0 if it isn't known
	destinations func() []*batch.Destination
	device       encap.InnerMTU
	changed      func(netip.Addr) // the MTU of the path to a host
	log          *slog.Logger

	due  []*batch.Destination // to be asked for
	told map[*batch.Destination]encap.InnerMTU
}

func (r *Router) newMTUFollower() *mtuFollower {
	return &mtuFollower{
		ask: r.underlay.PathMTU, destinations: r.allDestinations, device: r.config.Link.MTU, changed: r.fast.mark, log: r.log,
		told: map[*batch.Destination]encap.InnerMTU{},
	}
}

// run looks until ctx ends.
func (f *mtuFollower) run(ctx context.Context) {
	tick := time.NewTicker(mtuInterval)
	defer tick.Stop()
	for {
		f.look()
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// look asks for paths, as many as the budget allows: those that take less than the
// device's MTU, of which the MTU may rise, those of which a datagram was refused, and
// all that are used. The next are asked for once these are done.
func (f *mtuFollower) look() {
	all := f.destinations()
	if len(f.due) == 0 {
		f.due = slices.DeleteFunc(slices.Clone(all), func(d *batch.Destination) bool {
			used, refused := d.Used(), d.TooBig()
			return !used && !refused && innerMTU(d) >= f.device
		})
	}
	n := min(len(f.due), mtuBudget)
	for _, d := range f.due[:n] {
		before := d.MaxDatagram()
		updateMTU(d, f.ask)
		if d.MaxDatagram() != before {
			f.changed(d.AddrPort().Addr())
		}
	}
	f.due = f.due[n:]
	f.tell(all)
}

// updateMTU asks for the MTU of the path to a destination.
func updateMTU(d *batch.Destination, ask func(netip.Addr) encap.OuterMTU) {
	to, longest := d.AddrPort().Addr(), 0
	if mtu := ask(to); mtu > 0 {
		longest = int(mtu.Inner(to.Is6())) + encap.FrameHeaderLen
	}
	d.SetMaxDatagram(longest)
}

// innerMTU is the longest packet that travels to a destination in one piece.
func innerMTU(d *batch.Destination) encap.InnerMTU {
	return encap.InnerMTU(d.MaxDatagram() - encap.FrameHeaderLen)
}

// tell logs which paths came to take less than the device's MTU, or more again.
func (f *mtuFollower) tell(all []*batch.Destination) {
	var fell, rose []*batch.Destination
	for _, d := range all {
		mtu := min(innerMTU(d), f.device)
		before, limited := f.told[d]
		if !limited {
			before = f.device
		}
		switch {
		case mtu < before:
			fell = append(fell, d)
		case mtu > before:
			rose = append(rose, d)
		default:
			continue
		}
		f.told[d] = mtu
	}
	for _, d := range fell[:min(len(fell), mtuLines)] {
		f.log.Info("path MTU fell", "peer", d.AddrPort().Addr(), "mtu", f.told[d], "device", f.device)
	}
	for _, d := range rose[:min(len(rose), mtuLines)] {
		f.log.Info("path MTU rose", "peer", d.AddrPort().Addr(), "mtu", f.told[d], "device", f.device)
	}
	if more := max(len(fell)-mtuLines, 0) + max(len(rose)-mtuLines, 0); more > 0 {
		f.log.Info("path MTU changed", "more_peers", more)
	}
	f.forget(all)
}

// forget drops what was told of paths that are as wide as the device, or are no more.
func (f *mtuFollower) forget(all []*batch.Destination) {
	if len(f.told) == 0 {
		return
	}
	there := make(map[*batch.Destination]bool, len(f.told))
	for _, d := range all {
		if mtu, ok := f.told[d]; ok && mtu < f.device {
			there[d] = true
		}
	}
	maps.DeleteFunc(f.told, func(d *batch.Destination, _ encap.InnerMTU) bool { return !there[d] })
}

// allDestinations lists where datagrams go.
func (r *Router) allDestinations() []*batch.Destination {
	r.changing.Lock()
	defer r.changing.Unlock()
	return slices.Collect(maps.Values(r.destinations))
}

// PathMTU is the longest packet to the peer of a subnet that travels in one piece by
// VXLAN: the device's MTU, or less if the path to the peer takes less. It is 0 if
// there is no such peer.
func (r *Router) PathMTU(subnet netip.Prefix) encap.InnerMTU {
	e, ok := r.peers.load().subnets.Get(subnet.Masked())
	if !ok {
		return 0
	}
	return min(innerMTU(e.to), r.config.Link.MTU)
}

// tooBig refuses a packet that must not be fragmented if its datagrams would be,
// and tells its sender the MTU (RFC 1191, section 4; RFC 4443, section 3.2). limit is
// the longest packet that travels in one piece; packet is longer, and of a
// superpacket the segments count.
func (o *outbound) tooBig(peer *entry, packet []byte, offload encap.Offload, limit int) bool {
	mtu := o.local.refusable(packet, limit)
	if mtu == 0 || longestSegment(packet, offload) <= int(mtu) {
		return false
	}
	n := offload.Segments(packet)
	o.counts.dropN(DropTooBig, n)
	peer.traffic.sent.Dropped.Add(uint64(n))
	o.tell(o.local.tooBig(o.answer[:], packet, mtu))
	return true
}

// longestSegment is the length of the longest IP packet that a packet of the device
// makes.
func longestSegment(packet []byte, o encap.Offload) int {
	if o.GSO == encap.GSONone {
		return len(packet)
	}
	return min(o.HeadersEnd(packet)+int(o.SegmentSize), len(packet))
}

// refusable is the MTU that the sender of a packet would be told where a path takes
// packets of limit bytes; 0 if the packet may be fragmented, or if there is no
// address to tell it from. An IPv6 sender need not go below 1280 bytes: such packets
// are fragmented outside (RFC 2473, section 7.1).
func (l *local) refusable(packet []byte, limit int) encap.InnerMTU {
	if packet[0]>>4 == 6 {
		if !l.v6.IsValid() {
			return 0
		}
		return encap.InnerMTU(max(limit, minMTUv6))
	}
	if !l.v4.IsValid() || !encap.IPv4(packet).DontFragment() {
		return 0
	}
	return encap.InnerMTU(max(limit, minMTU))
}

package doctor

import (
	"cmp"
	"context"
	"errors"
	"net/netip"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"uvxlan/cmd/internal/control"
	"uvxlan/cmd/internal/probe"
	"uvxlan/encap"
)

const (
	// patience is how long an answer is waited for.
	patience = time.Second
	// few and gap are the echoes that every peer gets. Where some of them are lost,
	// more tell how many are.
	few, more = 5, 20
	gap       = 50 * time.Millisecond
	// heardOf is how long after a packet that was too long the daemon knows it.
	heardOf    = 1200 * time.Millisecond
	togetherN  = 3
	togetherOf = 1000 // bytes of an inner packet
)

// test is one of the packets of our own making, told apart by its ICMP ID.
type test uint16

// The tests.
const (
	// summed and unsummed are frames with and without a UDP checksum. They are
	// answered by the overlay.
	summed test = iota
	unsummed
	// wayOut is a frame whose inner source is this host's address beside the overlay,
	// where the answer comes to.
	wayOut
	// wayBack is an echo beside the overlay from our VTEP's address: the answer comes
	// by the overlay.
	wayBack
	// otherPort is a frame to another port.
	otherPort
	// question is one by ARP. Its answer has no ID.
	question
	// together are frames that are sent as one message, and apart are such by
	// themselves.
	together
	apart
	// clock is a timestamp request.
	clock
)

// evidence is what is known of a peer.
type evidence struct {
	Host
	peer  control.Peer
	lease *control.LeaseRow // nil if it isn't known
	index uint16            // tells its packets from other peers'

	overlay, underlay outcome
	// limit is what made overlay.MTU less than the device's MTU: what was answered
	// to a longer packet, [probe.ErrNoAnswer] if nothing was.
	limit, underlayLimit error
	// bigOut tells whether a packet that gets no answer reaches the peer all the same.
	bigOut verdict

	// Of a peer that doesn't answer by the overlay.
	refused  error // by which the kernel refused frames of ours
	answered map[test]bool

	// Of one that does.
	segments verdict // frames that are sent as one message arrive
	tcp      verdict // the kernel's own TCP segments are answered
	syn      segment // what came to a segment of our own making where they aren't
	offset   *time.Duration
	neigh    neighbour
}

// verdict is the result of a test that may tell nothing.
type verdict int

const (
	untold verdict = iota
	passes
	fails
)

// outcome is what became of echoes.
type outcome struct {
	Echoes
	err     error // the most telling one
	damaged int
}

// lost is how many echoes got no answer.
func (o outcome) lost() int { return o.Sent - o.Received }

// dead says that no echo was answered.
func (o outcome) dead() bool { return o.Sent > 0 && o.Received == 0 }

// examiner does what is done to each peer. Its fields are immutable.
type examiner struct {
	status  control.Status
	mac     encap.MAC // of our VTEP, zero if it isn't known
	vni     encap.VNI
	port    uint16
	others  []uint16   // ports that VXLAN may use as well
	local   netip.Addr // the underlay's address; invalid where there is none
	vtep    netip.Addr
	device  int // the overlay's interface, 0 if there is none
	gso     bool
	overlay map[bool]*probe.Prober // by whether it is IPv6
	beside  map[bool]*probe.Prober
	linkMTU int
	tap     *tap
	sender  *sender // nil without IPv4
	ids     uint16
}

func (x *examiner) id(t test) uint16 { return x.ids + uint16(t) }

// isTest tells whether an ID is that of one of the tests, whose answers are only seen
// and never delivered to anybody.
func (x *examiner) isTest(id uint16) bool { return id-x.ids <= uint16(clock) }

// examine does all that is done to a peer.
func (x *examiner) examine(ctx context.Context, p *evidence) {
	var both sync.WaitGroup
	if o := x.overlay[p.vtep().Is6()]; o != nil && p.peer.Path != control.PathNone {
		both.Go(func() { p.overlay = x.echoes(ctx, o, p.vtep()) })
	}
	if b := x.beside[p.PublicIP.Is6()]; b != nil {
		both.Go(func() { p.underlay = x.echoes(ctx, b, p.PublicIP) })
	}
	both.Wait()
	p.neigh = neighbourOf(p.PublicIP)
	switch {
	case ctx.Err() != nil:
	case p.overlay.Received == 0:
		x.dig(p)
	default:
		x.measure(ctx, p)
	}
}

// vtep is the address of the peer's end of the overlay.
func (p *evidence) vtep() netip.Addr { return p.Subnet.Addr() }

// echoes sends a few echoes, and more where some are lost.
func (x *examiner) echoes(ctx context.Context, by *probe.Prober, to netip.Addr) outcome {
	o := series(ctx, by, to, few)
	if o.Received > 0 && o.lost() > 0 {
		o.add(series(ctx, by, to, more))
	}
	return o
}

// series sends n echoes.
func series(ctx context.Context, by *probe.Prober, to netip.Addr, n int) (o outcome) {
	replies, errs := make([]probe.Reply, n), make([]error, n)
	var all sync.WaitGroup
	for i := range n {
		all.Go(func() {
			select {
			case <-time.After(time.Duration(i) * gap):
			case <-ctx.Done():
			}
			replies[i], errs[i] = by.Echo(ctx, probe.Request{To: to, Timeout: patience})
		})
	}
	all.Wait()
	var times []time.Duration
	for i, err := range errs {
		o.Sent++
		switch {
		case err == nil:
			o.Received++
			times = append(times, replies[i].RTT)
		case errors.Is(err, probe.ErrDamaged):
			o.damaged++
			fallthrough
		default:
			o.note(err)
		}
	}
	if len(times) > 0 {
		slices.Sort(times)
		o.RTT = times[len(times)/2]
	}
	return o
}

// note keeps the most telling of the errors.
func (o *outcome) note(err error) {
	if o.err == nil || errors.Is(o.err, probe.ErrNoAnswer) {
		o.err = err
	}
	o.Error = words(o.err)
}

// words is an error without the operation that it is of.
func words(err error) string {
	var icmp *probe.ICMPError
	switch {
	case err == nil:
		return ""
	case errors.As(err, &icmp):
		return icmp.Error()
	case errors.Is(err, probe.ErrNoAnswer):
		return probe.ErrNoAnswer.Error()
	case errors.Is(err, probe.ErrDamaged):
		return probe.ErrDamaged.Error()
	case errors.Is(err, unix.EPERM):
		return "a rule of this host's firewall drops it"
	}
	return err.Error()
}

// add adds the echoes of another series.
func (o *outcome) add(other outcome) {
	o.Sent, o.Received, o.damaged = o.Sent+other.Sent, o.Received+other.Received, o.damaged+other.damaged
	o.RTT = cmp.Or(other.RTT, o.RTT)
	if other.err != nil {
		o.note(other.err)
	}
}

// measure finds out how well a peer is reached.
func (x *examiner) measure(ctx context.Context, p *evidence) {
	var all sync.WaitGroup
	wait := waitFor(p.overlay.RTT)
	all.Go(func() {
		by := x.overlay[p.vtep().Is6()]
		p.overlay.MTU, p.limit = longest(ctx, by, p.vtep(), x.status.MTU, wait)
		if !errors.Is(p.limit, probe.ErrNoAnswer) {
			return
		}
		// A path whose MTU isn't known yet costs a packet: once more, when the daemon
		// has heard of it.
		select {
		case <-time.After(heardOf):
		case <-ctx.Done():
		}
		p.overlay.MTU, p.limit = longest(ctx, by, p.vtep(), x.status.MTU, wait)
		if errors.Is(p.limit, probe.ErrNoAnswer) && p.vtep().Is4() {
			p.bigOut = x.arrives(p, x.status.MTU, wait)
		}
	})
	if p.underlay.Received > 0 {
		all.Go(func() {
			p.underlay.MTU, p.underlayLimit = longest(ctx, x.beside[p.PublicIP.Is6()], p.PublicIP, x.linkMTU, waitFor(p.underlay.RTT))
		})
	}
	if p.overlay.lost() > 0 { // then what gets no answer tells nothing
		all.Wait()
		return
	}
	all.Go(func() { x.tryTCP(ctx, p) })
	if x.sender != nil && p.vtep().Is4() && p.PublicIP.Is4() {
		all.Go(func() { x.tryTogether(p, wait) })
		all.Go(func() { x.askTime(p) })
	}
	all.Wait()
}

// waitFor is how long an answer is waited for where the round-trip time is known.
func waitFor(rtt time.Duration) time.Duration {
	return min(max(8*rtt, 300*time.Millisecond), 2*patience)
}

// longest looks for the longest packet that may not be fragmented and is answered, up
// to most bytes. The error is what became of a longer one, nil if most is answered.
func longest(ctx context.Context, by *probe.Prober, to netip.Addr, most int, wait time.Duration) (int, error) {
	passes := func(size int) error { return anyOf(ctx, by, to, size, wait) }
	limit := passes(most)
	if limit == nil {
		return most, nil
	}
	least := probe.MinSize(to)
	var icmp *probe.ICMPError
	if errors.As(limit, &icmp) && icmp.TooBig() && icmp.MTU >= least && icmp.MTU < most {
		if passes(icmp.MTU) == nil {
			return icmp.MTU, limit
		}
		most = icmp.MTU
	}
	return search(least, most, func(sizes []int) (passed int) {
		ok := make([]bool, len(sizes))
		var all sync.WaitGroup
		for i, size := range sizes {
			all.Go(func() { ok[i] = passes(size) == nil })
		}
		all.Wait()
		for i := range sizes {
			if ok[i] {
				passed = i + 1
			}
		}
		return passed
	}), limit
}

// tries is how many packets of a size are sent at once: one of them may be lost.
const tries = 2

// anyOf is nil if one of some echoes is answered, else the most telling error.
func anyOf(ctx context.Context, by *probe.Prober, to netip.Addr, size int, wait time.Duration) error {
	errs := make([]error, tries)
	var all sync.WaitGroup
	for i := range errs {
		all.Go(func() {
			_, errs[i] = by.Echo(ctx, probe.Request{To: to, Size: size, DontFragment: true, Timeout: wait})
		})
	}
	all.Wait()
	var o outcome
	for _, err := range errs {
		if err == nil {
			return nil
		}
		o.note(err)
	}
	return o.err
}

// search finds the largest size that passes, where least does and most doesn't. pass
// tries sizes, the smallest first, and returns how many of them pass.
func search(least, most int, pass func(sizes []int) int) int {
	const ways = 8
	for most-least > 1 {
		step := max((most-least)/ways, 1)
		var sizes []int
		for s := least + step; s < most && len(sizes) < ways; s += step {
			sizes = append(sizes, s)
		}
		n := pass(sizes)
		if n > 0 {
			least = sizes[n-1]
		}
		if n < len(sizes) {
			most = sizes[n]
		}
	}
	return least
}

// tryTCP tells whether the kernel's own TCP segments are answered, and where they
// aren't, whether others are.
func (x *examiner) tryTCP(ctx context.Context, p *evidence) {
	from := x.status.Lease.Subnet.Addr()
	if p.vtep().Is6() {
		from = x.status.Lease.SubnetV6.Addr()
	}
	for range tries {
		if connect(ctx, from, p.vtep(), patience+patience/2) { // the kernel repeats it after a second
			p.tcp = passes
			return
		}
	}
	if !p.vtep().Is4() || ctx.Err() != nil {
		return
	}
	for range tries {
		if s, err := sendSYN(from, p.vtep(), patience); err == nil && s.answered {
			p.tcp, p.syn = fails, s
			return
		}
	}
}

// tryTogether tells whether frames arrive that are sent as one message. Where they
// don't, they must arrive by themselves for that to mean something.
func (x *examiner) tryTogether(p *evidence, wait time.Duration) {
	if !x.gso || p.peer.Path != control.PathVXLAN {
		return
	}
	size := togetherOf
	if p.peer.PathMTU > 0 {
		size = min(size, p.peer.PathMTU)
	}
	e := x.frameTo(p)
	e.size = size
	all := func(t test, send func(e overlayEcho) error) bool {
		e.id = x.id(t)
		if send(e) != nil {
			return false
		}
		seen := map[uint16]bool{}
		x.tap.await(togetherN, wait, func(s *sighting) bool {
			is := x.answers(s, t, p) && !seen[s.message.seq]
			if is {
				seen[s.message.seq] = true
			}
			return is
		})
		return len(seen) == togetherN
	}
	for range tries {
		if all(together, func(e overlayEcho) error { return x.sender.sendTogether(e, togetherN) }) {
			p.segments = passes
			return
		}
	}
	oneByOne := all(apart, func(e overlayEcho) error {
		for range togetherN {
			if err := x.sender.sendFrame(e, true); err != nil {
				return err
			}
			e.seq++
		}
		return nil
	})
	if oneByOne {
		p.segments = fails
	}
}

// frameTo is an echo request to the peer's VTEP, in a frame.
func (x *examiner) frameTo(p *evidence) overlayEcho {
	mac, _ := encap.ParseMAC(p.peer.MAC) // a peer without one gets no answer
	return overlayEcho{
		to: netip.AddrPortFrom(p.PublicIP, x.port), vni: x.vni, mac: mac,
		src: x.vtep, dst: p.vtep(), seq: p.seq(),
	}
}

// seq is the first of the peer's sequence numbers.
func (p *evidence) seq() uint16 { return p.index << 3 }

// answers tells whether a packet that came answers a test of ours.
func (x *examiner) answers(s *sighting, t test, p *evidence) bool {
	if t == question {
		return !s.out && s.message.arp && s.frame.src == p.vtep() && s.src == p.PublicIP
	}
	return !s.out && !s.message.arp && s.link != x.device && s.message.id == x.id(t) && s.message.seq>>3 == p.index<<3>>3 &&
		(s.message.kind == echoReply || s.message.kind == timestampReply)
}

// askTime asks the peer for its time (RFC 792, page 16).
func (x *examiner) askTime(p *evidence) {
	sent := time.Now()
	if x.sender.sendMessage(x.local, p.PublicIP, timestamp, x.id(clock), p.seq()) != nil {
		return
	}
	for _, s := range x.tap.await(1, patience, func(s *sighting) bool { return x.answers(s, clock, p) }) {
		p.offset = clockOffset(s.message.times[1], sent, s.at)
	}
}

// clockOffset is how much the clock is ahead of ours that has said the time meanwhile,
// in milliseconds since midnight UT; nil if it counts otherwise.
func clockOffset(said uint32, sent, received time.Time) *time.Duration {
	const day, nonStandard = 24 * time.Hour, 1 << 31
	if said&nonStandard != 0 {
		return nil
	}
	middle := sent.Add(received.Sub(sent) / 2).UTC()
	ours := middle.Sub(middle.Truncate(day))
	offset := time.Duration(said)*time.Millisecond - ours
	offset = (offset+day+day/2)%day - day/2 // around midnight
	return &offset
}

// dig finds out what becomes of packets to and from a peer that doesn't answer.
func (x *examiner) dig(p *evidence) {
	p.answered = map[test]bool{}
	if x.sender == nil || !p.vtep().Is4() || !p.PublicIP.Is4() || p.peer.MAC == "" {
		return
	}
	for range tries {
		x.sendTests(p)
		x.tap.await(int(question)+1, patience/2, func(s *sighting) bool {
			for t := summed; t <= question; t++ {
				if x.answers(s, t, p) && (t != wayBack || s.frame != nil) {
					first := !p.answered[t]
					p.answered[t] = true
					return first
				}
			}
			return false
		})
	}
}

func (x *examiner) sendTests(p *evidence) {
	e := x.frameTo(p)
	e.id = x.id(summed)
	if err := x.sender.sendFrame(e, true); err != nil {
		p.refused = err
	}
	e.id = x.id(unsummed)
	_ = x.sender.sendFrame(e, false) // as before
	for _, port := range x.others {
		o := e
		o.id, o.to = x.id(otherPort), netip.AddrPortFrom(p.PublicIP, port)
		_ = x.sender.sendFrame(o, true)
	}
	if x.mac != (encap.MAC{}) {
		_ = x.sender.ask(e, x.mac)
	}
	e.id, e.src = x.id(wayOut), x.local
	_ = x.sender.sendFrame(e, true)
	_ = x.sender.sendMessage(x.vtep, p.PublicIP, echoRequest, x.id(wayBack), p.seq())
}

package doctor

import (
	"context"
	"errors"
	"net/netip"
	"sync"
	"time"

	"uvxlan/cmd/internal/control"
	"uvxlan/cmd/internal/probe"
)

// measure finds out how well a peer is reached.
func (x *examiner) measure(ctx context.Context, p *evidence) {
	var all sync.WaitGroup
	wait, lossy := waitFor(p.overlay.RTT), p.overlay.lost() > 0
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
	if lossy { // then what gets no answer tells nothing
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
	return min(max(4*rtt, 300*time.Millisecond), patience)
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
	from := x.vtepOf(p.vtep())
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

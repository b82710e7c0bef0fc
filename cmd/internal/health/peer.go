package health

import (
	"errors"
	"math/bits"
	"time"

	"uvxlan/cmd/internal/control"
	"uvxlan/cmd/internal/probe"
)

const (
	// missesToSilence is how many requests in a row must be without an answer for a
	// peer to be silent.
	missesToSilence = 3
	// windowLen is how many of the last requests the loss is of.
	windowLen = 20
	// fullEvery is every how many requests a full-size one follows.
	fullEvery = 60
	// missesToLost is how many full-size requests in a row must be without an answer,
	// while short ones have theirs, for long packets to be lost.
	missesToLost = 3
)

// peer is what is known of one. Whoever has the Monitor's mutex has it.
type peer struct {
	target Target
	due    time.Time // when to ask it next

	state   string
	since   time.Time // the state is so
	problem string    // what came instead of the last answer, or why it can't be asked
	rtt     time.Duration
	heard   time.Time // when it last answered

	sent, answered uint64
	window         uint32 // a bit for each of the last requests, 1 for a miss
	misses         int    // in a row

	fullIn     int // in how many requests a full-size one is due
	fullMisses int // in a row
	full       string
	fullSize   int // the size that full is of
}

// set takes note of what a peer is at the moment.
func (p *peer) set(t Target) {
	if p.state == "" {
		p.state = control.HealthUnknown
	}
	if p.target.Size != t.Size {
		p.fullIn, p.fullMisses = 0, 0
	}
	p.target = t
}

// request is the next one: of the least size, or now and then, to a peer that
// answers, of full size.
func (p *peer) request() (r probe.Request, full bool) {
	r = probe.Request{To: p.target.Address}
	full = p.state == control.HealthAnswers && p.misses == 0 && p.fullIn <= 0 && p.target.Size >= probe.MinSize(r.To)
	if full {
		r.Size, r.DontFragment = p.target.Size, true
		p.fullSize = r.Size
	}
	return r, full
}

// isUnclear tells whether the next request is not to wait for its time: it is the
// first of its kind, or the last one was missed.
func (p *peer) isUnclear() bool {
	return p.misses > 0 && p.misses < missesToSilence ||
		p.state == control.HealthAnswers && (p.sent == 1 && p.fullIn <= 0 || p.fullMisses > 0 && p.fullMisses < missesToLost)
}

// event is what the log is told.
type event int

const (
	nothing event = iota
	fellSilent
	answersAgain
	longPacketsLost
	longPacketsPass
)

// take takes note of what has become of a request.
func (p *peer) take(now time.Time, full bool, reply probe.Reply, err error) event {
	_, refused := errors.AsType[*probe.ICMPError](err)
	missed := refused || errors.Is(err, probe.ErrNoAnswer) || errors.Is(err, probe.ErrDamaged)
	switch {
	case full:
		return p.takeFull(now, missed, err)
	case err == nil:
		return p.takeAnswer(now, reply)
	case missed:
		return p.takeMiss(now, err)
	}
	p.problem = "it can't be asked: " + reason(err)
	p.be(now, control.HealthUnknown)
	return nothing
}

func (p *peer) be(now time.Time, state string) {
	if p.state != state {
		p.state, p.since = state, now
	}
}

func (p *peer) takeAnswer(now time.Time, reply probe.Reply) event {
	was := p.state
	p.count(0)
	p.answered++
	p.fullIn--
	p.rtt, p.heard, p.misses, p.problem = reply.RTT, now, 0, ""
	p.be(now, control.HealthAnswers)
	if was == control.HealthSilent {
		p.fullIn = 0
		return answersAgain
	}
	return nothing
}

func (p *peer) takeMiss(now time.Time, err error) event {
	p.count(1)
	p.misses++
	p.problem = reason(err)
	if p.misses < missesToSilence || p.state == control.HealthSilent {
		return nothing
	}
	p.be(now, control.HealthSilent)
	return fellSilent
}

func (p *peer) count(miss uint32) {
	p.sent++
	p.window = (p.window<<1 | miss) & (1<<windowLen - 1)
}

// takeFull takes note of a full-size request. One that this host or a router refuses
// as too big is none: the path's MTU is another by now.
func (p *peer) takeFull(now time.Time, missed bool, err error) event {
	icmp, _ := errors.AsType[*probe.ICMPError](err)
	was := p.full
	switch {
	case err == nil:
		p.heard, p.fullMisses, p.full = now, 0, control.FullSizePasses
	case missed && (icmp == nil || !icmp.TooBig()):
		p.fullMisses++
		if p.fullMisses < missesToLost {
			p.fullIn = 1 // after a short one
			return nothing
		}
		p.full = control.FullSizeLost
	}
	p.fullIn = fullEvery
	switch {
	case p.full == was:
	case p.full == control.FullSizeLost:
		return longPacketsLost
	case was == control.FullSizeLost:
		return longPacketsPass
	}
	return nothing
}

// health is what the control socket tells.
func (p *peer) health() *control.Health {
	h := &control.Health{
		State: p.state, Since: p.since, Problem: p.problem, Sent: p.sent, Answered: p.answered, LastAnswer: p.heard,
		Loss: control.Loss{Missed: bits.OnesCount32(p.window), Of: int(min(p.sent, windowLen))},
	}
	if p.state == control.HealthAnswers {
		h.RTTSeconds = p.rtt.Seconds()
		h.FullSize, h.FullSizeBytes = p.full, p.fullSize
		if p.full == "" {
			h.FullSizeBytes = 0
		}
	}
	return h
}

// reason is an error without what everybody knows: whom the request was for.
func reason(err error) string {
	if errors.Is(err, probe.ErrNoAnswer) {
		return control.NoAnswer
	}
	if inner := errors.Unwrap(err); inner != nil {
		return inner.Error()
	}
	return err.Error()
}

func (p *peer) name() []any {
	return []any{"subnet", p.target.Subnet, "public_ip", p.target.Host}
}

package tunnel

import (
	"testing"
	"time"
)

// idler is a worker on a clock of its own.
type idler struct {
	spin  spin
	now   time.Time
	slept int           // waits that ended in sleep
	vain  time.Duration // spun before a sleep
	extra time.Duration // spun before packets beyond what a sleep costs
}

func newIdler() *idler { return &idler{spin: newSpin(time.Time{})} }

// receive waits for packets that come at a time, and moves them.
func (d *idler) receive(at time.Time, found amount) {
	const (
		pass   = time.Microsecond // looks at both queues and yields
		waking = 30 * time.Microsecond
		moving = 8 * time.Microsecond
	)
	begin := d.now
	for d.now.Before(at) && d.spin.on(d.now) {
		d.now = d.now.Add(pass)
		d.spin.yielded(d.now, pass)
	}
	spun := d.now.Sub(begin)
	if d.now.Before(at) {
		d.vain += spun
		d.slept++
		d.now = at.Add(waking)
	} else {
		d.extra += max(spun-spinSaves, 0)
	}
	end := d.now.Add(moving)
	d.spin.moved(d.now, end, found)
	d.now = end
}

// pace has packets come one by one, with the gaps in between in rotation.
func (d *idler) pace(count int, gaps ...time.Duration) {
	at := d.now
	for i := range count {
		at = at.Add(gaps[i%len(gaps)])
		d.receive(at, one)
	}
}

// However packets are spaced, spinning takes no more than its share.
func TestSpinShare(t *testing.T) {
	for gap := 10 * time.Microsecond; gap < 2*time.Millisecond; gap += 7 * time.Microsecond {
		d := newIdler()
		d.pace(int(time.Second/gap), gap)
		elapsed := d.now.Sub(time.Time{})
		spent := d.vain + d.extra
		if most := elapsed/spinShare + spinBurst; spent > most {
			t.Errorf("a packet every %v: spun for %v of %v, more than %v", gap, spent, elapsed, most)
		}
	}
}

// A wait that is long each time is none to spin in.
func TestSpinNotForIsolatedPackets(t *testing.T) {
	for _, gap := range []time.Duration{250 * time.Microsecond, time.Millisecond, time.Second} {
		d := newIdler()
		d.pace(1000, gap)
		if d.vain > 0 || d.slept != 1000 {
			t.Errorf("a packet every %v: spun in vain for %v and slept %d times of 1000", gap, d.vain, d.slept)
		}
	}
}

func TestSpinUnderLoad(t *testing.T) {
	for _, gap := range []time.Duration{5 * time.Microsecond, 25 * time.Microsecond} {
		d := newIdler()
		d.pace(100, gap)
		if d.slept > spinOdds {
			t.Errorf("a packet every %v: slept %d times, not only at first", gap, d.slept)
		}
	}
}

// Between a request and its answer the worker spins, not between the answer and
// the next request.
func TestSpinForAnswers(t *testing.T) {
	const rounds = 1000
	d := newIdler()
	d.pace(2*rounds, time.Millisecond, 70*time.Microsecond)
	if d.vain > 0 {
		t.Errorf("spun in vain for %v", d.vain)
	}
	if d.slept > rounds+spinOdds {
		t.Errorf("slept %d times in %d rounds, for answers as well", d.slept, rounds)
	}
}

// After packets stopped coming in time there is an end to spinning, and after
// they come in time again a beginning.
func TestSpinLearns(t *testing.T) {
	d := newIdler()
	for range 3 {
		d.pace(10, 20*time.Microsecond)
		before := d.slept
		d.pace(10, 20*time.Microsecond)
		if d.slept != before {
			t.Errorf("slept %d times while packets came all 20us", d.slept-before)
		}
		d.pace(10, 10*time.Millisecond)
		vain := d.vain
		d.pace(10, 10*time.Millisecond)
		if d.vain != vain {
			t.Errorf("spun for %v while packets came all 10ms", d.vain-vain)
		}
	}
}

// spinning returns a spin within a wait that began at the clock's zero.
func spinning(t *testing.T, found amount) *spin {
	t.Helper()
	d := newIdler()
	d.pace(20, 10*time.Microsecond)
	d.spin.moved(d.now, time.Time{}, found)
	if !d.spin.on(time.Time{}) {
		t.Fatal("doesn't spin after short waits")
	}
	return &d.spin
}

// A busy worker leaves a CPU that somebody wants; what others ran in isn't spent.
func TestSpinGivesWay(t *testing.T) {
	const took = 50 * time.Microsecond
	now := time.Time{}.Add(took + time.Microsecond)
	for _, c := range []struct {
		found amount
		on    bool
	}{{some, false}, {one, true}} {
		s := spinning(t, c.found)
		budget := s.budget
		s.yielded(now, took)
		if s.on(now) != c.on {
			t.Errorf("found %d before, another thread ran for %v: spins on: %t", c.found, took, !c.on)
		}
		if s.on(now.Add(spinWindow)) {
			t.Error("no end to spinning")
		}
		if spent := budget - s.budget; spent > spinWindow-took+2*time.Microsecond+spinWindow {
			t.Errorf("spent %v of the budget", spent)
		}
	}
}

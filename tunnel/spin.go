package tunnel

import "time"

// A worker without packets may spin: look at its queues again and again, and
// give way to other threads in between, instead of sleeping until a packet wakes
// it. Under load the next packets come so soon that neither their sender nor the
// worker pays for a wake-up, and whoever runs meanwhile makes the next batch
// larger. A thread that doesn't sleep is also seldom moved to another CPU, where
// it would overtake its own packets that are still queued on the one before.
//
// Where packets come one by one, spinning only costs CPU: at 12,000 evenly spaced
// packets a second the next comes when the worker has just given up. So it spins
// only where a wait is likely to be short, and a budget bounds what it may spend in
// vain. What is likely is learnt apart for waits after a long one and after a short
// one: of a request and its answer, the first is waited for long and the second not.
const (
	// spinWindow is for how long a worker spins. It takes about as long to be woken
	// on an idle virtual CPU; 20 us lost half of the small packets under load,
	// since that is less than other threads may keep the CPU for.
	spinWindow = 60 * time.Microsecond
	// spinSaves is about what a sleep costs in CPU time, at the worker and at
	// whoever wakes it. A spin that ends with packets costs nothing up to here.
	spinSaves = 20 * time.Microsecond
	// spinShare is the part of all time, one in so many, that the rest may take.
	spinShare = 20
	// spinBurst is the most that is saved for later.
	spinBurst = 20 * spinWindow
	// spinOdds is the most that odds grow to; above half of it a worker spins.
	spinOdds = 3
	// givenWay is what no call of yield takes in which no other thread ran.
	givenWay = 2 * time.Microsecond
	// busyFor is how many packets that come alone end a worker's being busy. One
	// that isn't had rather wait for the next than be woken, which takes longer.
	busyFor = 8
)

// spin decides when a worker spins and when it sleeps. It reads no clock.
type spin struct {
	since  time.Time     // the end of the last batch: the wait's beginning
	given  time.Duration // of this wait, what other threads ran in
	over   bool          // no more spinning in this wait
	odds   [2]int        // that a wait is short, from 0 to spinOdds, after a long wait and after a short one
	short  int           // an index of odds: 1 if the last wait was short
	busy   int           // packets that come alone until the worker isn't busy
	budget time.Duration // what may be spun in vain, earned as time passes
}

// newSpin knows nothing of waits, and begins with a full budget.
func newSpin(now time.Time) spin {
	return spin{since: now, over: true, budget: spinBurst}
}

// moved ends a wait: a batch was found at the time begin and moved by the time
// end.
func (s *spin) moved(begin, end time.Time, found amount) {
	wait := begin.Sub(s.since)
	if !s.over {
		s.budget -= max(wait-s.given-spinSaves, 0)
	}
	s.budget = min(s.budget+end.Sub(s.since)/spinShare, spinBurst)
	s.learn(wait < 2*spinWindow) // spinning might have paid, with the time of a wake-up
	if found > one {
		s.busy = busyFor
	} else {
		s.busy = max(s.busy-1, 0)
	}
	s.since, s.given = end, 0
	s.over = s.odds[s.short] <= spinOdds/2 || s.budget < spinWindow
}

// learn adds a wait to the odds of those that follow one like the last.
func (s *spin) learn(short bool) {
	odds := &s.odds[s.short]
	if short {
		*odds, s.short = min(*odds+1, spinOdds), 1
	} else {
		*odds, s.short = max(*odds-1, 0), 0
	}
}

// on tells whether to spin on.
func (s *spin) on(now time.Time) bool {
	if s.over {
		return false
	}
	wait := now.Sub(s.since)
	if wait < spinWindow {
		return true
	}
	s.stop(wait)
	return false
}

// stop ends the spinning of this wait, which was in vain for as long as no other
// thread ran.
func (s *spin) stop(wait time.Duration) {
	s.over = true
	s.budget -= max(wait-s.given, 0)
}

// yielded takes the time that a yield took, which ended at the time now.
func (s *spin) yielded(now time.Time, took time.Duration) {
	if took <= givenWay {
		return
	}
	s.given += took
	if s.busy > 0 {
		// The CPU is wanted. Whoever waits for it stays on it, even if another
		// one is free; whoever is woken may get that.
		s.stop(now.Sub(s.since))
	}
}

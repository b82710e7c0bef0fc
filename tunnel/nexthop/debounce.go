package nexthop

import "time"

const (
	// quietFor is how long no event may come before the kernel is asked again,
	// and longest how long events may put that off.
	quietFor = 20 * time.Millisecond
	longest  = 100 * time.Millisecond
)

// debounce times what follows events that come in bursts. Its zero value waits
// for the first.
type debounce struct {
	first, last time.Time // events; first is zero if there are none
	rest        time.Time // not before
}

func (d *debounce) event(now time.Time) {
	if d.first.IsZero() {
		d.first = now
	}
	d.last = now
}

// due is when to act; ok is false while there is no reason to.
func (d *debounce) due() (at time.Time, ok bool) {
	if d.first.IsZero() {
		return at, false
	}
	at = d.last.Add(quietFor)
	if most := d.first.Add(longest); at.After(most) {
		at = most
	}
	if at.Before(d.rest) {
		at = d.rest
	}
	return at, true
}

// start begins the action, which the events up to here are the reason for.
func (d *debounce) start() { d.first = time.Time{} }

// done ends an action that began at the given time. The next one waits as long
// as this one took, so that at most half the time goes into it.
func (d *debounce) done(began, now time.Time) { d.rest = now.Add(now.Sub(began)) }

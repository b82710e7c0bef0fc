package nexthop

import (
	"net/netip"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// chunk is how many addresses are decided or asked for, at some 10 us each,
	// before events have their turn again.
	chunk = 256
	// warnEvery bounds how often lost events are logged.
	warnEvery = time.Minute
)

// round is one time of deciding the addresses that events affected.
type round struct {
	running bool
	began   time.Time
	queue   []*address
}

// receive takes the events that have come, neighbours' first.
func (w *Watcher) receive() error {
	w.waker.Reset()
	if w.neighbourhood != nil {
		lost, err := w.neighbourhood.drain(w.neighbourEvent)
		if err != nil {
			return err
		}
		w.missed(lost)
	}
	lost, err := w.events.drain(w.topology)
	w.missed(lost)
	return err
}

// missed has everything asked for anew if events were lost.
func (w *Watcher) missed(lost bool) {
	if !lost {
		return
	}
	w.lost = true
	w.affectAll()
	w.losses++
	if now := time.Now(); now.Sub(w.warned) >= warnEvery {
		w.warned = now
		w.log.Warn("events of the kernel were lost, asking for everything", "times", w.losses)
	}
}

// work does a part of what is to be done, short enough that events don't wait.
func (w *Watcher) work(now time.Time) {
	w.admit()
	if !w.repeat.IsZero() && !now.Before(w.repeat) {
		w.repeat = time.Time{}
		w.affectAll()
	}
	if at, ok := w.debounce.due(); ok && !now.Before(at) && !w.round.running {
		w.beginRound(now)
	}
	left := w.decideSome(&w.fresh, chunk)
	w.decideSome(&w.round.queue, left)
	if w.ticks() && !now.Before(w.nextTick) {
		w.tick(now)
	}
	for _, a := range dequeue(&w.asking, chunk) {
		w.request(a, now)
	}
	w.report(now)
	if w.round.running && len(w.round.queue) == 0 {
		w.endRound()
	}
}

// admit takes over what Track and Replace were told.
func (w *Watcher) admit() {
	w.mu.Lock()
	pending := w.pending
	w.pending = nil
	var in []netip.Addr
	for _, addr := range pending {
		if _, wanted := w.wanted[addr]; wanted {
			in = append(in, addr)
		}
	}
	w.mu.Unlock()
	for _, addr := range pending {
		if a := w.addresses.remove(addr); a != nil {
			delete(w.onLink, a)
		}
	}
	for _, addr := range in {
		if w.addresses.byAddr[addr] == nil {
			w.fresh = append(w.fresh, w.addresses.add(addr))
		}
	}
}

// beginRound takes the addresses that events affected. If events were lost it
// first asks for all that they would have told; failing that, it is put off.
func (w *Watcher) beginRound(now time.Time) {
	w.debounce.start()
	if w.lost {
		if err := w.resync(); err != nil {
			w.log.Error("ask the kernel for everything", "error", err)
			w.again()
			return
		}
		w.lost = false
	}
	queue := w.marked
	for _, a := range w.marked {
		a.marked = false
	}
	if w.all {
		queue = w.addresses.sorted()
	}
	w.marked, w.all = nil, false
	w.round = round{running: true, began: now, queue: queue}
}

func (w *Watcher) endRound() {
	w.debounce.done(w.round.began, time.Now())
	w.round = round{}
	if w.config.Routes != nil {
		w.config.Routes()
	}
}

// decideSome decides at most so many addresses of the queue and returns how many
// more may be.
func (w *Watcher) decideSome(queue *[]*address, most int) (left int) {
	some := dequeue(queue, most)
	for _, a := range some {
		if !a.gone {
			w.decide(a)
		}
	}
	return most - len(some)
}

// dequeue removes at most so many addresses from the front of the queue.
func dequeue(queue *[]*address, most int) []*address {
	n := min(most, len(*queue))
	some := (*queue)[:n]
	*queue = (*queue)[n:]
	if len(*queue) == 0 {
		*queue = nil
	}
	return some
}

// decide asks for the way to an address, and for its MAC if it comes to be
// on-link.
func (w *Watcher) decide(a *address) {
	path := w.path(a.addr)
	if a.decided && path == a.path {
		return
	}
	before := a.path
	a.path, a.decided = path, true
	w.touch(a)
	if !path.OnLink {
		delete(w.onLink, a)
		return
	}
	w.onLink[a] = struct{}{}
	if w.config.Neighbours && (!before.OnLink || before.Index != path.Index) {
		a.ask, a.wait = time.Time{}, 0
		w.asking = append(w.asking, a)
	}
}

// touch has an address compared with what was told of it.
func (w *Watcher) touch(a *address) {
	if !a.touched {
		a.touched = true
		w.touched = append(w.touched, a)
	}
}

// report tells what became of the addresses that were touched.
func (w *Watcher) report(now time.Time) {
	if len(w.touched) == 0 {
		return
	}
	changes := w.publish(now)
	if len(changes) > 0 && w.config.Changed != nil {
		w.config.Changed(changes)
	}
}

func (w *Watcher) publish(now time.Time) (changes []Change) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, a := range w.touched {
		a.touched = false
		hop := w.hop(a)
		if _, wanted := w.wanted[a.addr]; !wanted || a.gone || a.told && hop == a.hop {
			continue
		}
		w.resolution(a, a.hop, hop, now)
		a.hop, a.told = hop, true
		w.hops[a.addr] = hop
		changes = append(changes, Change{Addr: a.addr, Hop: hop})
	}
	w.touched = w.touched[:0]
	return changes
}

// hop is an address's way with its neighbour entry.
func (w *Watcher) hop(a *address) Hop {
	if !w.config.Neighbours {
		return a.path
	}
	return w.neighbours[a.neighbourKey()].on(a.path)
}

// ticks says that there is something to look at every second.
func (w *Watcher) ticks() bool { return w.config.Neighbours && len(w.onLink) > 0 }

// sleep waits for events, requests and the next thing to do.
func (w *Watcher) sleep() error {
	fds := []unix.PollFd{{Fd: int32(w.waker.FD), Events: unix.POLLIN}, {Fd: int32(w.events.fd), Events: unix.POLLIN}}
	if w.neighbourhood != nil {
		fds = append(fds, unix.PollFd{Fd: int32(w.neighbourhood.fd), Events: unix.POLLIN})
	}
	return pollFor(fds, w.idle(time.Now()))
}

// idle is how long there is nothing to do without events.
func (w *Watcher) idle(now time.Time) time.Duration {
	if len(w.fresh) > 0 || w.round.running || len(w.asking) > 0 {
		return 0
	}
	var next time.Time
	earlier := func(at time.Time) {
		if next.IsZero() || at.Before(next) {
			next = at
		}
	}
	if at, ok := w.debounce.due(); ok {
		earlier(at)
	}
	if w.ticks() {
		earlier(w.nextTick)
	}
	if !w.repeat.IsZero() {
		earlier(w.repeat)
	}
	if next.IsZero() {
		return forever
	}
	return max(0, next.Sub(now))
}

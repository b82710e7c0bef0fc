package nexthop

import (
	"errors"
	"fmt"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

const (
	// second is the time between two looks at what is in use.
	second = time.Second
	// longestWait is the time between two requests for the MAC of an address
	// that isn't used.
	longestWait = 30 * time.Second
	// idleAsks is how many addresses that aren't used are asked for in a
	// second. The kernel's table holds 1024 entries by default, all hosts'.
	idleAsks = 128
)

// neighbourEvent takes over an entry's change.
func (w *Watcher) neighbourEvent(m syscall.NetlinkMessage) error {
	if m.Header.Type != unix.RTM_NEWNEIGH && m.Header.Type != unix.RTM_DELNEIGH {
		return nil
	}
	if len(m.Data) < unix.SizeofNdMsg {
		return errShort
	}
	entry, err := netlink.NeighDeserialize(m.Data)
	if err != nil {
		return fmt.Errorf("parse neighbour: %w", err)
	}
	key, n, ok := parseNeighbour(entry)
	if !ok {
		return nil
	}
	if m.Header.Type == unix.RTM_DELNEIGH {
		delete(w.neighbours, key)
	} else {
		w.neighbours[key] = n
	}
	if a := w.addresses.byAddr[key.addr]; a != nil && a.path.OnLink && a.path.Index == key.index {
		w.touch(a)
	}
	return nil
}

// tick looks, once a second, which on-link addresses are used and which of them
// the kernel must be asked for.
func (w *Watcher) tick(now time.Time) {
	w.nextTick = now.Add(second)
	w.idleLeft = idleAsks
	for a := range w.onLink {
		a.used = w.config.InUse != nil && w.config.InUse(a.addr)
		if w.wants(a, now) {
			w.asking = append(w.asking, a)
		}
	}
}

// wants says that the kernel should do something about an address: find its MAC,
// or make sure of a stale one while it is used.
func (w *Watcher) wants(a *address, now time.Time) bool {
	n := w.neighbours[a.neighbourKey()]
	switch {
	case a.gone || !a.path.OnLink:
		return false
	case n.stale():
		return a.used
	case !n.resolvable():
		return false
	}
	return a.used || !now.Before(a.ask) && w.idleLeft > 0 && !now.Before(w.idleFrom)
}

// request asks the kernel for an address, if that is still wanted.
func (w *Watcher) request(a *address, now time.Time) {
	if !w.wants(a, now) {
		return
	}
	if !a.used {
		w.idleLeft--
	}
	a.wait = min(max(2*a.wait, second), longestWait)
	a.asked, a.ask = now, now.Add(a.wait)
	// NTF_USE does what sending a packet would: it makes an entry if there is
	// none, starts resolving one that has no MAC, and has a stale one confirmed.
	// It takes no MAC from us. NeighAppend is the call that neither insists on a
	// new entry nor replaces one.
	err := w.handle.NeighAppend(&netlink.Neigh{LinkIndex: a.path.Index, IP: ipOf(a.addr), Flags: netlink.NTF_USE})
	switch {
	case errors.Is(err, unix.ENOBUFS): // the table is full
		w.idleFrom = now.Add(longestWait)
		fallthrough
	case err != nil:
		w.askFailed(a, err)
	default:
		w.failing = false
	}
}

// resolution follows what became of an address's MAC. An entry that was removed
// while in use is asked for at once rather than at the next tick, but not time
// and again: a full table removes one for another. For the same reason one that
// isn't used may stay away for a while.
func (w *Watcher) resolution(a *address, before, hop Hop, now time.Time) {
	switch {
	case hop.Resolved():
		a.ask, a.wait = now.Add(longestWait), 0
	case before.Resolved() && a.used && now.Sub(a.asked) >= second:
		w.asking = append(w.asking, a)
	}
}

// askFailed logs the first of the requests that fail in a row.
func (w *Watcher) askFailed(a *address, err error) {
	if !w.failing {
		w.log.Warn("the kernel resolves no neighbour", "address", a.addr, "link", a.path.Link, "error", err)
	}
	w.failing = true
}

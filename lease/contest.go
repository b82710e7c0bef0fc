package lease

import (
	"fmt"
	"sync"
	"time"
)

// Bounds of a contest: this many writes by others within this time are no
// accident.
const (
	contestTime   = 5 * time.Minute
	contestWrites = 3
	// contestPause is the longest time that two owners leave the entry alone
	// between their writes.
	contestPause = time.Minute
)

// contest knows how often somebody else has written our entry lately. By it two
// machines with one address, or with one stored record, find each other out:
// each writes the entry again after the other.
type contest struct {
	mu     sync.Mutex  // guards all
	writes []time.Time // of others, within contestTime
	last   Lease       // the entry as another left it
}

// written takes note of another's write. It returns how long to leave the entry
// alone after ours.
func (c *contest) written(now time.Time, by Lease) time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.pruneLocked(now)
	if by.Revision != c.last.Revision { // else ours has failed since
		c.writes, c.last = append(c.writes, now), by
	}
	return min(restorePause<<min(max(len(c.writes)-1, 0), 10), contestPause)
}

func (c *contest) pruneLocked(now time.Time) {
	for len(c.writes) > 0 && now.Sub(c.writes[0]) > contestTime {
		c.writes = c.writes[1:]
	}
}

// words describes a contest that lasts, "" if there is none. stored is what to
// remove on a machine that is a clone. Where subnets are assigned, it is no clone
// that writes.
func (c *contest) words(now time.Time, stored string, assigned bool) string {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.pruneLocked(now)
	if len(c.writes) < contestWrites {
		return ""
	}
	if assigned {
		return fmt.Sprintf("somebody else writes the lease of %s as well: it was rewritten %d times within %s, last for public address %s; does flanneld or another uvxland run on this host?",
			c.last.Subnet, len(c.writes), contestTime, c.last.Attrs.PublicIP)
	}
	return fmt.Sprintf("another host claims subnet %s as well: its lease was rewritten %d times within %s, last for public address %s; "+
		"is one of the two machines a clone? stop uvxland there, remove %s and give the machine an address of its own",
		c.last.Subnet, len(c.writes), contestTime, c.last.Attrs.PublicIP, stored)
}

// conflict says in words that somebody else claims our subnet, "" if nobody does.
func (m *Manager) conflict() string {
	assigner := m.assigner()
	words := m.contest.words(m.opts.Now(), m.storePlace(), assigner != nil)
	if words == "" && assigner != nil {
		words = assigner.Conflict()
	}
	return words
}

// storePlace says where the Store keeps our record, for people to read.
func (m *Manager) storePlace() string {
	if s, ok := m.opts.Store.(fmt.Stringer); ok {
		return s.String()
	}
	return "what it has stored of its lease"
}

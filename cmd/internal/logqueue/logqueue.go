// Package logqueue passes the lines of a log on to a writer that may block, such as
// a pipe whose reader stands still, without ever waiting for it.
package logqueue

import (
	"bytes"
	"io"
	"sync"
	"time"
)

// Capacity is how many bytes of lines wait for the writer. What is beyond is lost
// and counted.
const Capacity = 256 << 10

// LastWords is how long a process that ends should wait in Flush.
const LastWords = time.Second

// Queue is an [io.Writer] that never blocks. Its methods may be called from any
// goroutine.
type Queue struct {
	gap func(lost uint64) []byte // immutable

	mu    sync.Mutex // guards what follows
	lines [][]byte   // oldest first
	bytes int        // of lines
	since uint64     // lines lost since the last one of lines
	lost  uint64     // all that were lost
	idle  chan struct{}
	woken sync.Cond // there are lines, or lost ones
}

// New returns a queue in front of w, which one goroutine writes to as long as the
// process lasts. Where lines are missing it writes what gap says of their number.
func New(w io.Writer, gap func(lost uint64) []byte) *Queue {
	q := &Queue{gap: gap, idle: closed()}
	q.woken.L = &q.mu
	go q.run(w)
	return q
}

func closed() chan struct{} {
	c := make(chan struct{})
	close(c)
	return c
}

// Write queues a copy of line, of one line or more that are lost or written
// together. It never fails.
func (q *Queue) Write(line []byte) (int, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	var gap []byte
	if q.since > 0 {
		gap = q.gap(q.since)
	}
	if q.bytes+len(gap)+len(line) > Capacity {
		q.since++
		q.lost++
	} else {
		if q.since > 0 {
			q.push(gap)
			q.since = 0
		}
		q.push(bytes.Clone(line))
	}
	q.wake()
	return len(line), nil
}

func (q *Queue) push(line []byte) {
	q.lines = append(q.lines, line)
	q.bytes += len(line)
}

// wake has run go on.
func (q *Queue) wake() {
	select {
	case <-q.idle:
		q.idle = make(chan struct{})
		q.woken.Signal()
	default:
	}
}

// run writes. An error is not said, as there is nobody to say it to.
func (q *Queue) run(w io.Writer) {
	for {
		_, _ = w.Write(q.next())
	}
}

// next waits for lines and returns the oldest.
func (q *Queue) next() []byte {
	q.mu.Lock()
	defer q.mu.Unlock()
	for len(q.lines) == 0 {
		if q.since > 0 {
			q.push(q.gap(q.since))
			q.since = 0
			break
		}
		select {
		case <-q.idle:
		default:
			close(q.idle)
		}
		q.woken.Wait()
	}
	line := q.lines[0]
	q.lines[0] = nil
	q.lines = q.lines[1:]
	q.bytes -= len(line)
	return line
}

// Lost is how many lines were lost so far.
func (q *Queue) Lost() uint64 {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.lost
}

// Flush waits until every line that was queued is written, at most for limit, and
// tells whether it is.
func (q *Queue) Flush(limit time.Duration) bool {
	q.mu.Lock()
	idle := q.idle
	q.mu.Unlock()
	late := time.NewTimer(limit)
	defer late.Stop()
	select {
	case <-idle:
		return true
	case <-late.C:
		return false
	}
}

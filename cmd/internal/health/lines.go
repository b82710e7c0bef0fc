package health

import (
	"log/slog"
	"sync"
	"time"

	"uvxlan/cmd/internal/control"
)

const (
	// linesAtOnce is how many peers have a line in the log within linesTime; the
	// others are counted in one line at its end.
	linesAtOnce = 5
	linesTime   = 10 * time.Second
)

// lines names in the log the peers whose health has changed, few at a time: when this
// host's own link is cut, all of them fall silent.
type lines struct {
	log *slog.Logger

	mu    sync.Mutex // guards the rest
	named int
	rest  map[event]int
	timer *time.Timer // ends the time that runs; nil if none does
}

func newLines(log *slog.Logger) *lines { return &lines{log: log, rest: map[event]int{}} }

// tell names a peer. heard is when its last packet came, zero if that isn't known.
func (l *lines) tell(e event, p *peer, heard, now time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.timer == nil {
		l.timer = time.AfterFunc(linesTime, l.sum)
	}
	if l.named == linesAtOnce {
		l.rest[e]++
		return
	}
	l.named++
	attrs := p.name()
	switch e {
	case fellSilent:
		attrs = append(attrs, "asked", p.target.Address, "reason", p.problem)
		if !p.heard.IsZero() {
			attrs = append(attrs, "last_answer", control.Round(now.Sub(p.heard))+" ago")
		}
		if !heard.IsZero() {
			attrs = append(attrs, "last_packet", control.Round(now.Sub(heard))+" ago")
		}
		l.log.Warn("peer doesn't answer", attrs...)
	case answersAgain:
		l.log.Info("peer answers again", append(attrs, "rtt", p.rtt)...)
	case longPacketsLost:
		l.log.Warn("long packets to a peer or back are lost, short ones pass", append(attrs, "bytes", p.fullSize)...)
	case longPacketsPass:
		l.log.Info("long packets pass again", append(attrs, "bytes", p.fullSize)...)
	}
}

// sum ends the time and counts those without a line.
func (l *lines) sum() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.timer == nil {
		return
	}
	if len(l.rest) > 0 {
		l.log.Warn("the health of more peers changed", "silent", l.rest[fellSilent], "answer_again", l.rest[answersAgain],
			"lose_long_packets", l.rest[longPacketsLost], "pass_long_packets_again", l.rest[longPacketsPass])
	}
	l.named, l.timer = 0, nil
	clear(l.rest)
}

func (l *lines) close() {
	l.mu.Lock()
	if l.timer != nil {
		l.timer.Stop()
	}
	l.mu.Unlock()
	l.sum()
}

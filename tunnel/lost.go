package tunnel

import (
	"sync/atomic"

	"uvxlan/tunnel/device"
)

// losses are the packets that the kernel dropped before a worker saw them, since New
// and as of the last look. They never fall.
type losses struct {
	inQueue, atSockets atomic.Uint64

	// One look at a time, and the router's life guards what follows.
	before uint64 // lost in the device's queues until the first look
	known  bool   // whether before is
}

// look asks the kernel. The first answer about the device is what was lost before.
func (l *losses) look(d device.Device, workers []*worker) {
	n, ok := device.Dropped(d)
	switch {
	case !ok:
	case !l.known:
		l.before, l.known = n, true
	default:
		l.inQueue.Store(max(l.inQueue.Load(), n-min(n, l.before)))
	}
	var lost uint64
	for _, w := range workers {
		lost += w.conn.Lost()
	}
	l.atSockets.Store(max(l.atSockets.Load(), lost))
}

func (l *losses) addTo(s *Stats) {
	s.Drops[DropTUNQueue] += l.inQueue.Load()
	s.Drops[DropSocketBuffer] += l.atSockets.Load()
}

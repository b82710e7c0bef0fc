package kube

import (
	"log/slog"
	"sync"
)

// junk warns of Nodes that say that they have a lease and have none that can be read.
type junk struct {
	log *slog.Logger

	mu    sync.Mutex // guards both
	seen  map[string]string
	count uint64
}

// add notes what is wrong with a Node. The same again is no news.
func (j *junk) add(node string, err error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.seen[node] == err.Error() {
		return
	}
	if j.seen == nil {
		j.seen = map[string]string{}
	}
	j.seen[node] = err.Error()
	j.count++
	j.log.Warn("a node's lease can't be read", "node", node, "error", err)
}

// well notes that nothing is wrong with a Node.
func (j *junk) well(node string) {
	j.mu.Lock()
	defer j.mu.Unlock()
	delete(j.seen, node)
}

func (j *junk) total() uint64 {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.count
}

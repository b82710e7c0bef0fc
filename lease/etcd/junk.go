package etcd

import (
	"log/slog"
	"sync"
)

// junkMemory bounds how many entries are remembered as warned about.
const junkMemory = 1024

// junk warns once about each entry that isn't a lease.
type junk struct {
	log *slog.Logger

	mu    sync.Mutex
	count uint64           // guarded by mu, as is seen
	seen  map[string]int64 // key to the revision warned about
}

func (j *junk) add(key string, revision int64, err error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.seen[key] == revision {
		return
	}
	if j.seen == nil || len(j.seen) >= junkMemory {
		j.seen = make(map[string]int64)
	}
	j.seen[key] = revision
	j.count++
	j.log.Warn("ignoring an etcd entry that is not a lease", "key", key, "revision", revision, "error", err)
}

func (j *junk) total() uint64 {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.count
}

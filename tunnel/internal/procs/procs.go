// Package procs knows whether the process has a P, the right to run Go code, for
// others than the workers of its routers. It is the one thing that routers of a
// process share: Ps are the process's.
package procs

import (
	"runtime"
	"sync/atomic"
)

var workers atomic.Int32

// Enter counts a worker in, and Leave out.
func Enter() { workers.Add(1) }

// Leave is described with Enter.
func Leave() { workers.Add(-1) }

// Workers is how many have entered and not left.
func Workers() int { return int(workers.Load()) }

// Limit is GOMAXPROCS, which is read and never set.
func Limit() int { return runtime.GOMAXPROCS(0) }

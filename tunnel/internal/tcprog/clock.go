package tcprog

import (
	"time"

	"golang.org/x/sys/unix"
)

// clock relates the kernel's monotonic clock to the wall's.
type clock struct {
	wall      time.Time
	monotonic int64 // nanoseconds
}

func now() clock { return clock{time.Now(), int64(monotonic())} }

// Monotonic is a moment of the monotonic clock, in nanoseconds, as the programs have it.
func Monotonic(t time.Time) uint64 { return monotonic() - uint64(time.Since(t)) }

// monotonic is the programs' time, in nanoseconds.
func monotonic() uint64 {
	var t unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_MONOTONIC, &t) // can't fail
	return uint64(t.Nano())
}

// at is the wall's time of a moment of the monotonic clock, in nanoseconds.
func (c clock) at(monotonic uint64) time.Time {
	return c.wall.Add(time.Duration(int64(monotonic) - c.monotonic)).Round(0)
}

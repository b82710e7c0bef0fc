package tunnel

import "time"

var epoch = time.Now()

// monotonic is a clock in nanoseconds that never runs backwards and is never 0.
func monotonic() int64 { return int64(time.Since(epoch)) + 1 }

package tunnel

import (
	"time"

	"uvxlan/tunnel/internal/descriptor"

	"golang.org/x/sys/unix"
)

// poll waits until one of fds is ready, however often a signal interrupts it.
func poll(fds []unix.PollFd) error {
	_, err := descriptor.Poll(fds, nil)
	return err
}

// yield lets any other thread of this CPU run, and returns how long that took.
//
// To Go's scheduler it is no system call. It would take the P of a thread that it
// finds in one: its monitor thread would then be woken a thousand times a second,
// and the worker have to find another P whenever it is back. The price is that
// the garbage collector waits for yield's end, as for any thread that the kernel
// lets wait for a CPU.
func yield() time.Duration {
	begin := time.Now()
	_, _, _ = unix.RawSyscall(unix.SYS_SCHED_YIELD, 0, 0, 0)
	return time.Since(begin)
}

package tunnel

import (
	"errors"
	"time"

	"golang.org/x/sys/unix"
)

// poll waits until one of fds is ready, however often a signal interrupts it.
func poll(fds []unix.PollFd) error {
	_, err := pollFor(fds, nil)
	return err
}

// pollFor is poll with a limit, which a signal starts anew; it returns how many
// of fds are ready.
func pollFor(fds []unix.PollFd, most *unix.Timespec) (int, error) {
	for {
		n, err := unix.Ppoll(fds, most, nil)
		if !errors.Is(err, unix.EINTR) {
			return n, err
		}
	}
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

// writable waits until fd takes more, at most for the given time.
func writable(fd int, most time.Duration) bool {
	limit := unix.NsecToTimespec(int64(most))
	n, err := pollFor([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLOUT}}, &limit)
	return err == nil && n > 0
}

package tunnel

import (
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"uvxlan/tunnel/internal/descriptor"
	"uvxlan/tunnel/internal/procs"
)

// doze is for how long after its last packet a worker sleeps without giving up
// its P, the right to run Go code. A blocking system call in the runtime's view
// costs much where packets come now and then: the monitor thread takes the P
// after a while, for which it wakes up some 50 times, and the worker has to find
// another before it can deliver, and to wake the monitor. At 100 packets a second
// that took five times the CPU of the packets themselves.
//
// To the runtime a worker that dozes is one that computes. It gets such threads
// to stop by a signal, for the garbage collector or after 10 ms for somebody who
// waits for a P, and the signal ends the doze. With GODEBUG=asyncpreemptoff=1
// there is none, and the collector may have to wait for the doze's end.
const doze = 20 * time.Millisecond

// readiness tells which of a worker's ends may have packets.
type readiness struct{ underlay, device bool }

// anywhere is what is known without having asked.
var anywhere = readiness{underlay: true, device: true}

// poller waits for a worker's descriptors.
type poller struct {
	fds     []unix.PollFd // the waker's, the sockets' that receive, the device's
	blocked []int         // sockets to wait for until they take more
	procs   int           // GOMAXPROCS
}

// newPoller makes a poller; whoever has it calls close.
func newPoller(waker int, sockets []int, device int) *poller {
	p := &poller{procs: procs.Limit()}
	p.add(waker)
	for _, fd := range sockets {
		p.add(fd)
	}
	p.add(device)
	procs.Enter()
	return p
}

func (p *poller) close() { procs.Leave() }

func (p *poller) add(fd int) {
	p.fds = append(p.fds, unix.PollFd{Fd: int32(fd), Events: unix.POLLIN})
}

// wait sleeps until one of the descriptors is ready, and tells which end may have
// packets. It may return earlier, with nothing ready. idle is for how long there
// has been nothing.
func (p *poller) wait(idle time.Duration) (readiness, error) {
	last := len(p.fds)
	for _, fd := range p.blocked {
		p.fds = append(p.fds, unix.PollFd{Fd: int32(fd), Events: unix.POLLOUT})
	}
	all := p.fds
	p.fds = p.fds[:last]
	if p.dozes(idle) {
		return p.ready(pollRaw(all, doze-idle))
	}
	return p.ready(descriptor.Poll(all, nil))
}

// dozes tells whether to doze after having been idle for a time: only while there are
// more Ps than workers, since those who want one would otherwise wait for the signal.
func (p *poller) dozes(idle time.Duration) bool {
	return idle < doze && procs.Workers() < p.procs
}

// ready tells what a poll that found n descriptors means.
func (p *poller) ready(n int, err error) (at readiness, _ error) {
	if n <= 0 || err != nil {
		return at, err
	}
	last := len(p.fds) - 1
	for _, fd := range p.fds[1:last] {
		at.underlay = at.underlay || fd.Revents != 0
	}
	at.device = p.fds[last].Revents != 0
	return at, nil
}

// pollRaw is [descriptor.Poll] out of the scheduler's sight; see [doze]. It returns 0 as
// soon as a signal interrupts it.
func pollRaw(fds []unix.PollFd, most time.Duration) (int, error) {
	limit := unix.NsecToTimespec(int64(most))
	n, _, errno := unix.RawSyscall6(unix.SYS_PPOLL, uintptr(unsafe.Pointer(unsafe.SliceData(fds))), uintptr(len(fds)),
		uintptr(unsafe.Pointer(&limit)), 0, 0, 0)
	switch errno {
	case 0:
		return int(n), nil
	case unix.EINTR:
		return 0, nil
	}
	return 0, errno
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

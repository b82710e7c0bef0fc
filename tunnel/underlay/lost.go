package underlay

import (
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"
)

// lost counts what receiving sockets had no room for. The kernel's numbers begin with
// each socket, whoever had it then, and have 32 bits: at a million lost datagrams a
// second they wrap in little more than an hour.
type lost struct {
	mu    sync.Mutex // guards the rest
	last  []uint32   // the kernel's numbers
	total uint64
}

// start has count begin at 0.
func (l *lost) start(fds []int) {
	l.last = make([]uint32, len(fds))
	l.count(fds)
	l.total = 0
}

// count is what was lost since start. It takes one short system call a socket.
func (l *lost) count(fds []int) uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	for i, fd := range fds {
		if info, ok := meminfo(fd); ok {
			n := info[memDrops]
			l.total += uint64(n - l.last[i])
			l.last[i] = n
		}
	}
	return l.total
}

// memDrops is the place of SK_MEMINFO_DROPS in what SO_MEMINFO gives
// (linux/sock_diag.h), memValues how many values there are at least.
const memDrops, memValues = 8, 9

// meminfo is a socket's SO_MEMINFO.
func meminfo(fd int) (info [memValues]uint32, ok bool) {
	size := uint32(unsafe.Sizeof(info))
	_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(fd), unix.SOL_SOCKET, unix.SO_MEMINFO,
		uintptr(unsafe.Pointer(&info)), uintptr(unsafe.Pointer(&size)), 0)
	return info, errno == 0
}

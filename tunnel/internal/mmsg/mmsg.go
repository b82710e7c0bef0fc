// Package mmsg sends and receives many messages in one call (sendmmsg(2),
// recvmmsg(2)). No call blocks, whatever has become of O_NONBLOCK: that belongs
// to the open file description, and whoever shares it may clear it.
package mmsg

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// Header is struct mmsghdr of sendmmsg(2) and recvmmsg(2).
type Header struct {
	Hdr unix.Msghdr
	Len uint32
}

// Do runs sendmmsg or recvmmsg over msgs and returns how many were done. It
// fails only if the first wasn't.
func Do(call uintptr, fd int, msgs []Header) (int, error) {
	n, errno := do(call, fd, msgs)
	if errno != 0 {
		return 0, errno
	}
	return n, nil
}

// Send is Do for sendmmsg, whose error is an errno, 0 if there is none.
func Send(fd int, msgs []Header) (int, unix.Errno) { return do(unix.SYS_SENDMMSG, fd, msgs) }

// do needs no more than a raw system call: it never blocks, so the scheduler need
// not hear of it.
func do(call uintptr, fd int, msgs []Header) (int, unix.Errno) {
	for {
		n, _, errno := unix.RawSyscall6(call, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(msgs))),
			uintptr(len(msgs)), unix.MSG_DONTWAIT, 0, 0)
		switch errno {
		case 0:
			return int(n), 0
		case unix.EINTR:
		default:
			return 0, errno
		}
	}
}

// Package mmsg sends and receives many messages in one call (sendmmsg(2),
// recvmmsg(2)).
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

// Do runs sendmmsg or recvmmsg over msgs and returns how many were done. It never
// blocks, so the scheduler need not hear of the call: O_NONBLOCK belongs to the open
// file description, which others may share and change (fcntl(2)), MSG_DONTWAIT to
// the call.
func Do(call uintptr, fd int, msgs []Header) (int, error) {
	for {
		n, _, errno := unix.RawSyscall6(call, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(msgs))),
			uintptr(len(msgs)), unix.MSG_DONTWAIT, 0, 0)
		switch errno {
		case 0:
			return int(n), nil
		case unix.EINTR:
		default:
			return 0, errno
		}
	}
}

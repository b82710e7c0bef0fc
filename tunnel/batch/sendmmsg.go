package batch

import (
	"encoding/binary"
	"unsafe"

	"golang.org/x/sys/unix"
)

// mmsghdr is struct mmsghdr of sendmmsg(2).
type mmsghdr struct {
	hdr unix.Msghdr
	len uint32
}

// sendmmsg returns how many messages were taken; it fails only if the first
// wasn't. The call never blocks, whatever has become of the descriptor's
// O_NONBLOCK, so the scheduler need not hear of it.
func sendmmsg(fd int, msgs []mmsghdr) (int, unix.Errno) {
	for {
		n, _, errno := unix.RawSyscall6(unix.SYS_SENDMMSG, uintptr(fd),
			uintptr(unsafe.Pointer(unsafe.SliceData(msgs))), uintptr(len(msgs)), unix.MSG_DONTWAIT, 0, 0)
		switch errno {
		case 0:
			return int(n), 0
		case unix.EINTR:
		default:
			return 0, errno
		}
	}
}

// pollNow fills in which of fds are ready, without waiting for any.
func pollNow(fds []unix.PollFd) {
	var none unix.Timespec
	_, _, errno := unix.RawSyscall6(unix.SYS_PPOLL, uintptr(unsafe.Pointer(unsafe.SliceData(fds))),
		uintptr(len(fds)), uintptr(unsafe.Pointer(&none)), 0, 0, 0)
	if errno != 0 {
		for i := range fds {
			fds[i].Revents = 0
		}
	}
}

// control is a control message without its data, and room for that.
func control(level, kind int32, size int) []byte {
	b := make([]byte, unix.CmsgSpace(size))
	h := (*unix.Cmsghdr)(unsafe.Pointer(&b[0]))
	h.Level, h.Type = level, kind
	h.SetLen(unix.CmsgLen(size))
	return b
}

// ecnControls are the control messages that set the outer ECN field, by its
// value (RFC 3168, section 5); none for Not-ECT.
func ecnControls(level, kind int32) (c [4][]byte) {
	for ecn := 1; ecn < len(c); ecn++ {
		c[ecn] = control(level, kind, 4)
		binary.NativeEndian.PutUint32(c[ecn][unix.CmsgLen(0):], uint32(ecn))
	}
	return c
}

var (
	// segmentControl makes a message a run, of datagrams of the size that is
	// written into it (UDP_SEGMENT, udp(7)).
	segmentControl = control(unix.IPPROTO_UDP, unix.UDP_SEGMENT, 2)
)

// runControl holds a run's size and the ECN field behind it.
type runControl [48]byte

// set fills in the control messages of a message and returns them.
func (c *runControl) set(m *message, ecn *[4][]byte) []byte {
	if m.count == 1 || m.whole {
		return ecn[m.ecn]
	}
	binary.NativeEndian.PutUint16(c[unix.CmsgLen(0):], m.size)
	return c[:len(segmentControl)+copy(c[len(segmentControl):], ecn[m.ecn])]
}

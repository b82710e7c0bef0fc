package tunnel

import (
	"encoding/binary"
	"unsafe"

	"golang.org/x/sys/unix"
)

// mmsghdr is struct mmsghdr of sendmmsg(2) and recvmmsg(2).
type mmsghdr struct {
	hdr unix.Msghdr
	len uint32
}

// mmsg runs sendmmsg or recvmmsg over msgs and returns how many were done. The
// sockets never block, so the scheduler need not hear of the call.
func mmsg(call uintptr, fd int, msgs []mmsghdr) (int, error) {
	for {
		n, _, errno := unix.RawSyscall6(call, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(msgs))),
			uintptr(len(msgs)), 0, 0, 0)
		switch errno {
		case 0:
			return int(n), nil
		case unix.EINTR:
		default:
			return 0, errno
		}
	}
}

// controlInt is a control message that carries one int, ready to be sent.
func controlInt(level, kind int32, value int) []byte {
	b := make([]byte, unix.CmsgSpace(4))
	h := (*unix.Cmsghdr)(unsafe.Pointer(&b[0]))
	h.Level, h.Type = level, kind
	h.SetLen(unix.CmsgLen(4))
	binary.NativeEndian.PutUint32(b[unix.CmsgLen(0):], uint32(value))
	return b
}

// ecnControls are the control messages that set the outer ECN field, by its
// value (RFC 3168, section 5); none for Not-ECT.
func ecnControls(v6 bool) (c [4][]byte) {
	for ecn := 1; ecn < len(c); ecn++ {
		if v6 {
			c[ecn] = controlInt(unix.IPPROTO_IPV6, unix.IPV6_TCLASS, ecn)
		} else {
			c[ecn] = controlInt(unix.IPPROTO_IP, unix.IP_TOS, ecn)
		}
	}
	return c
}

// receivedECN finds the outer ECN field among a datagram's control messages.
func receivedECN(control []byte) uint8 {
	for len(control) >= unix.SizeofCmsghdr {
		h := (*unix.Cmsghdr)(unsafe.Pointer(&control[0]))
		size := int(h.Len)
		if size < unix.SizeofCmsghdr || size > len(control) {
			return 0
		}
		data := control[unix.SizeofCmsghdr:size]
		switch {
		case h.Level == unix.IPPROTO_IP && h.Type == unix.IP_TOS && len(data) >= 1:
			return data[0] & 3
		case h.Level == unix.IPPROTO_IPV6 && h.Type == unix.IPV6_TCLASS && len(data) >= 4:
			return uint8(binary.NativeEndian.Uint32(data)) & 3
		}
		control = control[min(unix.CmsgSpace(len(data)), len(control)):]
	}
	return 0
}

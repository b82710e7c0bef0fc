package batch

import (
	"encoding/binary"
	"unsafe"

	"golang.org/x/sys/unix"
)

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

package underlay

import (
	"encoding/binary"
	"unsafe"

	"golang.org/x/sys/unix"
)

// controlSegment is the control message that makes a message a run of datagrams
// of size bytes.
func controlSegment(size int) []byte {
	b := control(unix.IPPROTO_UDP, unix.UDP_SEGMENT, 2)
	binary.NativeEndian.PutUint16(b[unix.CmsgLen(0):], uint16(size))
	return b
}

func control(level, kind int32, size int) []byte {
	b := make([]byte, unix.CmsgSpace(size))
	h := (*unix.Cmsghdr)(unsafe.Pointer(&b[0]))
	h.Level, h.Type = level, kind
	h.SetLen(unix.CmsgLen(size))
	return b
}

// ancillary is what the kernel tells beside a received message.
type ancillary struct {
	// ecn is the outer ECN field.
	ecn uint8
	// segment is the size in bytes of each datagram of the message but the last,
	// 0 when the message is one datagram (UDP_GRO, udp(7)).
	segment int
}

// parseControl reads the control messages, which come in any order.
func parseControl(control []byte) (a ancillary) {
	for len(control) >= unix.SizeofCmsghdr {
		h := (*unix.Cmsghdr)(unsafe.Pointer(&control[0]))
		size := int(h.Len)
		if size < unix.SizeofCmsghdr || size > len(control) {
			break
		}
		data := control[unix.SizeofCmsghdr:size]
		switch {
		case h.Level == unix.IPPROTO_IP && h.Type == unix.IP_TOS && len(data) >= 1:
			a.ecn = data[0] & 3
		case h.Level == unix.IPPROTO_IPV6 && h.Type == unix.IPV6_TCLASS && len(data) >= 4:
			a.ecn = uint8(binary.NativeEndian.Uint32(data)) & 3
		case h.Level == unix.IPPROTO_UDP && h.Type == unix.UDP_GRO && len(data) >= 4:
			a.segment = int(binary.NativeEndian.Uint32(data))
		}
		control = control[min(unix.CmsgSpace(len(data)), len(control)):]
	}
	return a
}

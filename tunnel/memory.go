package tunnel

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// hugePage is the size of a transparent huge page on amd64 and arm64.
const hugePage = 2 << 20

// packetMemory returns size bytes for packets, on huge pages if the kernel has
// them to give (madvise(2), MADV_HUGEPAGE): a superpacket crosses 16 ordinary
// pages at each copy, and in a virtual machine every one that the TLB has lost
// is looked up twice over.
func packetMemory(size int) []byte {
	pages := (size + hugePage - 1) / hugePage * hugePage
	b := make([]byte, pages+hugePage)
	skip := int(-uintptr(unsafe.Pointer(unsafe.SliceData(b))) % hugePage)
	b = b[skip:][:pages]
	_ = unix.Madvise(b, unix.MADV_HUGEPAGE) // a matter of speed only
	return b[:size:size]
}

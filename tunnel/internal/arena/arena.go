// Package arena has memory for packets outside of Go's heap: it doesn't count
// when the collector decides how much garbage may gather, is resident only where
// it has been written to, and goes back to the host when it is closed.
package arena

import (
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

// hugePage is the size of a transparent huge page on amd64 and arm64.
const hugePage = 2 << 20

// Arena is private anonymous memory (mmap(2)). It has one owner, who closes it
// once nobody uses the memory, the kernel included: what is read or written
// afterwards is a fault that ends the process. Its methods aren't safe for
// concurrent use.
type Arena struct {
	mapped []byte // all that is mapped
	free   []byte // what Alloc hasn't given out
}

// Map maps an arena of size bytes, which are zero and of which none is resident.
// With huge it lies on huge pages if the kernel has them to give (madvise(2),
// MADV_HUGEPAGE): the TLB misses less, and 2 MiB at a time become resident.
// Without huge it has none even where the kernel gives them unasked.
func Map(size int, huge bool) (*Arena, error) {
	if size <= 0 {
		return nil, fmt.Errorf("map memory for packets: %d bytes: %w", size, unix.EINVAL)
	}
	pages, advice := roundUp(size, unix.Getpagesize()), unix.MADV_NOHUGEPAGE
	length := pages
	if huge {
		pages, advice = roundUp(size, hugePage), unix.MADV_HUGEPAGE
		length = pages + hugePage // some of it lies before the first huge page
	}
	mapped, err := unix.Mmap(-1, 0, length, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return nil, fmt.Errorf("map %d bytes of memory for packets: %w", length, err)
	}
	free := mapped
	if huge {
		free = mapped[int(-address(mapped)%hugePage):]
	}
	_ = unix.Madvise(free[:pages], advice) // a kernel without huge pages refuses it
	return &Arena{mapped: mapped, free: free[:size]}, nil
}

// Alloc gives out n bytes that nobody else is given; nil if so many aren't left.
// They belong to the caller until the arena is closed.
func (a *Arena) Alloc(n int) []byte {
	if n < 0 || n > len(a.free) {
		return nil
	}
	b := a.free[:n:n]
	a.free = a.free[n:]
	return b
}

// Trim gives the whole pages within b, a part of the arena, back to the host.
// They are zero when they are used again (madvise(2), MADV_DONTNEED).
func (a *Arena) Trim(b []byte) error {
	page := uintptr(unix.Getpagesize())
	skip := int(-address(b) % page)
	if skip >= len(b) {
		return nil
	}
	b = b[skip:]
	b = b[:len(b)&^int(page-1)]
	if len(b) == 0 {
		return nil
	}
	if err := unix.Madvise(b, unix.MADV_DONTNEED); err != nil {
		return fmt.Errorf("give %d bytes of packet memory back: %w", len(b), err)
	}
	return nil
}

// Close gives everything back. Closing again does nothing.
func (a *Arena) Close() error {
	mapped := a.mapped
	a.mapped, a.free = nil, nil
	if mapped == nil {
		return nil
	}
	if err := unix.Munmap(mapped); err != nil {
		return fmt.Errorf("unmap memory for packets: %w", err)
	}
	return nil
}

func roundUp(n, unit int) int { return (n + unit - 1) / unit * unit }

func address(b []byte) uintptr { return uintptr(unsafe.Pointer(unsafe.SliceData(b))) }

package arena_test

import (
	"errors"
	"os"
	"strconv"
	"strings"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"uvxlan/tunnel/internal/arena"
)

const page = 4096

func mapped(t *testing.T, size int, huge bool) *arena.Arena {
	t.Helper()
	a, err := arena.Map(size, huge)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := a.Close(); err != nil {
			t.Error(err)
		}
	})
	return a
}

// resident is how many bytes of b are in memory (mincore(2)); b is of whole pages.
func resident(t *testing.T, b []byte) (bytes int) {
	t.Helper()
	size := os.Getpagesize()
	pages := make([]byte, len(b)/size)
	_, _, errno := unix.Syscall(unix.SYS_MINCORE, address(b), uintptr(len(b)), uintptr(unsafe.Pointer(&pages[0])))
	if errno != 0 {
		t.Fatal("mincore:", errno)
	}
	for _, p := range pages {
		bytes += int(p&1) * size
	}
	return bytes
}

func address(b []byte) uintptr { return uintptr(unsafe.Pointer(unsafe.SliceData(b))) }

// mappings counts the process's mappings that hold the address.
func mappings(t *testing.T, at uintptr) (n int) {
	t.Helper()
	maps, err := os.ReadFile("/proc/self/maps")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(maps)) {
		ends, _, _ := strings.Cut(line, " ")
		low, high, _ := strings.Cut(ends, "-")
		first, err1 := strconv.ParseUint(low, 16, 64)
		end, err2 := strconv.ParseUint(high, 16, 64)
		if err := errors.Join(err1, err2); err != nil {
			t.Fatal(err)
		}
		if uint64(at) >= first && uint64(at) < end {
			n++
		}
	}
	return n
}

// Memory is resident where it was written to, and nowhere else.
func TestTakesRoomWhereItIsUsed(t *testing.T) {
	size := 1024 * os.Getpagesize()
	a := mapped(t, size, false)
	b := a.Alloc(size)
	if got := resident(t, b); got != 0 {
		t.Errorf("%d bytes are resident before any is used", got)
	}
	for i := range 10 {
		b[i*7*os.Getpagesize()] = 1
	}
	if got, want := resident(t, b), 10*os.Getpagesize(); got != want {
		t.Errorf("%d bytes are resident, want %d", got, want)
	}
}

// Trim gives whole pages back and leaves what shares a page with others.
func TestTrim(t *testing.T) {
	size := os.Getpagesize()
	a := mapped(t, 8*size, false)
	b := a.Alloc(8 * size)
	for i := range b {
		b[i] = 7
	}
	for _, c := range []struct {
		from, to, kept int
	}{
		{size + 1, 2 * size, 8},
		{size + 1, 3*size - 1, 8},
		{size + 1, 4*size + 1, 6},
		{0, 0, 6},
		{0, 8 * size, 0},
	} {
		if err := a.Trim(b[c.from:c.to]); err != nil {
			t.Fatal(err)
		}
		if got := resident(t, b); got != c.kept*size {
			t.Errorf("after Trim of %d to %d: %d pages are resident, want %d", c.from, c.to, got/size, c.kept)
		}
	}
	if b[5*size] != 0 {
		t.Error("memory that was given back isn't zero")
	}
}

func TestAllocGivesNothingTwice(t *testing.T) {
	a := mapped(t, 3*page, false)
	first, second := a.Alloc(page+1), a.Alloc(page)
	if len(first) != page+1 || cap(first) != page+1 || len(second) != page || cap(second) != page {
		t.Fatalf("gave out %d of %d and %d of %d bytes", len(first), cap(first), len(second), cap(second))
	}
	if address(second) < address(first)+uintptr(len(first)) {
		t.Error("two allocations overlap")
	}
	if a.Alloc(page) != nil || a.Alloc(-1) != nil {
		t.Error("more was given out than there is")
	}
	if len(a.Alloc(page-1)) != page-1 {
		t.Error("the rest isn't given out")
	}
}

func TestHugePagesAreByChoice(t *testing.T) {
	const size = 3 << 20
	huge := mapped(t, size, true).Alloc(size)
	if address(huge)%(2<<20) != 0 {
		t.Errorf("memory for huge pages begins at %#x", address(huge))
	}
	huge[0], huge[size-1] = 1, 1
	small := mapped(t, size, false).Alloc(size)
	small[size/2] = 1
	if _, err := os.Stat("/sys/kernel/mm/transparent_hugepage"); err != nil {
		t.Skip("the kernel has no transparent huge pages")
	}
	// hg and nh are VM_HUGEPAGE and VM_NOHUGEPAGE (Documentation/filesystems/proc.rst).
	for flag, b := range map[string][]byte{"hg": huge, "nh": small} {
		if flags := vmFlags(t, address(b)); !strings.Contains(flags+" ", " "+flag+" ") {
			t.Errorf("a mapping has the flags %q, want %q among them", flags, flag)
		}
	}
}

// vmFlags is what /proc/self/smaps says of the mapping at an address.
func vmFlags(t *testing.T, at uintptr) string {
	t.Helper()
	smaps, err := os.ReadFile("/proc/self/smaps")
	if err != nil {
		t.Fatal(err)
	}
	within := false
	for line := range strings.Lines(string(smaps)) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), " ")
		if low, high, ok := strings.Cut(name, "-"); ok {
			first, err1 := strconv.ParseUint(low, 16, 64)
			end, err2 := strconv.ParseUint(high, 16, 64)
			within = err1 == nil && err2 == nil && uint64(at) >= first && uint64(at) < end
		}
		if within && name == "VmFlags:" {
			return " " + value
		}
	}
	t.Fatalf("no mapping has the address %#x", at)
	return ""
}

func TestCloseUnmaps(t *testing.T) {
	for _, huge := range []bool{false, true} {
		a, err := arena.Map(page, huge)
		if err != nil {
			t.Fatal(err)
		}
		at := address(a.Alloc(1))
		if n := mappings(t, at); n != 1 {
			t.Fatalf("huge %t: %d mappings have the arena's address", huge, n)
		}
		for range 2 {
			if err := a.Close(); err != nil {
				t.Errorf("huge %t: close: %v", huge, err)
			}
		}
		if n := mappings(t, at); n != 0 {
			t.Errorf("huge %t: %d mappings have the address of an arena that is closed", huge, n)
		}
		if a.Alloc(1) != nil {
			t.Errorf("huge %t: a closed arena gives memory out", huge)
		}
	}
}

func TestMapRefuses(t *testing.T) {
	for _, size := range []int{0, -1, 1 << 60} {
		if a, err := arena.Map(size, false); err == nil {
			a.Close()
			t.Errorf("mapped %d bytes", size)
		} else {
			t.Log(err)
		}
	}
}

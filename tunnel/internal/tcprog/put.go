package tcprog

import (
	"errors"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// put writes entries, in one call if the kernel can, and returns how many it wrote.
func put[K, V any](m *ebpf.Map, keys []K, values []V) (n int, err error) {
	return eachRoom(len(keys), refillTime, func(from int) (n int, err error) {
		if n, err := m.BatchUpdate(keys[from:], values[from:], nil); !errors.Is(err, ebpf.ErrNotSupported) {
			return n, err
		}
		for i := range keys[from:] {
			if err := m.Put(&keys[from+i], &values[from+i]); err != nil {
				return i, err
			}
		}
		return len(keys) - from, nil
	})
}

// How long to wait for the kernel's reserve of a map's entries, and how often to look.
const (
	refillTime     = time.Second
	refillInterval = 50 * time.Microsecond
)

// eachRoom calls write for the entries from an index on until n are written. It waits
// for as long as patience between two of them if there is no memory. Maps that aren't allocated beforehand take entries
// from a small reserve of each CPU, which an interrupt refills
// (kernel/bpf/memalloc.c). Whoever writes faster gets ENOMEM with all memory free.
func eachRoom(n int, patience time.Duration, write func(from int) (int, error)) (written int, err error) {
	for late := time.Now().Add(patience); written < n; {
		more, err := write(written)
		written += more
		switch {
		case err == nil:
			continue
		case !errors.Is(err, unix.ENOMEM):
			return written, err
		case more > 0:
			late = time.Now().Add(patience)
		case time.Now().After(late):
			return written, err
		}
		time.Sleep(refillInterval)
	}
	return written, nil
}

// Package footprint keeps what a process has resident near to what it uses.
package footprint

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime/debug"
	"runtime/metrics"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// interval is between two looks: less than it takes an idle daemon to allocate
	// as much as starts a collection. The first looks follow each other sooner, the
	// second after firstInterval: what a start has used is left over soon after it.
	interval      = 20 * time.Second
	firstInterval = time.Second
	// slack is what may become resident before it is worth a collection, which
	// costs some milliseconds of a CPU while no more than largeHeap is live. In a
	// larger heap that share is small.
	slack     = 1 << 20
	largeHeap = 32 << 20
)

// Keep trims the process, and again whenever it has grown, until ctx ends or that
// isn't possible.
func Keep(ctx context.Context) error {
	wait := firstInterval
	for trimmed := 0; ; wait = min(2*wait, interval) {
		now, err := resident()
		if err == nil && now > trimmed+slack && liveHeap() <= largeHeap {
			if err = Trim(); err == nil {
				trimmed, err = resident()
			}
		}
		if err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(wait):
		}
	}
}

// resident is how many bytes the process has resident (proc_pid_statm(5)).
func resident() (int, error) {
	text, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		return 0, err
	}
	fields := strings.Fields(string(text))
	if len(fields) < 2 {
		return 0, fmt.Errorf("read /proc/self/statm: %q", text)
	}
	pages, err := strconv.Atoi(fields[1])
	if err != nil {
		return 0, fmt.Errorf("read /proc/self/statm: %w", err)
	}
	return pages * os.Getpagesize(), nil
}

// liveHeap is how many bytes the last collection left.
func liveHeap() uint64 {
	sample := []metrics.Sample{{Name: "/gc/heap/live:bytes"}}
	metrics.Read(sample)
	if sample[0].Value.Kind() != metrics.KindUint64 {
		return 0
	}
	return sample[0].Value.Uint64()
}

// Trim gives back what isn't in use: the heap's garbage, and the executable's
// pages, most of which only the initialization of its packages or a collection has
// touched, or lie near such. They stay in the page cache; those that are used again
// are mapped again by minor faults.
func Trim() error {
	debug.FreeOSMemory()
	if err := trimExecutable(); err != nil {
		return fmt.Errorf("give back pages of the executable: %w", err)
	}
	return nil
}

func trimExecutable() error {
	name, err := os.Readlink("/proc/self/exe")
	if err != nil {
		return err
	}
	smaps, err := os.Open("/proc/self/smaps")
	if err != nil {
		return err
	}
	defer smaps.Close()
	mappings, err := unchanged(smaps, name)
	for _, m := range mappings {
		_, _, errno := unix.Syscall(unix.SYS_MADVISE, m.start, m.end-m.start, unix.MADV_DONTNEED)
		if errno != 0 {
			err = errors.Join(err, os.NewSyscallError("madvise", errno))
		}
	}
	return err
}

// mapping is a range of addresses.
type mapping struct{ start, end uintptr }

// unchanged lists the mappings of a file that can't be written to and that have no
// page but the file's: relocated or traced code has others, which must stay.
// smaps is as proc_pid_smaps(5) has it.
func unchanged(smaps io.Reader, name string) (all []mapping, err error) {
	var m mapping
	candidate := false
	lines := bufio.NewScanner(smaps)
	for lines.Scan() {
		fields := strings.Fields(lines.Text())
		switch {
		case len(fields) >= 5 && strings.Contains(fields[0], "-"):
			// address perms offset device inode, and the name, which may have blanks
			_, path, _ := strings.Cut(lines.Text(), fields[4]+" ")
			candidate = strings.TrimSpace(path) == name && !strings.Contains(fields[1], "w")
			if m, err = parseRange(fields[0]); err != nil {
				return nil, err
			}
		case candidate && len(fields) >= 2 && fields[0] == "Anonymous:" && fields[1] == "0":
			all = append(all, m)
		}
	}
	return all, lines.Err()
}

func parseRange(s string) (mapping, error) {
	low, high, _ := strings.Cut(s, "-")
	start, err1 := strconv.ParseUint(low, 16, strconv.IntSize)
	end, err2 := strconv.ParseUint(high, 16, strconv.IntSize)
	return mapping{uintptr(start), uintptr(end)}, errors.Join(err1, err2)
}

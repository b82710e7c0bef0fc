// Package footprint keeps what a process has resident near to what it uses.
package footprint

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime/debug"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Trim gives back what the program's start needed and its work doesn't: the free
// part of the heap, and the executable's pages, most of which are there for the
// packages' initialization. They stay in the page cache; those that are used again
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

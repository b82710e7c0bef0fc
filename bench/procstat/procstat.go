// Package procstat reads what the machine and its processes used, from /proc.
package procstat

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"
)

// tick is the unit of the kernel's CPU accounting in /proc, USER_HZ, which is
// 100 on every architecture that Go knows.
const tick = 10 * time.Millisecond

// ErrFormat says that a file of /proc isn't as its manual page says.
var ErrFormat = errors.New("unknown format")

// CPU is the time of all CPUs together since the machine's start.
type CPU struct {
	// Busy is user, nice, system, irq and softirq.
	Busy time.Duration
	// Steal is what a virtual machine's CPUs waited for the host's other guests.
	Steal time.Duration
	// Idle is the time without work, in which disks may have been waited for. Where
	// idle CPUs have no ticks (NO_HZ) the kernel measures it, while Busy is what ran
	// when it looked: work that comes as regularly as the ticks may escape that.
	Idle time.Duration
	// All is the sum.
	All time.Duration
	// CPUs is how many there are.
	CPUs int
}

// Since is the time between two readings.
func (c CPU) Since(before CPU) CPU {
	return CPU{Busy: c.Busy - before.Busy, Steal: c.Steal - before.Steal, Idle: c.Idle - before.Idle, All: c.All - before.All, CPUs: c.CPUs}
}

// Percent is a part of the time that the CPUs had, in per cent, 0 of none.
func (c CPU) Percent(part time.Duration) float64 {
	if c.All <= 0 {
		return 0
	}
	return 100 * float64(part) / float64(c.All)
}

// ReadCPU reads /proc/stat.
func ReadCPU() (CPU, error) {
	text, err := os.ReadFile("/proc/stat")
	if err != nil {
		return CPU{}, fmt.Errorf("read CPU time: %w", err)
	}
	c, err := parseCPU(text)
	if err != nil {
		return c, fmt.Errorf("read CPU time: %w", err)
	}
	return c, nil
}

// Watch returns what the CPUs did during a time that begins with the call, or until
// ctx ends.
func Watch(ctx context.Context, d time.Duration) (CPU, error) {
	before, err := ReadCPU()
	if err != nil {
		return CPU{}, err
	}
	select {
	case <-time.After(d):
	case <-ctx.Done():
		return CPU{}, ctx.Err()
	}
	after, err := ReadCPU()
	return after.Since(before), err
}

// Used is what all CPUs did in a time that is measured otherwise.
func (c CPU) Used(took time.Duration) time.Duration {
	return max(time.Duration(c.CPUs)*took-c.Idle-c.Steal, 0)
}

// parseCPU reads the first line of /proc/stat (proc_stat(5)) and counts the CPUs'. Guests' time is in
// user and nice already.
func parseCPU(stat []byte) (c CPU, err error) {
	line, rest, _ := bytes.Cut(stat, []byte("\n"))
	fields := strings.Fields(string(line))
	if len(fields) < 9 || fields[0] != "cpu" {
		return c, ErrFormat
	}
	var t [8]time.Duration // user, nice, system, idle, iowait, irq, softirq, steal
	for i := range t {
		if t[i], err = ticks(fields[1+i]); err != nil {
			return CPU{}, err
		}
		c.All += t[i]
	}
	c.Steal, c.Idle = t[7], t[3]+t[4]
	c.Busy = c.All - c.Steal - c.Idle
	for line := range bytes.Lines(rest) {
		if bytes.HasPrefix(line, []byte("cpu")) {
			c.CPUs++
		}
	}
	return c, nil
}

// ReadProcess returns the CPU time that a process has used.
func ReadProcess(pid int) (time.Duration, error) {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, fmt.Errorf("read CPU time: %w", err)
	}
	used, err := parseProcess(stat)
	if err != nil {
		return 0, fmt.Errorf("read CPU time of process %d: %w", pid, err)
	}
	return used, nil
}

// parseProcess returns utime and stime of /proc/pid/stat (proc_pid_stat(5)), whose
// second field is a name in parentheses that may contain anything.
func parseProcess(stat []byte) (time.Duration, error) {
	end := bytes.LastIndexByte(stat, ')')
	fields := strings.Fields(string(stat[end+1:]))
	if end < 0 || len(fields) < 13 {
		return 0, ErrFormat
	}
	user, err := ticks(fields[11])
	if err != nil {
		return 0, err
	}
	system, err := ticks(fields[12])
	return user + system, err
}

func ticks(field string) (time.Duration, error) {
	n, err := strconv.ParseInt(field, 10, 64)
	if err != nil {
		return 0, ErrFormat
	}
	return time.Duration(n) * tick, nil
}

// ReadLoad returns the load average over the last minute, from /proc/loadavg.
func ReadLoad() (float64, error) {
	text, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return 0, fmt.Errorf("read load average: %w", err)
	}
	first, _, _ := strings.Cut(string(text), " ")
	load, err := strconv.ParseFloat(first, 64)
	if err != nil {
		return 0, fmt.Errorf("read load average: %w", ErrFormat)
	}
	return load, nil
}

// Memory is what of a process is in the machine's memory, in bytes.
type Memory struct {
	// Resident is all of it, pages that others map as well included.
	Resident int64
	// Anonymous is the part that no file is behind.
	Anonymous int64
	// Huge is the part of Anonymous that is in huge pages.
	Huge int64
}

// ReadMemory reads a process's smaps_rollup, which counts page by page; the sums in
// its status file lag behind, by up to 64 pages a thread.
func ReadMemory(pid int) (Memory, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
	if err != nil {
		return Memory{}, fmt.Errorf("read memory: %w", err)
	}
	m, err := parseMemory(text)
	if err != nil {
		return m, fmt.Errorf("read memory of process %d: %w", pid, err)
	}
	return m, nil
}

// parseMemory reads proc_pid_smaps(5)'s fields, which are in kB, that is KiB.
func parseMemory(text []byte) (m Memory, err error) {
	wanted := map[string]*int64{"Rss:": &m.Resident, "Anonymous:": &m.Anonymous, "AnonHugePages:": &m.Huge}
	for line := range strings.Lines(string(text)) {
		fields := strings.Fields(line)
		if len(fields) != 3 || wanted[fields[0]] == nil {
			continue
		}
		n, err := strconv.ParseInt(fields[1], 10, 64)
		if err != nil || fields[2] != "kB" {
			return Memory{}, ErrFormat
		}
		*wanted[fields[0]] = n << 10
		delete(wanted, fields[0])
	}
	if len(wanted) > 0 {
		return Memory{}, ErrFormat
	}
	return m, nil
}

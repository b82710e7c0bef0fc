package scenario

import (
	"bytes"
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

// usage is CPU time.
type usage struct {
	// all is that of the whole machine: much of what packets cost is spent in
	// interrupts, which belong to no process.
	all time.Duration
	// processes is that of the data path's own processes.
	processes time.Duration
}

func (u usage) since(before usage) usage {
	return usage{u.all - before.all, u.processes - before.processes}
}

// measure reads the CPU time used until now.
func measure(pids []int) (u usage, err error) {
	stat, err := os.ReadFile("/proc/stat")
	if err != nil {
		return u, fmt.Errorf("read CPU time: %w", err)
	}
	if u.all, err = busy(stat); err != nil {
		return u, fmt.Errorf("read CPU time: %w", err)
	}
	for _, pid := range pids {
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil {
			return u, fmt.Errorf("read CPU time: %w", err)
		}
		used, err := own(stat)
		if err != nil {
			return u, fmt.Errorf("read CPU time of process %d: %w", pid, err)
		}
		u.processes += used
	}
	return u, nil
}

var errFormat = errors.New("unknown format")

// busy is the time in which the CPUs weren't idle, from /proc/stat: user, nice,
// system, irq and softirq (proc_stat(5)).
func busy(stat []byte) (time.Duration, error) {
	line, _, _ := bytes.Cut(stat, []byte("\n"))
	fields := strings.Fields(string(line))
	if len(fields) < 8 || fields[0] != "cpu" {
		return 0, errFormat
	}
	return ticks(fields[1], fields[2], fields[3], fields[6], fields[7])
}

// own is utime and stime of /proc/pid/stat (proc_pid_stat(5)), whose second
// field is a name in parentheses that may contain anything.
func own(stat []byte) (time.Duration, error) {
	end := bytes.LastIndexByte(stat, ')')
	fields := strings.Fields(string(stat[end+1:]))
	if end < 0 || len(fields) < 13 {
		return 0, errFormat
	}
	return ticks(fields[11], fields[12])
}

func ticks(fields ...string) (sum time.Duration, err error) {
	for _, f := range fields {
		n, err := strconv.ParseInt(f, 10, 64)
		if err != nil {
			return 0, errFormat
		}
		sum += time.Duration(n) * tick
	}
	return sum, nil
}

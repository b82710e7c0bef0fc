// Package cpuquota tells how much CPU time the process's control group may use.
package cpuquota

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"
)

// Read returns the CPUs' worth of time that the process may use: the least of
// its control group's quota and those of the groups above that can be seen, of
// cgroup v2 (cpu.max, Documentation/admin-guide/cgroup-v2.rst) or v1
// (cpu.cfs_quota_us, Documentation/scheduler/sched-bwc.rst). It is +Inf if there
// is no quota.
func Read() (float64, error) {
	cpus, err := read(os.DirFS("/"))
	if err != nil {
		return math.Inf(1), fmt.Errorf("read the CPU quota: %w", err)
	}
	return cpus, nil
}

// read is Read below a root.
func read(root fs.FS) (float64, error) {
	g, err := find(root)
	if err != nil || g == nil {
		return math.Inf(1), err
	}
	least := math.Inf(1)
	for dir := path.Join(g.mount, g.below); ; dir = path.Dir(dir) {
		cpus, err := g.quota(root, dir)
		if err != nil {
			return math.Inf(1), err
		}
		least = min(least, cpus)
		if dir == g.mount {
			return least, nil
		}
	}
}

// group is a control group with a CPU controller, in a hierarchy that is mounted.
type group struct {
	mount string // relative to the root
	below string // the group's directory under mount
	quota func(root fs.FS, dir string) (float64, error)
}

// find returns the process's group; nil if there is none.
func find(root fs.FS) (*group, error) {
	membership, err := lines(root, "proc/self/cgroup")
	if err != nil || membership == nil {
		return nil, err
	}
	mounts, err := lines(root, "proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	var unified *group
	for _, line := range membership { // hierarchy:controllers:path, cgroups(7)
		fields := strings.SplitN(line, ":", 3)
		switch {
		case len(fields) != 3:
		case slices.Contains(strings.Split(fields[1], ","), "cpu"):
			return located(mounts, "cgroup", fields[2], quotaV1), nil
		case fields[0] == "0" && fields[1] == "":
			unified = located(mounts, "cgroup2", fields[2], quotaV2)
		}
	}
	return unified, nil
}

// located looks for the mount that shows the group of a path; nil if there is
// none.
func located(mounts []string, kind, at string, quota func(fs.FS, string) (float64, error)) *group {
	for _, line := range mounts {
		mount, is := parseMount(line)
		if !is || mount.kind != kind || kind == "cgroup" && !slices.Contains(mount.options, "cpu") {
			continue
		}
		if below, ok := under(at, mount.root); ok {
			return &group{mount: path.Join(".", mount.point), below: below, quota: quota}
		}
	}
	return nil
}

// under is a path relative to a directory that it is in.
func under(at, dir string) (string, bool) {
	if slices.Contains(strings.Split(at, "/"), "..") { // outside of the cgroup namespace
		return "", false
	}
	rest, ok := strings.CutPrefix(at, strings.TrimSuffix(dir, "/"))
	return rest, ok && (rest == "" || rest[0] == '/')
}

// mount is a line of mountinfo, proc_pid_mountinfo(5).
type mount struct {
	root, point, kind string
	options           []string // of the file system
}

func parseMount(line string) (m mount, ok bool) {
	own, system, ok := strings.Cut(line, " - ")
	left, right := strings.Fields(own), strings.Fields(system)
	if !ok || len(left) < 6 || len(right) < 3 {
		return mount{}, false
	}
	return mount{
		root: unescape(left[3]), point: unescape(left[4]), kind: right[0], options: strings.Split(right[2], ","),
	}, true
}

// unescape undoes the octal escapes of mountinfo.
func unescape(s string) string {
	return strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(s)
}

// quotaV2 reads cpu.max: a quota, or "max", and a period, in microseconds.
func quotaV2(root fs.FS, dir string) (float64, error) {
	fields, err := words(root, path.Join(dir, "cpu.max"))
	if err != nil || len(fields) < 2 || fields[0] == "max" {
		return math.Inf(1), err
	}
	return share(fields[0], fields[1])
}

// quotaV1 reads a quota, which is negative if there is none, and its period.
func quotaV1(root fs.FS, dir string) (float64, error) {
	quota, err1 := words(root, path.Join(dir, "cpu.cfs_quota_us"))
	period, err2 := words(root, path.Join(dir, "cpu.cfs_period_us"))
	if err := errors.Join(err1, err2); err != nil || len(quota) == 0 || len(period) == 0 {
		return math.Inf(1), err
	}
	return share(quota[0], period[0])
}

func share(quota, period string) (float64, error) {
	q, err1 := strconv.ParseFloat(quota, 64)
	p, err2 := strconv.ParseFloat(period, 64)
	if err := errors.Join(err1, err2); err != nil {
		return math.Inf(1), err
	}
	if q <= 0 || p <= 0 {
		return math.Inf(1), nil
	}
	return q / p, nil
}

// words splits a file at blanks; it has none if it isn't there.
func words(root fs.FS, name string) ([]string, error) {
	text, err := content(root, name)
	return strings.Fields(string(text)), err
}

func lines(root fs.FS, name string) (all []string, err error) {
	text, err := content(root, name)
	for s := bufio.NewScanner(bytes.NewReader(text)); s.Scan(); {
		all = append(all, s.Text())
	}
	return all, err
}

// content is what a file has; nothing if it isn't there.
func content(root fs.FS, name string) ([]byte, error) {
	text, err := fs.ReadFile(root, name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return text, err
}

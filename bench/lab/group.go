package lab

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// ControlGroup is where container runtimes put the containers that they run on a
// lab's hosts: /sys/fs/cgroup/uvxlan-lab, or that of each hierarchy. Containers
// have namespaces that the lab doesn't know; by their group it ends them.
const ControlGroup = "uvxlan-lab"

// removeGroup kills the processes of the lab's control group and of all below
// it, and removes them.
func removeGroup(ctx context.Context) error {
	mounts, err := Hierarchies()
	if err != nil {
		return fmt.Errorf("remove control group: %w", err)
	}
	var errs []error
	for _, mount := range mounts {
		if err := removeTree(ctx, filepath.Join(mount, ControlGroup)); err != nil {
			errs = append(errs, fmt.Errorf("remove control group: %w", err))
		}
	}
	return errors.Join(errs...)
}

// Hierarchies are the paths where control groups are mounted: several on a machine
// that has version 1 of them.
func Hierarchies() ([]string, error) {
	text, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		return nil, err
	}
	var mounts []string
	for line := range strings.Lines(string(text)) {
		if fields := strings.Fields(line); len(fields) > 2 && (fields[2] == "cgroup" || fields[2] == "cgroup2") {
			mounts = append(mounts, fields[1])
		}
	}
	return mounts, nil
}

// removeTree empties and removes one group's directory. A process that was
// killed stays in it for a moment.
func removeTree(ctx context.Context, path string) error {
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		err := tryRemoveTree(path)
		if err == nil || !errors.Is(err, unix.EBUSY) {
			return err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return err
		}
	}
}

func tryRemoveTree(path string) error {
	var dirs []string
	err := filepath.WalkDir(path, func(dir string, d fs.DirEntry, err error) error {
		if err != nil || !d.IsDir() {
			return ignoreGone(err)
		}
		dirs = append(dirs, dir)
		return killGroup(dir)
	})
	for _, dir := range slices.Backward(dirs) {
		err = errors.Join(err, ignoreGone(unix.Rmdir(dir)))
	}
	return err
}

// killGroup kills the processes that are in the group itself.
func killGroup(dir string) error {
	text, err := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
	for word := range strings.FieldsSeq(string(text)) {
		if pid, err := strconv.Atoi(word); err == nil && pid > 0 {
			_ = unix.Kill(pid, unix.SIGKILL)
		}
	}
	return ignoreGone(err)
}

func ignoreGone(err error) error {
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENODEV) {
		return nil
	}
	return err
}

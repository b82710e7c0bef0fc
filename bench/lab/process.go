package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// nsID identifies a namespace for as long as it exists.
type nsID struct{ dev, ino uint64 }

func namespaceID(path string) (nsID, error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return nsID{}, &os.PathError{Op: "stat", Path: path, Err: err}
	}
	return nsID{st.Dev, st.Ino}, nil
}

// processID is the namespace of a process, none if it has ended.
func processID(pid int) nsID {
	id, err := namespaceID(filepath.Join("/proc", strconv.Itoa(pid), "ns/net"))
	if err != nil {
		return nsID{}
	}
	return id
}

// processesIn lists the processes in the namespaces, without the calling one.
func processesIn(namespaces map[nsID]bool) ([]int, error) {
	proc, err := os.Open("/proc")
	if err != nil {
		return nil, err
	}
	defer proc.Close()
	names, err := proc.Readdirnames(-1)
	if err != nil {
		return nil, fmt.Errorf("list processes: %w", err)
	}
	var pids []int
	for _, name := range names {
		pid, err := strconv.Atoi(name)
		if err == nil && pid != os.Getpid() && namespaces[processID(pid)] {
			pids = append(pids, pid)
		}
	}
	return pids, nil
}

// killProcesses kills every process in the namespaces, those that they make
// meanwhile included, and returns when none is left.
func killProcesses(ctx context.Context, namespaces map[nsID]bool) error {
	for {
		pids, err := processesIn(namespaces)
		if err != nil || len(pids) == 0 {
			return err
		}
		var errs []error
		for _, pid := range pids {
			errs = append(errs, killProcess(ctx, pid, namespaces))
		}
		if err := errors.Join(errs...); err != nil {
			return err
		}
	}
}

// killProcess kills one process and waits until it has ended.
func killProcess(ctx context.Context, pid int, namespaces map[nsID]bool) error {
	fd, err := unix.PidfdOpen(pid, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("open process %d: %w", pid, err)
	}
	defer func() { _ = unix.Close(fd) }()
	// The descriptor holds on to a process; make sure that it is the one meant.
	if !namespaces[processID(pid)] {
		return nil
	}
	err = unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0)
	if err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("kill process %d: %w", pid, err)
	}
	if err := awaitExit(ctx, fd); err != nil {
		return fmt.Errorf("wait for killed process %d: %w", pid, err)
	}
	return nil
}

// awaitExit waits until the process behind the descriptor has ended.
func awaitExit(ctx context.Context, pidfd int) error {
	const slice = 100 * time.Millisecond // how often ctx is looked at
	fds := []unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}
	for {
		n, err := unix.Poll(fds, int(slice.Milliseconds()))
		if err != nil && !errors.Is(err, unix.EINTR) {
			return os.NewSyscallError("poll", err)
		}
		if n > 0 {
			return nil
		}
		if err := ctx.Err(); err != nil {
			return err
		}
	}
}

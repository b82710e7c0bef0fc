package handover

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/coreos/go-systemd/v22/dbus"
	"golang.org/x/sys/unix"
)

// systemd keeps descriptors of a service and passes them to the service's next process
// (systemd.service(5), FileDescriptorStoreMax=; sd_notify(3), FDSTORE=1). Names tell
// them apart: the state's, and the number that a descriptor has in it.
const (
	storedState = "uvxlan-state"
	storedLead  = "uvxlan-"
)

// ErrNotStored says that there will be no next process, or that systemd doesn't keep
// descriptors for it.
var ErrNotStored = errors.New("systemd doesn't restart this service, or keeps no descriptors of it")

// ErrStored says that what systemd has kept is of no use, and gone. A start without it
// is in order.
var ErrStored = errors.New("what systemd has kept of the process before is of no use")

// CanStore returns nil if systemd is about to restart this service and keeps
// descriptors of it.
func CanStore(ctx context.Context) error {
	if os.Getenv("NOTIFY_SOCKET") == "" {
		return ErrNotStored
	}
	bus, err := dbus.NewSystemdConnectionContext(ctx)
	if err != nil {
		return fmt.Errorf("ask systemd whether this is a restart: %w", err)
	}
	defer bus.Close()
	unit, err := bus.GetUnitNameByPID(ctx, uint32(os.Getpid()))
	if err != nil {
		return fmt.Errorf("ask systemd for this service's name: %w", err)
	}
	jobs, err := bus.ListJobsContext(ctx)
	if err != nil {
		return fmt.Errorf("ask systemd whether this is a restart: %w", err)
	}
	restarts := slices.ContainsFunc(jobs, func(j dbus.JobStatus) bool { return j.Unit == unit && j.JobType == "restart" })
	room, err := bus.GetUnitTypePropertyContext(ctx, unit, "Service", "FileDescriptorStoreMax")
	if err != nil {
		return fmt.Errorf("ask systemd for the descriptors that it keeps: %w", err)
	}
	if n, ok := room.Value.Value().(uint32); !restarts || !ok || n == 0 {
		return ErrNotStored
	}
	return nil
}

// Store gives the state to systemd, with copies of its descriptors.
func (e *State) Store() error {
	text, err := e.Encode()
	if err != nil {
		return err
	}
	file, err := memoryFile("state", text)
	if err != nil {
		return err
	}
	defer unix.Close(file)
	// A device that is down isn't the end of its descriptor.
	const keep = "FDSTORE=1\nFDPOLL=0\nFDNAME="
	for _, fd := range e.Descriptors() {
		if err := notify(keep+storedLead+strconv.Itoa(fd), fd); err != nil {
			return err
		}
	}
	if err := notify(keep+storedState, file); err != nil {
		return err
	}
	return barrier()
}

// notify tells systemd of a state, with copies of descriptors.
func notify(state string, fds ...int) error {
	socket, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("tell systemd: %w", err)
	}
	defer unix.Close(socket)
	var rights []byte
	if len(fds) > 0 {
		rights = unix.UnixRights(fds...)
	}
	to := &unix.SockaddrUnix{Name: os.Getenv("NOTIFY_SOCKET")}
	for err = unix.EINTR; errors.Is(err, unix.EINTR); {
		err = unix.Sendmsg(socket, []byte(state), rights, to, 0)
	}
	if err != nil {
		return fmt.Errorf("tell systemd: %w", err)
	}
	return nil
}

// barrier waits until systemd has seen all that it was told before, when it closes the
// pipe that comes last (sd_notify_barrier(3)).
func barrier() error {
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	defer r.Close()
	err = notify("BARRIER=1", int(w.Fd()))
	w.Close()
	if err == nil {
		err = r.SetReadDeadline(time.Now().Add(stopTimeout))
	}
	if err == nil {
		_, err = r.Read(make([]byte, 1))
	}
	if err != nil && !errors.Is(err, io.EOF) {
		return fmt.Errorf("wait for systemd: %w", err)
	}
	return nil
}

// receiveStored returns what the process before has given to systemd, nil if there is
// nothing. systemd doesn't keep it any longer. The error is an [ErrStored].
func receiveStored() (*State, error) {
	names := strings.Split(os.Getenv("LISTEN_FDNAMES"), ":")
	if os.Getenv("LISTEN_PID") != strconv.Itoa(os.Getpid()) || os.Getenv("LISTEN_FDS") != strconv.Itoa(len(names)) {
		return nil, nil
	}
	for _, name := range []string{"LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"} {
		if err := os.Unsetenv(name); err != nil {
			return nil, fmt.Errorf("%w: %w", ErrStored, err)
		}
	}
	const first = 3 // SD_LISTEN_FDS_START
	here, state := map[int]int{}, None
	var ours []int
	var err error
	for i, name := range names {
		fd := first + i
		unix.CloseOnExec(fd)
		number, wrong := strconv.Atoi(strings.TrimPrefix(name, storedLead))
		switch {
		case name == storedState:
			state = fd
		case strings.HasPrefix(name, storedLead) && wrong == nil:
			here[number] = fd
		default:
			continue
		}
		ours = append(ours, fd)
		err = errors.Join(err, notify("FDSTOREREMOVE=1\nFDNAME="+name))
	}
	if len(ours) == 0 {
		return nil, nil
	}
	var e *State
	if err == nil {
		e, err = readStored(state, here)
	}
	used := e.Descriptors()
	closeAll(slices.DeleteFunc(ours, func(fd int) bool { return slices.Contains(used, fd) }))
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrStored, err)
	}
	return e, nil
}

// readStored reads a state whose descriptors have other numbers here.
func readStored(state int, here map[int]int) (*State, error) {
	if state == None {
		return nil, errors.New("the state is missing")
	}
	own, err := unix.FcntlInt(uintptr(state), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	text, err := readMemoryFile(own)
	if err != nil {
		return nil, err
	}
	e, err := ReadState(text)
	if err != nil {
		return nil, err
	}
	if now := netns(); e.Netns != now {
		return nil, fmt.Errorf("it is of another network namespace (%s, not %s)", e.Netns, now)
	}
	var fds []int
	for _, fd := range e.Descriptors() {
		there, ok := here[fd]
		if !ok {
			return nil, errors.New("a descriptor is missing: raise the unit's FileDescriptorStoreMax")
		}
		fds = append(fds, there)
	}
	fast := e.FastPath
	e.FastPath = nil
	plain := len(e.Descriptors())
	if err := e.renumber(fds[:plain]); err != nil {
		return nil, err
	}
	e.FastPath, e.stored = fast.Renumber(fds[plain:]), true
	close(e.stopped)
	return e, nil
}

package hoststate

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"uvxlan/cmd/internal/atomicfile"
)

// ErrRunning says that a process holds the state directory: stop it first.
var ErrRunning = errors.New("uvxland runs")

// LockPath returns the path of the lock file in the state directory. The file's
// text is the holder's process id.
func LockPath(dir string) string { return filepath.Join(dir, "lock") }

// HandoverPath returns the path of the socket in the state directory by which the
// lock's holder lets another process take its place.
func HandoverPath(dir string) string { return filepath.Join(dir, "handover.sock") }

// Lock is the right to use a state directory, and with it what is on the host.
// It ends with the process.
type Lock struct{ file *os.File }

// Acquire takes the lock of the state directory. It makes the directory if need
// be. While another process has the lock, it returns [ErrRunning] with that
// process's id. For a directory that can't be used it returns [ErrDir].
//
// It waits a moment for a lock whose holder is dead. A command that the holder
// was about to run keeps the holder's descriptors until it begins.
func Acquire(dir string) (*Lock, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrDir, err)
	}
	for late := time.Now().Add(inheritedTime); ; {
		l, err := open(LockPath(dir))
		switch {
		case errors.Is(err, errInherited) && time.Now().Before(late):
			time.Sleep(inheritedInterval) // the kernel tells nobody of a lock's end
		case l != nil || err != nil:
			return l, err
		}
	}
}

// errInherited is the [ErrRunning] for a holder that is dead.
var errInherited = fmt.Errorf("%w, started by one that was killed", ErrRunning)

// inheritedTime is how long to wait for a dead holder's lock, and
// inheritedInterval how often to try.
const (
	inheritedTime     = time.Second
	inheritedInterval = 5 * time.Millisecond
)

// open returns nil without an error if the file was removed meanwhile. The lock
// of a removed file is worth nothing.
func open(path string) (*Lock, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrDir, err)
	}
	err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		defer f.Close()
		return nil, running(f)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("%w: lock %s: %w", ErrDir, path, err), f.Close())
	}
	if !atomicfile.IsAt(f, path) {
		return nil, f.Close()
	}
	_ = sign(f, os.Getpid()) // only for others' errors; the disk may be full
	return &Lock{f}, nil
}

// Adopt takes over the lock of the state directory dir. This process inherited
// the lock as a descriptor, which is the lock's from here on.
func Adopt(fd int, dir string) (*Lock, error) {
	unix.CloseOnExec(fd)
	f := os.NewFile(uintptr(fd), LockPath(dir))
	if !atomicfile.IsAt(f, LockPath(dir)) {
		return nil, errors.Join(fmt.Errorf("%w: the inherited lock isn't that of %s", ErrDir, dir), f.Close())
	}
	return &Lock{f}, nil
}

// Sign makes this process the holder that others are told of.
func (l *Lock) Sign() { _ = sign(l.file, os.Getpid()) }

// Descriptor returns the lock's descriptor, for another program to inherit. It
// stays the lock's.
func (l *Lock) Descriptor() int { return int(l.file.Fd()) }

func running(f *os.File) error {
	text, err := io.ReadAll(io.LimitReader(f, 32))
	pid := strings.TrimSpace(string(text))
	if err != nil || pid == "" {
		return ErrRunning
	}
	if n, err := strconv.Atoi(pid); err == nil && errors.Is(unix.Kill(n, 0), unix.ESRCH) {
		return errInherited
	}
	return runningError{pid}
}

// runningError is an [ErrRunning] that names the process.
type runningError struct{ pid string }

func (e runningError) Error() string { return fmt.Sprintf("%v (pid %s)", ErrRunning, e.pid) }
func (e runningError) Unwrap() error { return ErrRunning }

// Remedy says what to do about an [ErrRunning].
func Remedy(err error) string {
	if e, ok := errors.AsType[runningError](err); ok {
		return fmt.Sprintf("stop it first (kill %s, if no service manager does)", e.pid)
	}
	return "stop it first"
}

func sign(f *os.File, pid int) error {
	if err := f.Truncate(0); err != nil {
		return err
	}
	_, err := f.WriteAt([]byte(strconv.Itoa(pid)+"\n"), 0)
	return err
}

// Remove removes the lock file. The lock stays until Close.
func (l *Lock) Remove() error { return os.Remove(l.file.Name()) }

// Close gives the lock up. It leaves the file, without a process id.
func (l *Lock) Close() error { return errors.Join(l.file.Truncate(0), l.file.Close()) }

package control

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"uvxlan/cmd/internal/atomicfile"
)

// DefaultSocket is the daemon's control socket unless told otherwise.
const DefaultSocket = "/run/uvxlan/uvxlan.sock"

// ErrSocket says that the control socket can't be opened: choose another path.
var ErrSocket = errors.New("the control socket can't be opened")

// ErrInUse says that another daemon answers on the control socket.
var ErrInUse = errors.New("another daemon has the control socket")

// maxPath is what a socket address holds, less the zero byte at its end
// (unix(7)).
const maxPath = 107

// Socket is a listening control socket, which only its owner may open.
type Socket struct {
	net.Listener
	path string
	made fs.FileInfo // the socket file as we made it
	kept atomic.Bool // it stays, for another program
}

// Listen opens the control socket at path and makes the directory if need be. A
// socket that nobody answers on, such as a killed daemon's, is replaced; while
// somebody does, the error is [ErrInUse]. Every error is an [ErrSocket].
func Listen(ctx context.Context, path string) (*Socket, error) {
	if len(path) > maxPath {
		return nil, fmt.Errorf("%w: %s: a socket's path has at most %d bytes", ErrSocket, path, maxPath)
	}
	s, err := listen(ctx, path)
	if err != nil {
		return nil, fmt.Errorf("%w: %s: %w", ErrSocket, path, err)
	}
	return s, nil
}

func listen(ctx context.Context, path string) (*Socket, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, err
	}
	unlock, err := lock(path)
	if err != nil {
		return nil, err
	}
	defer unlock()
	if err := removeStale(ctx, path); err != nil {
		return nil, err
	}
	// The mode is set before the file is there, so that nobody gets in between.
	private := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		var err error
		ctlErr := c.Control(func(fd uintptr) { err = os.NewSyscallError("fchmod", unix.Fchmod(int(fd), 0o600)) })
		return errors.Join(ctlErr, err)
	}}
	l, err := private.Listen(ctx, "unix", path)
	if err != nil {
		return nil, err
	}
	return newSocket(l, path)
}

// Adopt makes a control socket of a descriptor that [Server.HandOver] returned. It
// is used up, whether or not there is an error.
func Adopt(fd int, path string) (*Socket, error) {
	l, err := AdoptListener(fd)
	if err != nil {
		return nil, fmt.Errorf("%w: %s: %w", ErrSocket, path, err)
	}
	if _, ok := l.(*net.UnixListener); !ok {
		return nil, errors.Join(fmt.Errorf("%w: %s: it is no Unix socket", ErrSocket, path), l.Close())
	}
	return newSocket(l, path)
}

func newSocket(l net.Listener, path string) (*Socket, error) {
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	made, err := os.Lstat(path)
	if err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return &Socket{Listener: l, path: path, made: made}, nil
}

// lockTime bounds the wait for another daemon that looks at the same path.
const (
	lockTime     = 2 * time.Second
	lockInterval = 5 * time.Millisecond
)

// lock keeps other daemons from looking at the socket at path until unlock, so
// that of two that replace a stale one neither takes the other's away. What is
// locked is a file that only we can open, since whoever may open a file or a folder
// may lock it.
func lock(path string) (unlock func(), err error) {
	name := path + ".lock"
	for late := time.Now().Add(lockTime); ; time.Sleep(lockInterval) {
		f, err := os.OpenFile(name, os.O_CREATE|os.O_RDWR|unix.O_NOFOLLOW, 0o600)
		if err != nil {
			return nil, err
		}
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil && atomicfile.IsAt(f, name) {
			return func() { _ = errors.Join(os.Remove(name), f.Close()) }, nil
		}
		f.Close()
		if err == nil {
			continue // the one before has just removed it
		}
		if !errors.Is(err, unix.EWOULDBLOCK) || time.Now().After(late) {
			return nil, fmt.Errorf("lock %s: %w", name, err)
		}
	}
}

// removeStale removes a socket that nobody answers on. Any other kind of file
// is somebody's and stays.
func removeStale(ctx context.Context, path string) error {
	stale, err := Stale(ctx, path)
	if err != nil || !stale {
		return err
	}
	return os.Remove(path)
}

// Stale tells whether path is a socket that nobody answers on, as a killed
// daemon leaves it. While somebody does, the error is [ErrInUse].
func Stale(ctx context.Context, path string) (bool, error) {
	there, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	if there.Mode().Type() != fs.ModeSocket {
		return false, errors.New("a file of that name is in the way")
	}
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", path)
	if err == nil {
		conn.Close()
		return false, ErrInUse
	}
	if errors.Is(err, unix.ECONNREFUSED) {
		return true, nil
	}
	return false, err
}

// Close stops listening and removes the socket's file, unless another took its
// place meanwhile.
func (s *Socket) Close() error {
	err := s.Listener.Close()
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	there, statErr := os.Lstat(s.path)
	if statErr == nil && !s.kept.Load() && os.SameFile(there, s.made) {
		err = errors.Join(err, os.Remove(s.path))
	}
	return err
}

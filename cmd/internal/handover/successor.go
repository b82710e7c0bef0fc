package handover

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// variable names the environment variable that tells a program what it is
// started as. Its value also has the descriptors of the state and of the link.
const variable = "UVXLAN_RELOAD"

// Values of variable begin with a part.
const (
	partStandby   = "stand-in"
	partSuccessor = "successor"
)

func environment(value string) []string {
	others := slices.DeleteFunc(os.Environ(), func(s string) bool { return strings.HasPrefix(s, variable+"=") })
	return append(others, variable+"="+value)
}

// Program returns the path by which this program was started. Another program
// may be there later. Call it before the working directory changes.
func Program() (string, error) {
	running, err := os.Stat("/proc/self/exe")
	if err != nil {
		return "", fmt.Errorf("find own program: %w", err)
	}
	// The given path may be a link, which a new version changes.
	path, err := exec.LookPath(os.Args[0])
	if err == nil {
		path, err = filepath.Abs(path)
	}
	if there, statErr := os.Stat(path); err == nil && statErr == nil && os.SameFile(there, running) {
		return path, nil
	}
	path, err = os.Executable()
	if err != nil {
		return "", fmt.Errorf("find own program: %w", err)
	}
	return path, nil
}

// Exec makes this process the successor: the program with the same arguments
// and environment. The successor inherits the descriptors fds, under the same
// numbers, and the standby with them. Exec returns only if that fails or t has
// ended. Nothing has changed then.
func Exec(t *Termination, program string, state []byte, fds []int, s *Standby) error {
	file, err := memoryFile("state", state)
	if err != nil {
		return fmt.Errorf("become %s: %w", program, err)
	}
	defer unix.Close(file)
	inherited := append(slices.Clone(fds), file, s.link.fd)
	defer closeOnExec(inherited, true)
	closeOnExec(inherited, false)
	// Block the signal that orders another handover. It waits until the new
	// program asks for it.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	blocked, before := unix.Sigset_t{}, unix.Sigset_t{}
	blocked.Val[0] = uint64(setOf(unix.SIGUSR2))
	if err := unix.PthreadSigmask(unix.SIG_BLOCK, &blocked, &before); err != nil {
		return fmt.Errorf("become %s: block signals: %w", program, err)
	}
	defer func() { _ = unix.PthreadSigmask(unix.SIG_SETMASK, &before, nil) }()
	defer t.resume()
	if err := t.suspend(); err != nil {
		return err
	}
	err = syscall.Exec(program, os.Args, environment(fmt.Sprintf("%s,%d,%d,%d", partSuccessor, file, s.link.fd, s.pid)))
	return fmt.Errorf("become %s: %w", program, err)
}

func closeOnExec(fds []int, on bool) {
	flag := 0
	if on {
		flag = unix.FD_CLOEXEC
	}
	for _, fd := range fds {
		_, _ = unix.FcntlInt(uintptr(fd), unix.F_SETFD, flag)
	}
}

// Received is what a program got that wasn't started by hand.
type Received struct {
	// State is what the program before handed over.
	State []byte
	// Main is the main process of a standby, nil for a successor.
	Main *Main
	// Standby is the standby that works until it is stopped. It is nil in a
	// standby.
	Standby *Standby
}

// Receive returns what this program was started with, nil if it was started by
// hand. It is called once.
func Receive() (*Received, error) {
	value := os.Getenv(variable)
	if value == "" || value == partRetired {
		return nil, nil
	}
	if err := os.Unsetenv(variable); err != nil {
		return nil, err
	}
	r, err := receive(value)
	if err != nil {
		return nil, fmt.Errorf("%s=%s: %w", variable, value, err)
	}
	return r, nil
}

func receive(value string) (*Received, error) {
	part, numbers, _ := strings.Cut(value, ",")
	var file, socket, pid int
	switch part {
	case partStandby:
		if _, err := fmt.Sscanf(numbers, "%d,%d", &file, &socket); err != nil {
			return nil, err
		}
	case partSuccessor:
		if _, err := fmt.Sscanf(numbers, "%d,%d,%d", &file, &socket, &pid); err != nil {
			return nil, err
		}
	default:
		return nil, errors.New("this program knows no such part")
	}
	state, err := readMemoryFile(file)
	if err != nil {
		return nil, err
	}
	l, err := openLink(socket)
	if err != nil {
		return nil, err
	}
	if part == partStandby {
		return &Received{State: state, Main: newMain(l)}, nil
	}
	return &Received{State: state, Standby: &Standby{link: l, pid: pid}}, nil
}

// Main is a standby's main process.
type Main struct {
	link    *link
	pid     int
	process int // a descriptor of it (pidfd_open(2)), or negative
}

func newMain(l *link) *Main {
	m := &Main{link: l, pid: os.Getppid()}
	var err error
	if m.process, err = unix.PidfdOpen(m.pid, 0); err != nil {
		m.process = -1
	}
	return m
}

// Ready says that the standby can work, and waits for the order to work. io.EOF
// means that the order will never come.
func (m *Main) Ready() error {
	if err := m.link.send(takesFastPath); err != nil {
		return err
	}
	_, err := m.link.await(0)
	return err
}

// AwaitStop returns when the standby shall stop. It also returns when the main
// process has died and has nothing open or locked any longer. Then nobody else
// cleans up what the two have in common.
func (m *Main) AwaitStop() (died bool) {
	_, _ = m.link.await(0)
	if !m.link.closed() {
		return false
	}
	m.awaitEnd()
	return true
}

// awaitEnd waits for the end of the process's last thread: until then it may have
// something open or locked. Its children get another parent before that, which is all
// that a sandbox without pidfd_open tells.
func (m *Main) awaitEnd() {
	late := time.Now().Add(stopTimeout)
	for wait := time.Until(late); m.process >= 0 && wait > 0; wait = time.Until(late) {
		limit := unix.NsecToTimespec(int64(wait))
		if _, err := unix.Ppoll([]unix.PollFd{{Fd: int32(m.process), Events: unix.POLLIN}}, &limit, nil); !errors.Is(err, unix.EINTR) {
			return
		}
	}
	for os.Getppid() == m.pid && time.Now().Before(late) {
		time.Sleep(time.Millisecond)
	}
}

// Stopped says that the standby has stopped.
func (m *Main) Stopped() error { return m.link.close() }

package handover

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// readyTimeout is how long a program may take to say that it is ready.
	readyTimeout = 10 * time.Second
	// stopTimeout is how long a standby may take to stop working.
	stopTimeout = 5 * time.Second
	// maxWords bounds how much of a program's own words is quoted, in bytes.
	maxWords = 4 << 10
)

// ErrRefused says that the program on disk can't take over, and why.
var ErrRefused = errors.New("the program on disk can't take over")

// Standby is a child that works, or is ready to, until it is stopped. Only one
// goroutine at a time may use it.
type Standby struct {
	link  *link
	pid   int
	takes byte // what it said when it was ready
}

// Start starts the program as a standby and returns when the standby is ready.
// The standby gets this process's arguments and environment, and reads state by
// [Receive]. It inherits the descriptors fds, under the same numbers, and no
// others. Every error is an [ErrRefused].
func Start(ctx context.Context, program string, state []byte, fds []int) (*Standby, error) {
	s, err := start(ctx, program, state, fds)
	if err != nil {
		return nil, fmt.Errorf("%w: %s: %w", ErrRefused, program, err)
	}
	return s, nil
}

func start(ctx context.Context, program string, state []byte, fds []int) (*Standby, error) {
	file, err := memoryFile("state", state)
	if err != nil {
		return nil, err
	}
	defer unix.Close(file)
	words, err := memoryFile("words", nil)
	if err != nil {
		return nil, err
	}
	defer unix.Close(words)
	ours, theirs, err := newLink()
	if err != nil {
		return nil, err
	}
	inherited := append(slices.Clone(fds), file, theirs)
	pid, err := syscall.ForkExec(program, os.Args, &syscall.ProcAttr{
		Env:   environment(fmt.Sprintf("%s,%d,%d", partStandby, file, theirs)),
		Files: places(words, inherited),
	})
	unix.Close(theirs) // so that the standby's end is seen
	if err != nil {
		return nil, inLine(err, ours.close())
	}
	s := &Standby{link: ours, pid: pid}
	if err := s.awaitReady(ctx); err != nil {
		return nil, inLine(err, s.kill(), quote(words))
	}
	return s, nil
}

// inLine joins errors as [errors.Join] does, on one line.
func inLine(errs ...error) (all error) {
	for _, err := range errs {
		switch {
		case err == nil:
		case all == nil:
			all = err
		default:
			all = fmt.Errorf("%w; %w", all, err)
		}
	}
	return all
}

// places returns the descriptors of a new process by number: the inherited
// ones, and words for standard output and error. No others are passed.
func places(words int, inherited []int) []uintptr {
	const none = ^uintptr(0)
	files := slices.Repeat([]uintptr{none}, max(slices.Max(inherited), 2)+1)
	for _, fd := range inherited {
		files[fd] = uintptr(fd)
	}
	files[0], files[1], files[2] = 0, uintptr(words), uintptr(words)
	return files
}

func (s *Standby) awaitReady(ctx context.Context) error {
	stop := context.AfterFunc(ctx, s.link.interrupt)
	defer stop()
	takes, err := s.link.await(readyTimeout)
	s.takes = takes
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case errors.Is(err, io.EOF):
		return errors.New("it ended")
	case errors.Is(err, os.ErrDeadlineExceeded):
		return fmt.Errorf("it is not ready after %s", readyTimeout)
	}
	return err
}

// kill ends a standby that is of no use, and says how it ended.
func (s *Standby) kill() error {
	// It may have ended by itself.
	_ = unix.Kill(s.pid, unix.SIGKILL)
	return errors.Join(s.link.close(), s.reap())
}

func (s *Standby) reap() error {
	for {
		var status unix.WaitStatus
		_, err := unix.Wait4(s.pid, &status, 0, nil)
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return fmt.Errorf("wait for process %d: %w", s.pid, err)
		case status.Exited() && status.ExitStatus() != 0:
			return fmt.Errorf("exit status %d", status.ExitStatus())
		case status.Signaled():
			return fmt.Errorf("signal: %s", status.Signal())
		default:
			return nil
		}
	}
}

// quote makes an error of the last line that a program wrote, nil if it wrote none.
func quote(words int) error {
	size, err := unix.Seek(words, 0, io.SeekEnd)
	text := make([]byte, min(max(size, 0), maxWords))
	if err == nil {
		_, err = unix.Pread(words, text, max(size-maxWords, 0))
	}
	if err != nil {
		return fmt.Errorf("read what it said: %w", err)
	}
	lines := strings.Split(strings.TrimSpace(string(text)), "\n")
	if last := lines[len(lines)-1]; last != "" {
		return fmt.Errorf("it said: %s", last)
	}
	return nil
}

// Go has the standby work from now on.
func (s *Standby) Go() error { return s.link.send(takesTunnel) }

// TakesFastPath tells whether the program takes over a fast path's descriptors.
// One that doesn't leaves them open and never looks at them.
func (s *Standby) TakesFastPath() bool { return s.takes >= takesFastPath }

// Stop ends the standby. It returns once the standby doesn't work any longer,
// which may be before its process has ended; [Standby.Reap] waits for that.
func (s *Standby) Stop() error {
	err := s.link.end()
	if err == nil {
		_, err = s.link.await(stopTimeout)
	}
	if errors.Is(err, io.EOF) {
		return nil
	}
	return errors.Join(fmt.Errorf("stop standby: %w", err), s.kill())
}

// Reap waits until a stopped standby's process has ended, however it ended.
func (s *Standby) Reap() {
	_ = s.link.close()
	_ = s.reap()
}

package lab

import (
	"errors"
	"os"
	"runtime"
	"sync"

	"golang.org/x/sys/unix"
)

// spawner starts every process of a lab from one thread that lives as long as
// the lab. The kernel sends a process its Pdeathsig when the thread that made
// it ends, and a thread of the Go scheduler may end at any time.
type spawner struct {
	calls chan spawn
	done  sync.WaitGroup

	mu      sync.Mutex // guards what follows
	closed  bool
	running map[*Cmd]struct{}
}

type spawn struct {
	ns     *os.File
	start  func() error
	result chan error
}

// startSpawner starts the thread, which ends with close.
func startSpawner() *spawner {
	s := &spawner{calls: make(chan spawn), running: make(map[*Cmd]struct{})}
	s.done.Go(s.serve)
	return s
}

// serve stays on its thread, to which visit's own locking is nested.
func (s *spawner) serve() {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	for c := range s.calls {
		c.result <- visit(func() error {
			if err := enter(c.ns); err != nil {
				return err
			}
			return c.start()
		})
	}
}

// start runs the command's start inside the namespace and remembers it until
// forget.
func (s *spawner) start(ns *os.File, c *Cmd, start func() error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return os.ErrClosed
	}
	result := make(chan error, 1)
	s.calls <- spawn{ns, start, result}
	if err := <-result; err != nil {
		return err
	}
	s.running[c] = struct{}{}
	return nil
}

func (s *spawner) forget(c *Cmd) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.running, c)
}

// shut refuses further starts and returns the commands that nobody waited for.
func (s *spawner) shut() []*Cmd {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	commands := make([]*Cmd, 0, len(s.running))
	for c := range s.running {
		commands = append(commands, c)
	}
	return commands
}

// kill refuses further starts, kills what runs and reaps it.
func (s *spawner) kill() error {
	commands := s.shut()
	var errs []error
	for _, c := range commands {
		errs = append(errs, c.signalGroup(unix.SIGKILL))
	}
	for _, c := range commands {
		// How a killed process ended is no news.
		_ = c.Wait()
	}
	return errors.Join(errs...)
}

// close gives the thread up. What it started must have ended, or be meant to
// outlive the lab.
func (s *spawner) close() {
	s.shut()
	close(s.calls)
	s.done.Wait()
}

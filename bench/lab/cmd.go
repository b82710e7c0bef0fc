package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// outputDelay bounds how long Wait reads on for descendants that left the
// process group and still hold its output.
const outputDelay = 2 * time.Second

// Cmd is a command that runs inside a node's namespace, in a process group of
// its own, so that a Ctrl-C at the terminal doesn't reach it. It dies with the
// process that owns the lab, unless Options.Keep is set. Its fields are those
// of exec.Cmd and may be set before Start.
type Cmd struct {
	*exec.Cmd

	node *Node
	once sync.Once
	done chan struct{} // closed once err is final
	err  error
}

// Command prepares a command to run inside the node. When ctx ends, its whole
// process group is killed. After Start, Wait or Stop must be called, or the
// lab's Close does it.
func (n *Node) Command(ctx context.Context, name string, args ...string) *Cmd {
	c := &Cmd{Cmd: exec.CommandContext(ctx, name, args...), node: n, done: make(chan struct{})}
	c.WaitDelay = outputDelay
	c.Cancel = func() error { return c.signalGroup(unix.SIGKILL) }
	return c
}

// Run runs a command inside the node and returns what it wrote to standard
// output and standard error. An error quotes that output.
func (n *Node) Run(ctx context.Context, name string, args ...string) ([]byte, error) {
	out, err := n.Command(ctx, name, args...).CombinedOutput()
	if text := bytes.TrimSpace(out); err != nil && len(text) > 0 {
		err = fmt.Errorf("%w: %s", err, text)
	}
	return out, err
}

// Start starts the command inside the node.
func (c *Cmd) Start() error {
	if c.SysProcAttr == nil {
		c.SysProcAttr = new(syscall.SysProcAttr)
	}
	c.SysProcAttr.Setpgid = true
	if !c.node.keep {
		c.SysProcAttr.Pdeathsig = unix.SIGKILL
	}
	if err := c.node.spawner.start(c.node.ns, c, c.Cmd.Start); err != nil {
		return fmt.Errorf("start %s in %s: %w", c.Args[0], c.node.Name, err)
	}
	return nil
}

// Wait waits for the command to end, as exec.Cmd's does, and may be called more
// than once and concurrently. The error names the command and the node and
// wraps an *exec.ExitError.
func (c *Cmd) Wait() error {
	c.once.Do(func() {
		if err := c.Cmd.Wait(); err != nil {
			c.err = fmt.Errorf("run %s in %s: %w", c.Args[0], c.node.Name, err)
		}
		c.node.spawner.forget(c)
		close(c.done)
	})
	return c.err
}

// Run starts the command and waits for it.
func (c *Cmd) Run() error {
	if err := c.Start(); err != nil {
		return err
	}
	return c.Wait()
}

// Output runs the command and returns its standard output.
func (c *Cmd) Output() ([]byte, error) {
	var out bytes.Buffer
	c.Stdout = &out
	err := c.Run()
	return out.Bytes(), err
}

// CombinedOutput runs the command and returns its standard output and error.
func (c *Cmd) CombinedOutput() ([]byte, error) {
	var out bytes.Buffer
	c.Stdout, c.Stderr = &out, &out
	err := c.Run()
	return out.Bytes(), err
}

// Stop sends SIGTERM to the command's process group and waits for it, and kills
// it when ctx ends first. It returns nil if the command ended with status 0 or
// from the SIGTERM, now or earlier.
func (c *Cmd) Stop(ctx context.Context) error {
	if c.Process == nil {
		return nil
	}
	err := c.signalGroup(unix.SIGTERM)
	stop := context.AfterFunc(ctx, func() { _ = c.signalGroup(unix.SIGKILL) })
	waitErr := c.Wait()
	if !stop() && c.endedBy(unix.SIGKILL) {
		return fmt.Errorf("stop %s in %s: killed: %w", c.Args[0], c.node.Name, ctx.Err())
	}
	if c.endedBy(unix.SIGTERM) {
		waitErr = nil
	}
	return errors.Join(err, waitErr)
}

// Done is closed once Wait has seen the command end.
func (c *Cmd) Done() <-chan struct{} { return c.done }

func (c *Cmd) endedBy(s unix.Signal) bool {
	if c.ProcessState == nil {
		return false
	}
	status, ok := c.ProcessState.Sys().(syscall.WaitStatus)
	return ok && status.Signaled() && status.Signal() == s
}

// signalGroup signals the command and its descendants. One that has ended is
// no error.
func (c *Cmd) signalGroup(s unix.Signal) error {
	select {
	case <-c.done:
		return nil // the process id may be somebody else's by now
	default:
	}
	err := unix.Kill(-c.Process.Pid, s)
	if err != nil && !errors.Is(err, unix.ESRCH) {
		return os.NewSyscallError("kill", err)
	}
	return nil
}

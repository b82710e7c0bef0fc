package fastpath

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"uvxlan/tunnel"
)

const (
	// settle is waited out after an event, since one change makes many.
	settle = 20 * time.Millisecond
	// lookInterval is the time between two looks at the host without an event.
	lookInterval = 10 * time.Second
)

// Run follows what changes about the host until ctx ends or Close is called, and then
// returns nil. It is called once.
func (f *FastPath) Run(ctx context.Context) error {
	if err := f.life.Start(); err != nil {
		return fmt.Errorf("follow the host: %w", err)
	}
	defer f.life.Done()
	stopped := context.AfterFunc(ctx, f.waker.Wake)
	defer stopped()
	fds := make([]unix.PollFd, 1, 1+len(f.host.events))
	fds[0] = unix.PollFd{Fd: int32(f.waker.FD), Events: unix.POLLIN}
	for _, fd := range f.host.events {
		fds = append(fds, unix.PollFd{Fd: int32(fd), Events: unix.POLLIN})
	}
	for {
		f.inspect()
		if _, err := unix.Poll(fds, int(lookInterval/time.Millisecond)); err != nil && !errors.Is(err, unix.EINTR) {
			return fmt.Errorf("wait for the kernel's events: %w", err)
		}
		if ctx.Err() != nil || f.life.Closed() {
			return nil
		}
		// More of the same change comes at once; an end doesn't wait.
		if _, err := unix.Poll(fds[:1], int(settle/time.Millisecond)); err != nil && !errors.Is(err, unix.EINTR) {
			return fmt.Errorf("wait for the kernel's events: %w", err)
		}
		for _, fd := range f.host.events {
			f.host.drain(fd)
		}
	}
}

// inspect looks at the host and has the programs do what that allows.
func (f *FastPath) inspect() {
	v := f.host.look(f.device, f.link)
	f.mu.Lock()
	defer f.mu.Unlock()
	before := f.view
	f.view = v
	if err := f.programs.Tolerate(v.tolerant); err != nil {
		f.log.Error("follow the host's interfaces", "error", err)
	}
	if err := f.programs.Configure(f.settingsLocked()); err != nil {
		f.log.Error("follow the host", "error", err)
	}
	if v.off != before.off {
		if v.off != "" {
			f.log.Warn("the fast path is off: the workers carry everything", "reason", v.off)
		} else {
			f.log.Info("the fast path is on again")
		}
	}
	samePolicies := slices.EqualFunc(v.policies, before.policies, func(a, b netlinkPolicy) bool { return a.String() == b.String() })
	if samePolicies {
		return
	}
	peers := make([]tunnel.FastPeer, 0, len(f.members))
	for _, m := range f.members {
		peers = append(peers, m.FastPeer)
	}
	f.putLocked(peers)
}

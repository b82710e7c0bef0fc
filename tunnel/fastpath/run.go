package fastpath

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"uvxlan/tunnel"
)

const (
	// settle is the least time between two looks at the host, which may not take more
	// than a tenth of a CPU either: on a host with a thousand interfaces one takes many
	// milliseconds, and events come all the time.
	settle = 20 * time.Millisecond
	// lookInterval is the time between two looks at the host without an event.
	lookInterval = 10 * time.Second
	// checkInterval is the time between two looks at whether the programs are where
	// they belong.
	checkInterval = time.Second
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
		for _, fd := range f.host.events {
			f.host.drain(fd)
		}
		began := time.Now()
		f.inspect()
		// One change makes many events; an end doesn't wait.
		if err := poll(fds[:1], max(settle, 9*time.Since(began))); err != nil {
			return err
		}
		for looked := time.Now(); ; {
			if ctx.Err() != nil || f.life.Closed() {
				return nil
			}
			if err := poll(fds, checkInterval); err != nil {
				return err
			}
			f.checkRelay()
			if slices.ContainsFunc(fds, func(p unix.PollFd) bool { return p.Revents != 0 }) || time.Since(looked) >= lookInterval || f.isMisplaced() {
				break
			}
		}
	}
}

func poll(fds []unix.PollFd, limit time.Duration) error {
	if _, err := unix.Poll(fds, int(limit/time.Millisecond)); err != nil && !errors.Is(err, unix.EINTR) {
		return fmt.Errorf("wait for the kernel's events: %w", err)
	}
	return nil
}

// isMisplaced tells whether the programs aren't where they belong. The kernel
// has no event for programs that come and go.
func (f *FastPath) isMisplaced() (is bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.attached == nil {
		return true
	}
	_ = f.host.inside(func() error {
		ok, behind := f.attached.stands()
		is = !ok || f.isPassedLocked(behind)
		return nil
	})
	return is
}

// isPassedLocked tells whether there is a program behind ours that ours weren't moved
// behind yet. That is done only once for each, or two fast paths would overtake each
// other for ever.
func (f *FastPath) isPassedLocked(behind []ebpf.ProgramID) bool {
	return slices.ContainsFunc(behind, func(id ebpf.ProgramID) bool { return !f.passed[id] })
}

// inspect looks at the host, has the programs attached where they belong, and has them
// do what the host allows.
func (f *FastPath) inspect() {
	f.mu.Lock()
	l, families := f.link, f.view.families
	f.mu.Unlock()
	l, err := f.host.underlay(f.locals[0].Addr(), f.config.Link, l)
	if err != nil {
		f.apply(view{off: err.Error(), families: families})
		return
	}
	v := f.host.look(f.locals, f.device, l)
	err = f.host.inside(func() error {
		f.haveRelay(v, &Descriptors{})
		return f.keep(l)
	})
	if err != nil && v.off == "" {
		v.off = err.Error()
	}
	f.apply(v)
}

// keep attaches the programs to the underlay's interface again, behind all others, if
// they aren't there.
func (f *FastPath) keep(l underlayLink) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.released {
		return nil
	}
	if f.attached != nil {
		ok, behind := f.attached.stands()
		if ok && l.index == f.link.index && !f.isPassedLocked(behind) {
			f.link = l // perhaps renamed
			return nil
		}
		f.passed = map[ebpf.ProgramID]bool{}
		for _, id := range behind {
			f.passed[id] = true
		}
		f.log.Info("attaching the fast path again", "link", l.name)
		if err := f.attached.detach(); err != nil {
			f.log.Warn("detach the fast path", "error", err)
		}
	}
	f.link = l
	var err error
	f.attached, err = attach(f.place(l), &Descriptors{})
	return err
}

// apply has the programs do what the host allows.
func (f *FastPath) apply(v view) {
	f.mu.Lock()
	defer f.mu.Unlock()
	before := f.view
	if v.off != "" {
		v.policies = before.policies // which weren't looked at
	}
	f.view = v
	if v.off != before.off {
		if v.off != "" {
			f.log.Warn("the fast path is off: the workers carry everything", "reason", v.off)
		} else {
			f.log.Info("the fast path is on again")
		}
	}
	// What must not be carried is gone before anything is.
	if v.families != before.families || !slices.Equal(v.policies, before.policies) {
		peers := make([]tunnel.FastPeer, 0, len(f.members))
		for _, m := range f.members {
			peers = append(peers, m.FastPeer)
		}
		f.putLocked(peers)
	}
	if err := f.programs.Tolerate(v.tolerant); err != nil {
		f.log.Error("follow the host's interfaces", "error", err)
	}
	if err := f.programs.Configure(f.settingsLocked()); err != nil {
		f.log.Error("follow the host", "error", err)
	}
}

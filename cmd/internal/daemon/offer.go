package daemon

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"uvxlan/cmd/internal/handover"
	"uvxlan/cmd/internal/hoststate"
)

var (
	// errTaking refuses a reload.
	errTaking = errors.New("another program takes over")
	// errReloads refuses a program that takes over.
	errReloads = errors.New("it reloads")
)

// takeoverTime is how long a daemon that is told to stop goes on for a program that
// is taking over. It is less than the 30 s after which Kubernetes kills a pod.
const takeoverTime = 20 * time.Second

// turn is the right to put another process in this one's place, which at most one
// attempt has. The zero value is nobody's.
type turn struct {
	mu     sync.Mutex
	over   chan struct{} // nil if nobody has it; closed when it is given back
	beside bool          // a process has it that works beside this one
}

// take returns false if another attempt has it. beside tells whether the other process
// isn't this one's own.
func (t *turn) take(beside bool) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.over != nil {
		return false
	}
	t.over, t.beside = make(chan struct{}), beside
	return true
}

func (t *turn) giveBack() {
	t.mu.Lock()
	defer t.mu.Unlock()
	close(t.over)
	t.over = nil
}

// awaitOther waits until no process that isn't this one's own is about to take over,
// or ctx ends.
func (t *turn) awaitOther(ctx context.Context) {
	t.mu.Lock()
	over := t.over
	if !t.beside {
		over = nil
	}
	t.mu.Unlock()
	if over == nil {
		return
	}
	select {
	case <-over:
	case <-ctx.Done():
	}
}

// gracefully returns a context that ends with ctx, but not in the middle of a takeover:
// what supervises the other process may think that it works already. For a restart by
// systemd, all that the next process goes on with is stored first.
func gracefully(ctx context.Context, r *reloader) (context.Context, context.CancelFunc) {
	late, cancel := context.WithCancel(context.WithoutCancel(ctx))
	context.AfterFunc(ctx, func() {
		defer cancel()
		limit, stop := context.WithTimeout(late, takeoverTime)
		defer stop()
		r.turn.awaitOther(limit)
		done := make(chan struct{})
		select {
		case r.told <- done:
		default: // there is no service yet
			return
		}
		select {
		case <-done:
		case <-limit.Done():
		}
	})
	return late, cancel
}

// offerer lets another process take this daemon's place.
type offerer struct {
	service *service
	*reloader
	network interface {
		Release(*handover.State) (time.Time, error)
	} // as described
}

var _ handover.Giver = (*offerer)(nil)

// offer returns what another process has taken over, nil when ctx ends. The error is
// a [handover.ErrDismissed] or a [handover.ErrForsaken].
func (s *service) offer(ctx context.Context, r *reloader) (*handover.State, error) {
	select {
	case <-r.monitor.isReady:
	case <-ctx.Done():
		return nil, nil
	}
	s.before.AwaitStopped(ctx) // it has its own offer there
	r.lock.Sign()
	o, err := handover.OpenOffer(ctx, s.opts.StateDir, s.opts.Logger)
	if err != nil {
		if ctx.Err() == nil {
			s.opts.Logger.Warn("no other program can take over", "error", err)
		}
		return nil, nil
	}
	defer o.Close()
	return o.Run(ctx, &offerer{service: s, reloader: r})
}

// Describe implements [handover.Giver].
func (o *offerer) Describe() (e *handover.State, err error) {
	if !o.turn.take(true) {
		return nil, errReloads
	}
	defer func() {
		if err != nil {
			o.turn.giveBack()
		}
	}()
	e, network, err := o.monitor.describe(o.opts)
	if err != nil {
		return nil, err
	}
	if err = o.monitor.endpointsNow().describe(e); err != nil {
		return nil, err
	}
	o.network = network
	e.Record = hoststate.Pending(o.opts.StateDir)
	e.Lock, e.Settings, e.Claims = o.lock.Descriptor(), o.opts.settings(), o.service.claim.Names()
	return e, nil
}

// Release implements [handover.Giver].
func (o *offerer) Release(e *handover.State) error {
	_, err := o.network.Release(e)
	return err
}

// Abandon implements [handover.Giver].
func (o *offerer) Abandon(e *handover.State) {
	for _, fd := range []int{e.Health, e.Control} {
		if fd != handover.None {
			unix.Close(fd)
		}
	}
	o.turn.giveBack()
}

// settings are the choices, in one line, that a device and sockets are made by.
func (o *Options) settings() string {
	v, i := o.Overlay, o.Interface
	var patterns []string
	for _, p := range i.Patterns {
		patterns = append(patterns, p.String())
	}
	return fmt.Sprint("leases at ", storeOf(*o).Prefix, ", interface ", i.Names, patterns, i.CanReach, i.PublicIP, i.PublicIPv6,
		", workers ", v.Workers, v.Driver, v.AnySource, v.HugePages, v.Offloads, v.MustOffload)
}

// errUnlike says that a daemon's place can't be taken as it is.
var errUnlike = errors.New("the daemon that runs works in another way")

// checkSettings returns an [errUnlike] if this daemon is to have other settings than the
// one before. It closes what this one won't need.
func checkSettings(o Options, before *handover.State) error {
	if ours := o.settings(); before.Settings != ours {
		return fmt.Errorf("%w: %s, here %s", errUnlike, before.Settings, ours)
	}
	return keepEndpoints(o, before)
}

// startInPlace ends the daemon before, whose settings or network configuration are
// others, and starts this program again.
func startInPlace(t *handover.Termination, o Options, before *handover.State, why error) error {
	o.Logger.Warn("packets stop for a moment", "reason", why)
	if err := before.Dismiss(t); err != nil {
		return err
	}
	return startAgain(t, o)
}

// checkConfig returns an [errUnlike] if the configuration has changed since the daemon
// before started: whoever starts another wants the new one. Without the registry's
// answer the one in force stays.
func (s *service) checkConfig(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, configTime)
	defer cancel()
	text, err := s.leases.Config(ctx)
	var changes string
	if err == nil {
		changes, err = s.manager.CompareConfig(text, s.before.Config)
	}
	if err != nil {
		s.opts.Logger.Warn("the network configuration in force stays", "error", err)
	}
	if changes != "" {
		return fmt.Errorf("%w: the network configuration has changed: %s", errUnlike, changes)
	}
	return nil
}

// configTime is how long the network configuration is waited for where it is known.
const configTime = 3 * time.Second

// fileID tells files of a machine apart, whatever paths mount namespaces have them at. It
// is "" for one that isn't there.
func fileID(path string) string {
	var s unix.Stat_t
	if unix.Lstat(path, &s) != nil {
		return ""
	}
	return fmt.Sprintf("%d:%d", s.Dev, s.Ino)
}

// keepEndpoints closes those of the daemon before that this one is to have elsewhere. In
// a container the same path may be another place.
func keepEndpoints(o Options, e *handover.State) error {
	path, err := filepath.Abs(o.ControlSocket)
	elsewhere := err != nil || o.ControlSocket == "" || path != e.ControlSocket || fileID(path) != e.ControlFile
	if e.Control != handover.None && elsewhere {
		unix.Close(e.Control)
		e.Control = handover.None
	}
	if e.Health == handover.None {
		return nil
	}
	at, err := unix.Getsockname(e.Health)
	if err != nil {
		return fmt.Errorf("take over the health port: %w", os.NewSyscallError("getsockname", err))
	}
	var port int
	switch at := at.(type) {
	case *unix.SockaddrInet4:
		port = at.Port
	case *unix.SockaddrInet6:
		port = at.Port
	}
	if port != int(o.Health.Port()) {
		unix.Close(e.Health)
		e.Health = handover.None
	}
	return nil
}

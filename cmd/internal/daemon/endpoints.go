package daemon

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"path/filepath"

	"golang.org/x/sys/unix"

	"uvxlan/cmd/internal/control"
	"uvxlan/cmd/internal/handover"
	"uvxlan/cmd/internal/hoststate"
	"uvxlan/cmd/internal/metrics"
)

// endpoints are where the daemon tells how it is.
type endpoints struct {
	opts    Options
	before  *handover.State
	health  *control.Server // nil if there is none, as with socket
	control *control.Server
	later   []func() // start those on whose sockets the daemon before answers
}

// source is what the endpoints tell of.
type source interface {
	metrics.Source
	control.Leases
}

// openEndpoints starts answering on the health port and the control socket, as
// far as the options want them. Those of the daemon before are taken over, from
// answerAll on if it still answers there itself.
func openEndpoints(ctx context.Context, o Options, s source, before *handover.State) (*endpoints, error) {
	e := &endpoints{opts: o, before: before}
	if err := e.openHealth(ctx, s, before); err != nil {
		return nil, err
	}
	if err := e.openControl(ctx, s, before); err != nil {
		e.close(nil)
		return nil, err
	}
	return e, nil
}

func (e *endpoints) openHealth(ctx context.Context, s metrics.Source, before *handover.State) error {
	if e.opts.Health.Port() == 0 {
		return nil
	}
	l, err := listenHealth(ctx, e.opts.Health, before)
	if errors.Is(err, unix.EADDRINUSE) {
		return fmt.Errorf("open health port: %w: set another -healthz-port", err)
	}
	if err != nil {
		return fmt.Errorf("open health port: %w", err)
	}
	e.opts.Logger.Info("answers /healthz, /readyz and /metrics", "address", l.Addr())
	e.answer(adoptsHealth(before), func() {
		e.health = control.Serve(l, control.HealthHandler(s, metrics.Handler(s, e.opts.logLost)), e.opts.Logger)
	})
	return nil
}

// answer starts a server.
func (e *endpoints) answer(adopted bool, start func()) {
	if adopted && e.before.Borrowed() {
		e.later = append(e.later, start)
		return
	}
	start()
}

// answerAll starts what openEndpoints has left to the daemon before.
func (e *endpoints) answerAll() {
	for _, start := range e.later {
		start()
	}
	e.later = nil
}

func adoptsHealth(before *handover.State) bool {
	return before != nil && before.Health != handover.None
}

func adoptsControl(before *handover.State) bool {
	return before != nil && before.Control != handover.None
}

func listenHealth(ctx context.Context, at netip.AddrPort, before *handover.State) (net.Listener, error) {
	if adoptsHealth(before) {
		return control.AdoptListener(before.Health)
	}
	var c net.ListenConfig
	return c.Listen(ctx, "tcp", at.String())
}

func (e *endpoints) openControl(ctx context.Context, s source, before *handover.State) error {
	if e.opts.ControlSocket == "" {
		return nil
	}
	l, err := e.listenControl(ctx, before)
	if err != nil && e.opts.MustControl {
		return err
	}
	if err != nil {
		e.opts.Logger.Warn("uvxlan status and peers have no answer", "error", err)
		return nil
	}
	e.answer(adoptsControl(before), func() { e.control = control.Serve(l, control.Handler(s, s), e.opts.Logger) })
	return nil
}

// listenControl notes where the socket is, which stays when the daemon is killed.
func (e *endpoints) listenControl(ctx context.Context, before *handover.State) (*control.Socket, error) {
	path, err := filepath.Abs(e.opts.ControlSocket)
	if err != nil {
		return nil, fmt.Errorf("open control socket: %w", err)
	}
	if err := hoststate.Update(e.opts.StateDir, func(s *hoststate.State) { s.ControlSocket = path }); err != nil {
		return nil, err
	}
	if adoptsControl(before) {
		return control.Adopt(before.Control, path)
	}
	return control.Listen(ctx, path)
}

// describe adds to a state where this daemon answers. The descriptors are the caller's.
func (e *endpoints) describe(to *handover.State) (err error) {
	if e.health != nil {
		to.Health, err = e.health.Descriptor()
	}
	if e.control != nil && err == nil {
		if to.ControlSocket, err = filepath.Abs(e.opts.ControlSocket); err == nil {
			to.ControlFile = fileID(to.ControlSocket)
			to.Control, err = e.control.Descriptor()
		}
	}
	return err
}

// close ends every answer and removes the socket, or hands over what listens if
// after isn't nil. A daemon before that still works keeps it.
func (e *endpoints) close(after *handover.State) {
	var errs []error
	for _, c := range []struct {
		server *control.Server
		at     func(*handover.State) *int
	}{
		{e.health, func(after *handover.State) *int { return &after.Health }},
		{e.control, func(after *handover.State) *int { return &after.Control }},
	} {
		if c.server == nil {
			continue
		}
		if after != nil || e.before.Borrowed() {
			fd, err := c.server.HandOver()
			errs = append(errs, err)
			if after != nil {
				*c.at(after) = fd
			}
		}
		errs = append(errs, c.server.Close())
	}
	if err := errors.Join(errs...); err != nil {
		e.opts.Logger.Warn("close health port and control socket", "error", err)
	}
}

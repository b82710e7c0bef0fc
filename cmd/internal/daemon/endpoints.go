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
	health  *control.Server // nil if there is none, as with socket
	control *control.Server
}

// source is what the endpoints tell of.
type source interface {
	metrics.Source
	control.Leases
}

// openEndpoints starts answering on the health port and the control socket, as
// far as the options want them. Those of the daemon before are taken over.
func openEndpoints(ctx context.Context, o Options, s source, before *handover.State) (*endpoints, error) {
	e := &endpoints{opts: o}
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
	e.health = control.Serve(l, control.HealthHandler(s, metrics.Handler(s, e.opts.logLost)), e.opts.Logger)
	return nil
}

func listenHealth(ctx context.Context, at netip.AddrPort, before *handover.State) (net.Listener, error) {
	if before != nil && before.Health != handover.None {
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
	e.control = control.Serve(l, control.Handler(s, s), e.opts.Logger)
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
	if before != nil && before.Control != handover.None {
		return control.Adopt(before.Control, path)
	}
	return control.Listen(ctx, path)
}

// close ends every answer and removes the socket, or hands over what listens if
// after isn't nil.
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
		if after != nil {
			var err error
			*c.at(after), err = c.server.HandOver()
			errs = append(errs, err)
		}
		errs = append(errs, c.server.Close())
	}
	if err := errors.Join(errs...); err != nil {
		e.opts.Logger.Warn("close health port and control socket", "error", err)
	}
}

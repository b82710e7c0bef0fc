package daemon

import (
	"context"
	"errors"
	"fmt"
	"net"
	"path/filepath"

	"golang.org/x/sys/unix"

	"uvxlan/cmd/internal/control"
	"uvxlan/cmd/internal/hoststate"
	"uvxlan/cmd/internal/metrics"
)

// endpoints are where the daemon tells how it is.
type endpoints struct {
	opts    Options
	servers []*control.Server
}

// openEndpoints starts answering on the health port and the control socket, as
// far as the options want them.
func openEndpoints(ctx context.Context, o Options, s metrics.Source) (*endpoints, error) {
	e := &endpoints{opts: o}
	if err := e.openHealth(ctx, s); err != nil {
		return nil, err
	}
	if err := e.openControl(ctx, s); err != nil {
		e.close()
		return nil, err
	}
	return e, nil
}

func (e *endpoints) openHealth(ctx context.Context, s metrics.Source) error {
	if e.opts.Health.Port() == 0 {
		return nil
	}
	var c net.ListenConfig
	l, err := c.Listen(ctx, "tcp", e.opts.Health.String())
	if errors.Is(err, unix.EADDRINUSE) {
		return fmt.Errorf("open health port: %w: set another -healthz-port", err)
	}
	if err != nil {
		return fmt.Errorf("open health port: %w", err)
	}
	e.opts.Logger.Info("answers /healthz, /readyz and /metrics", "address", l.Addr())
	e.servers = append(e.servers, control.Serve(l, control.HealthHandler(s, metrics.Handler(s)), e.opts.Logger))
	return nil
}

func (e *endpoints) openControl(ctx context.Context, s control.Source) error {
	if e.opts.ControlSocket == "" {
		return nil
	}
	l, err := e.listenControl(ctx)
	if err != nil && e.opts.MustControl {
		return err
	}
	if err != nil {
		e.opts.Logger.Warn("uvxlan status and peers have no answer", "error", err)
		return nil
	}
	e.servers = append(e.servers, control.Serve(l, control.Handler(s), e.opts.Logger))
	return nil
}

// listenControl notes where the socket is, which stays when the daemon is killed.
func (e *endpoints) listenControl(ctx context.Context) (*control.Socket, error) {
	path, err := filepath.Abs(e.opts.ControlSocket)
	if err != nil {
		return nil, fmt.Errorf("open control socket: %w", err)
	}
	if err := hoststate.Update(e.opts.StateDir, func(s *hoststate.State) { s.ControlSocket = path }); err != nil {
		return nil, err
	}
	return control.Listen(ctx, path)
}

// close ends every answer and removes the socket.
func (e *endpoints) close() {
	var errs []error
	for _, s := range e.servers {
		errs = append(errs, s.Close())
	}
	if err := errors.Join(errs...); err != nil {
		e.opts.Logger.Warn("close health port and control socket", "error", err)
	}
}

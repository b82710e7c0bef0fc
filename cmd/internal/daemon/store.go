package daemon

import (
	"context"
	"errors"
	"time"

	"uvxlan/cmd/internal/handover"
)

// askTime is how long systemd may take to say whether this is a restart.
const askTime = 2 * time.Second

// store waits until the daemon is told to stop, and returns the state that it has given
// to systemd for the next process; nil if there won't be one.
func (s *service) store(ctx context.Context, r *reloader) *handover.State {
	var done chan<- struct{}
	select {
	case done = <-r.told:
	case <-ctx.Done():
		return nil
	}
	defer close(done)
	ctx, cancel := context.WithTimeout(ctx, askTime)
	defer cancel()
	switch err := handover.CanStore(ctx); {
	case errors.Is(err, handover.ErrNotStored):
		return nil
	case err != nil:
		s.opts.Logger.Warn("if this is a restart, packets stop", "error", err)
		return nil
	}
	o := &offerer{service: s, reloader: r}
	e, err := o.Describe()
	if err != nil {
		s.opts.Logger.Warn("packets stop until the daemon has started again", "error", err)
		return nil
	}
	e.GiveAway()
	if err := o.Release(e); err != nil {
		s.opts.Logger.Warn("packets stop until the daemon has started again", "error", err)
		o.Abandon(e)
		return nil
	}
	if err := e.Store(); err != nil {
		s.opts.Logger.Error("packets stop until the daemon has started again", "error", err)
		return e
	}
	s.opts.Logger.Info("restart: packets go by the fast path, or wait")
	return e
}

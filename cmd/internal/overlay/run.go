package daemon

import (
	"context"
	"errors"
	"time"

	"uvxlan/tunnel"
)

// run waits for the first snapshot of leases, brings the device up, calls ready
// and moves packets until ctx ends. When the device or a socket is taken away
// under it, it makes them again, with the same peers.
func (v *overlay) run(ctx context.Context, ready func() error) error {
	select {
	case <-v.loaded:
	case <-ctx.Done():
		return nil
	}
	var again backoff
	var err error
	if v.before == nil {
		err = v.raise()
	}
	if gone(err) {
		err = v.remake(ctx, &again, err)
	}
	if err == nil {
		v.setDown(nil)
		err = ready()
	}
	if err == nil && v.before != nil {
		err = v.replaceStandby()
	}
	if err == nil && v.direct == tunnel.DirectSocket {
		defer v.filter.follow(ctx)()
	}
	for err == nil && ctx.Err() == nil {
		since := time.Now()
		err = v.router.Run(ctx)
		if v.isHanded() {
			<-ctx.Done()
			return nil
		}
		if time.Since(since) > steadyAfter {
			again.reset()
		}
		if gone(err) {
			err = v.remake(ctx, &again, err)
		}
	}
	return err
}

// gone tells whether a new device and new sockets may help.
func gone(err error) bool {
	return errors.Is(err, tunnel.ErrDeviceGone) || errors.Is(err, tunnel.ErrUnderlayGone)
}

// remake makes the device and the sockets again and tries until that works or
// ctx ends. Each kind of failure is logged once.
func (v *overlay) remake(ctx context.Context, b *backoff, cause error) error {
	v.log.Error("making the device and the sockets again", "name", v.name, "error", cause)
	v.setDown(cause)
	told := map[string]bool{}
	for {
		if err := b.wait(ctx); err != nil {
			return err
		}
		err := v.restart()
		v.setDown(explain(err))
		if err == nil {
			return nil
		}
		if !told[err.Error()] {
			told[err.Error()] = true
			v.log.Error("it will be tried again", "name", v.name, "error", explain(err))
		}
	}
}

func (v *overlay) restart() error {
	if err := v.router.Close(); err != nil {
		v.log.Warn("close the old router", "error", err)
	}
	if err := v.open(); err != nil {
		return err
	}
	if err := v.start(v.own); err != nil {
		return err
	}
	return v.raise()
}

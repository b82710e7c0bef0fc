package overlay

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"uvxlan/tunnel/device"
	"uvxlan/tunnel/link"
	"uvxlan/tunnel/underlay"
)

// retryInterval is the least time between two attempts to make the device and the
// sockets.
const retryInterval = time.Second

// Run waits for the first snapshot of leases, brings the device up, calls ready
// and moves packets until ctx ends. When the device or a socket is taken away
// under it, it makes them again, with the same peers.
func (v *Overlay) Run(ctx context.Context, ready func() error) error {
	select {
	case <-v.loaded:
	case <-ctx.Done():
		return nil
	}
	var err error
	if v.before == nil {
		err = v.raise()
	}
	if gone(err) {
		err = v.remake(ctx, err)
	}
	if err == nil {
		v.setDown(nil)
	}
	borrowed := v.before.Borrowed() // with its fast path attached
	if err == nil && !borrowed {
		err = v.useFast(v.before == nil)
	}
	if err == nil {
		err = ready()
	}
	if err == nil && v.before != nil {
		err = v.replaceStandby()
	}
	var attaching sync.WaitGroup
	defer attaching.Wait()
	if err == nil && borrowed {
		// Beside the packets, which have waited long enough.
		attaching.Go(func() { _ = v.useFast(false) })
	}
	for first := borrowed; err == nil && ctx.Err() == nil; first = false {
		if !first {
			err = v.useFast(false)
		}
		if err != nil {
			return err
		}
		router, _ := v.inForce()
		err = v.ended(router, router.Run(ctx))
		attaching.Wait()
		if v.isHanded() {
			<-ctx.Done()
			return nil
		}
		if gone(err) {
			err = v.remake(ctx, err)
		}
	}
	return err
}

// gone tells whether a new device and new sockets may help.
func gone(err error) bool {
	return errors.Is(err, device.ErrGone) || errors.Is(err, underlay.ErrGone)
}

// remake makes the device and the sockets again and tries until that works or
// ctx ends. Each kind of failure is logged once.
func (v *Overlay) remake(ctx context.Context, cause error) error {
	v.log.Error("making the device and the sockets again", "name", v.name, "error", cause)
	v.setDown(cause)
	told := map[string]bool{}
	for wait := v.untilRetry(); ; wait = retryInterval {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(wait):
		}
		v.remade = time.Now()
		made := v.way()
		err := v.remadeFor(made, v.restart())
		if err == nil {
			return nil
		}
		if !told[err.Error()] {
			told[err.Error()] = true
			v.log.Error("it will be tried again", "name", v.name, "error", err)
		}
	}
}

// remadeFor takes note of what an attempt has come to, which began when that was the
// way. Whoever moved the overlay meanwhile counts on new sockets.
func (v *Overlay) remadeFor(made way, err error) error {
	v.mu.Lock()
	if err == nil && v.wayLocked() != made {
		err = fmt.Errorf("%w: the underlay has changed meanwhile", underlay.ErrGone)
	}
	v.down = err
	v.mu.Unlock()
	v.wake(devicePart)
	return err
}

// untilRetry is nothing unless the last attempt was just now.
func (v *Overlay) untilRetry() time.Duration { return retryInterval - time.Since(v.remade) }

// restart makes the device, the sockets and the router. A foreign route in the place of
// one of ours is no reason to leave the others without them.
func (v *Overlay) restart() error {
	v.fast.Detach()
	router, _ := v.inForce()
	if err := router.Close(); err != nil {
		v.log.Warn("close the old router", "error", err)
	}
	if err := v.open(); err != nil {
		return err
	}
	if err := v.startRouter(); err != nil {
		return err
	}
	if err := v.raise(); !errors.Is(err, link.ErrRouteExists) {
		return err
	}
	return nil // the device's part tells of it
}

package daemon

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"uvxlan/cmd/internal/handover"
)

// errReloading ends what a daemon does that hands over.
var errReloading = errors.New("the daemon hands over")

// reloader waits for the order to put the program on disk into this one's place.
type reloader struct {
	opts    Options
	program string
	monitor *monitor
}

// run returns what is to be handed over, once another process carries the packets
// by it; nil when ctx ends. A program that can't take over is logged, and all goes
// on as before.
func (r *reloader) run(ctx context.Context) *handoverState {
	select {
	case <-r.monitor.isReady:
	case <-ctx.Done():
		return nil
	}
	log, n := r.opts.Logger, notifier{log: r.opts.Logger}
	for {
		select {
		case <-r.opts.Reload:
		case <-ctx.Done():
			return nil
		}
		n.send(fmt.Sprintf("RELOADING=1\nMONOTONIC_USEC=%d", monotonic().Microseconds()))
		e, err := r.attempt(ctx)
		if err == nil {
			return e
		}
		log.Error("reload refused, this program goes on", "error", err)
		n.send("READY=1")
	}
}

// monotonic is the clock that systemd compares with.
func monotonic() time.Duration {
	var now unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_MONOTONIC, &now) // can't fail
	return time.Duration(now.Nano())
}

// attempt starts a standby and has it carry the packets.
func (r *reloader) attempt(ctx context.Context) (*handoverState, error) {
	if r.opts.EmbeddedEtcd {
		return nil, errors.New("the etcd in this process can't be handed over: restart the daemon instead")
	}
	p := r.monitor.parts()
	if !p.health.Lease.Subnet.IsValid() {
		return nil, errors.New("the host has no lease")
	}
	e := newHandover(p, r.monitor.started)
	if err := p.network.handOver(e); err != nil {
		return nil, err
	}
	text, err := e.encode()
	if err != nil {
		return nil, err
	}
	begin := time.Now()
	if e.standby, err = handover.Start(ctx, r.program, text, e.tunnelDescriptors()); err != nil {
		return nil, err
	}
	ready := time.Now()
	since, err := p.network.release()
	if err != nil {
		err = errors.Join(err, e.stopStandby())
		e.standby.Reap()
		return nil, err
	}
	// A standby that has died is noticed again when it is stopped; there is
	// nobody else now.
	if err := e.standby.Go(); err != nil {
		r.opts.Logger.Error("packets wait until the new program is up", "error", err)
	}
	r.opts.Logger.Info("reload: the program on disk stands by and carries the packets", "program", r.program,
		"started_in", ready.Sub(begin).Round(time.Millisecond), "paused", time.Since(since))
	return e, nil
}

// exec becomes the program on disk. It returns only when that fails.
func (e *handoverState) exec(t *handover.Termination, program string) error {
	if e.lock != nil {
		e.Lock = e.lock.Descriptor()
	}
	text, err := e.encode()
	if err != nil {
		return err
	}
	return handover.Exec(t, program, text, e.descriptors(), e.standby)
}

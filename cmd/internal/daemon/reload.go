package daemon

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"uvxlan/cmd/internal/handover"
	"uvxlan/cmd/internal/hoststate"
)

// errReloading ends what a daemon does that hands over.
var errReloading = errors.New("the daemon hands over")

// reloader waits for the order to put the program on disk into this one's place.
type reloader struct {
	opts    Options
	program string
	monitor *monitor
	lock    *hoststate.Lock
	turn    *turn
	told    chan chan<- struct{} // has the service store its state for a restart, if there is one
}

// run returns what is to be handed over, once another process carries the packets
// by it; nil when ctx ends. A program that can't take over is logged, and all goes
// on as before.
func (r *reloader) run(ctx context.Context) *handover.State {
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
		e, err := r.alone(ctx)
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

// alone is attempt, unless another program takes over at the moment.
func (r *reloader) alone(ctx context.Context) (*handover.State, error) {
	if !r.turn.take(false) {
		return nil, errTaking
	}
	e, err := r.attempt(ctx)
	if err != nil {
		r.turn.giveBack()
	}
	return e, err
}

// describe returns what another process needs to carry the packets, with the backend
// that carries them so far.
func (m *monitor) describe(o Options) (*handover.State, backend, error) {
	if o.EmbeddedEtcd {
		return nil, nil, errors.New("the etcd in this process can't be handed over: restart the daemon instead")
	}
	p := m.parts()
	if !p.health.Lease.Subnet.IsValid() {
		return nil, nil, errors.New("the host has no lease")
	}
	e := handover.NewState()
	e.Started, e.Interface, e.Config, e.Own = m.started, p.ext, p.config, p.health.Lease
	return e, p.network, p.network.HandOver(e)
}

// attempt starts a standby and has it carry the packets.
func (r *reloader) attempt(ctx context.Context) (*handover.State, error) {
	e, network, err := r.monitor.describe(r.opts)
	if err != nil {
		return nil, err
	}
	begin := time.Now()
	if err := e.StartStandby(ctx, r.program); err != nil {
		return nil, err
	}
	ready := time.Now()
	since, err := network.Release(e)
	if err != nil {
		err = errors.Join(err, e.StopStandby())
		e.Reap()
		return nil, err
	}
	// A standby that has died is noticed again when it is stopped; there is
	// nobody else now.
	if err := e.Go(); err != nil {
		r.opts.Logger.Error("packets wait until the new program is up", "error", err)
	}
	r.opts.Logger.Info("reload: the program on disk stands by and carries the packets", "program", r.program,
		"started_in", ready.Sub(begin).Round(time.Millisecond), "paused", time.Since(since))
	return e, nil
}

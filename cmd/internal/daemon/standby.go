package daemon

import (
	"context"
	"errors"
	"io"
	"os"

	"uvxlan/cmd/internal/control"
	"uvxlan/cmd/internal/handover"
	"uvxlan/cmd/internal/host"
	"uvxlan/cmd/internal/hoststate"
	"uvxlan/cmd/internal/overlay"
	"uvxlan/tunnel/fastpath"
	"uvxlan/tunnel/kroute"
)

// standby carries the packets of a daemon that is becoming another program, by
// VXLAN alone and by the table as it was. It leaves the host and etcd alone, unless
// the daemon dies of it.
func standby(o Options, e *handover.State, main *handover.Main) error {
	if err := checkCapability(); err != nil {
		return err
	}
	run := func(context.Context) error { return nil }
	if e.Tunnel != nil {
		var err error
		if run, err = overlay.Standby(overlayConfig(o, e.Config, e.Interface, func(string) {}), e); err != nil {
			return err
		}
	}
	// Readiness may be of no more interest, if the daemon is ended meanwhile.
	if err := main.Ready(); err != nil {
		return ignoreEnd(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	died := make(chan bool, 1)
	go func() { // ends with the main process at the latest
		died <- main.AwaitStop()
		cancel()
	}()
	err := run(ctx)
	// What is open is closed with the process; the main process has it as well.
	if <-died {
		err = errors.Join(err, tidy(o, e))
	}
	return errors.Join(err, main.Stopped())
}

// tidy removes what a daemon removes when it ends, in place of one that a signal has
// ended while it was becoming another program. If another daemon runs by then, that
// has seen to it already.
func tidy(o Options, e *handover.State) error {
	lock, err := hoststate.Acquire(o.StateDir)
	if errors.Is(err, hoststate.ErrRunning) {
		return nil
	}
	if err != nil {
		return err
	}
	defer lock.Close()
	if e.Tunnel != nil { // host-gw's routes stay
		_, err = kroute.RemoveLeftover(kroute.Protocol, e.Config.Networks()...)
		_, stale := fastpath.RemoveStale(overlay.DeviceName(e.Config.Backend.VNI))
		err = errors.Join(err, stale)
	}
	host.RemoveBlackholes(o.StateDir, o.Logger)
	host.RestoreSysctls(o.StateDir, o.Logger)
	if stale, _ := control.Stale(context.Background(), o.ControlSocket); stale {
		err = errors.Join(err, os.Remove(o.ControlSocket))
	}
	return err
}

func ignoreEnd(err error) error {
	if errors.Is(err, io.EOF) {
		return nil
	}
	return err
}

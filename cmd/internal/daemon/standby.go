package daemon

import (
	"context"
	"errors"
	"io"

	"uvxlan/cmd/internal/handover"
	"uvxlan/tunnel"
)

// standby carries the packets of a daemon that is becoming another program, by
// VXLAN alone and by the table as it was. It leaves the host and etcd alone.
func standby(o Options, e *handoverState, main *handover.Main) error {
	if err := checkCapability(); err != nil {
		return err
	}
	run := func(context.Context) error { return nil }
	if e.Tunnel != nil {
		v := newOverlay(o, e.Config, e.Interface)
		v.direct, e.Tunnel.Sockets.Packet = tunnel.DirectOff, nil
		v.before = e
		if err := v.adopt(e); err != nil {
			return err
		}
		if err := v.start(e.Own); err != nil {
			return err
		}
		run = v.router.Run
	}
	// Readiness may be of no more interest, if the daemon is ended meanwhile.
	if err := main.Ready(); err != nil {
		return ignoreEnd(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	go func() { // ends with the main process at the latest
		main.AwaitStop()
		cancel()
	}()
	err := run(ctx)
	<-ctx.Done()
	// What is open is closed with the process; the main process has it as well.
	return errors.Join(err, main.Stopped())
}

func ignoreEnd(err error) error {
	if errors.Is(err, io.EOF) {
		return nil
	}
	return err
}

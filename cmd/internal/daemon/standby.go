package daemon

import (
	"context"
	"errors"
	"io"

	"uvxlan/cmd/internal/handover"
	"uvxlan/cmd/internal/overlay"
)

// standby carries the packets of a daemon that is becoming another program, by
// VXLAN alone and by the table as it was. It leaves the host and etcd alone.
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

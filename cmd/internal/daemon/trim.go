package daemon

import (
	"context"
	"log/slog"
	"time"

	"uvxlan/cmd/internal/footprint"
)

// settling is how long after the daemon is ready all is done that a start does.
const settling = 30 * time.Second

// trim gives back the memory of the start once the daemon is ready, and what came
// after until it has settled.
func trim(ctx context.Context, log *slog.Logger, ready <-chan struct{}) {
	settled := make(<-chan time.Time)
	for {
		select {
		case <-ctx.Done():
			return
		case <-ready:
			ready, settled = nil, time.After(settling)
		case <-settled:
			settled = nil
		}
		if err := footprint.Trim(); err != nil {
			log.Debug("memory of the start isn't given back", "error", err)
			return
		}
		if settled == nil {
			return
		}
	}
}

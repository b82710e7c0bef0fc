package daemon

import (
	"context"
	"log/slog"

	"uvxlan/cmd/internal/footprint"
)

// trim keeps small what the daemon has resident, once it is ready.
func trim(ctx context.Context, log *slog.Logger, ready <-chan struct{}) {
	select {
	case <-ctx.Done():
		return
	case <-ready:
	}
	if err := footprint.Keep(ctx); err != nil {
		log.Warn("unused memory isn't given back", "error", err)
	}
}

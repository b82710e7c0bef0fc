package daemon

import (
	"context"
	"log/slog"
	"os"
	"strings"
	"time"

	systemd "github.com/coreos/go-systemd/v22/daemon"

	"uvxlan/cmd/internal/control"
)

// statusInterval is how often the service manager hears how the daemon is,
// if that has changed.
const statusInterval = 5 * time.Second

// notifier tells systemd how the daemon is (sd_notify(3)). It is nothing where
// no service manager listens.
type notifier struct {
	log    *slog.Logger
	source control.Source
	told   string // the last status
}

func (n *notifier) send(state string) {
	if _, err := systemd.SdNotify(false, state); err != nil {
		n.log.Warn("tell the service manager", "state", state, "error", err)
	}
}

// run tells the status when it changes, and that the daemon is alive as often
// as the manager wants to hear it, until ctx ends. A status that never comes,
// because something holds a lock for good, is a daemon that isn't alive.
func (n *notifier) run(ctx context.Context, ready <-chan struct{}) {
	if os.Getenv("NOTIFY_SOCKET") == "" {
		return
	}
	limit, err := systemd.SdWatchdogEnabled(false)
	if err != nil {
		n.log.Warn("the service manager's watchdog is not served", "error", err)
	}
	interval := statusInterval
	if limit > 0 {
		interval = min(interval, limit/2)
	}
	tick := time.NewTicker(interval)
	defer tick.Stop()
	for ctx.Err() == nil {
		state := ""
		if limit > 0 {
			state = "WATCHDOG=1\n"
		}
		n.tell(state)
		select {
		case <-tick.C:
		case <-ready:
			n.tell("READY=1\n")
			ready = nil
		case <-ctx.Done():
		}
	}
}

// tell sends a state, with the status if it has changed.
func (n *notifier) tell(state string) {
	status := n.source.Status()
	if line := strings.ReplaceAll(status.Line(), "\n", " "); line != n.told {
		state, n.told = state+"STATUS="+line, line
	}
	if state != "" {
		n.send(state)
	}
}

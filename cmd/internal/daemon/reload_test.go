package daemon

import (
	"log/slog"
	"strings"
	"testing"

	"uvxlan/cmd/internal/hostgw"
)

// A reload that can't be is refused before anything is started.
func TestReloadRefused(t *testing.T) {
	o := Options{Logger: slog.New(slog.DiscardHandler), EmbeddedEtcd: true}
	m := newMonitor()
	m.set(func(m *monitor) { m.network = &hostgw.Gateway{} })
	r := &reloader{opts: o, program: "/nonexistent", monitor: m}
	if _, err := r.attempt(t.Context()); err == nil || !strings.Contains(err.Error(), "etcd in this process can't be handed over") {
		t.Error(err)
	}
	r.opts.EmbeddedEtcd = false
	if _, err := r.attempt(t.Context()); err == nil || !strings.Contains(err.Error(), "no lease") {
		t.Error(err)
	}
}

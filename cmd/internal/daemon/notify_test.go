package daemon

import (
	"context"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

// serviceManager is systemd's end of the notification socket.
func serviceManager(t *testing.T, watchdog time.Duration) (next func() string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "notify")
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	t.Setenv("NOTIFY_SOCKET", path)
	t.Setenv("WATCHDOG_PID", strconv.Itoa(os.Getpid()))
	t.Setenv("WATCHDOG_USEC", strconv.FormatInt(watchdog.Microseconds(), 10))
	return func() string {
		t.Helper()
		if err := conn.SetReadDeadline(time.Now().Add(20 * time.Second)); err != nil {
			t.Fatal(err)
		}
		buf := make([]byte, 4096)
		n, err := conn.Read(buf)
		if err != nil {
			t.Fatal(err)
		}
		return string(buf[:n])
	}
}

func TestNotify(t *testing.T) {
	const watchdog = 100 * time.Millisecond
	next := serviceManager(t, watchdog)
	m, begin := newMonitor(), time.Now()
	ctx, cancel := context.WithCancel(t.Context())
	stop, err := m.open(ctx, Options{Logger: slog.New(slog.DiscardHandler)}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if got := next(); !strings.Contains(got, "WATCHDOG=1\nSTATUS=not ready: waiting for the network configuration") {
		t.Errorf("first %q", got)
	}
	for range 3 {
		if got := next(); got != "WATCHDOG=1\n" {
			t.Errorf("then %q", got)
		}
	}
	if took := time.Since(begin); took < 3*watchdog/2 {
		t.Errorf("four signs of life within %s", took)
	}
	m.beReady()
	for next() != "READY=1\n" {
	}
	if got := next(); got != "WATCHDOG=1\n" {
		t.Errorf("after it was ready %q", got)
	}
	cancel()
	for got := next(); got != "STOPPING=1"; got = next() {
		if !strings.HasPrefix(got, "WATCHDOG=1\n") {
			t.Errorf("towards the end %q", got)
		}
	}
	stop(nil, false)
	if s := m.Status(); s.Ready || len(s.Reasons) != 1 || !strings.Contains(s.Reasons[0], "stops") {
		t.Errorf("at the end %+v", s)
	}
}

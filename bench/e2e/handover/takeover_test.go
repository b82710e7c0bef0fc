package handover_test

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"uvxlan/bench/cluster"
	"uvxlan/bench/e2e"
	"uvxlan/lease"
)

// takeOver starts another daemon on a daemon's host and waits until it has taken over.
func takeOver(t *testing.T, w *e2e.World, d *cluster.Daemon, args ...string) *cluster.Daemon {
	t.Helper()
	begin := time.Now()
	next, err := w.Cluster.Restart(t.Context(), d.Host, append(args, "-takeover")...)
	if err != nil {
		t.Fatal(err)
	}
	e2e.AwaitLine(t, next, begin, "another program has taken over")
	return next
}

// Numbered packets at 1,000 a second all arrive while new daemons take over from those
// that run, at both ends and one after the other. A daemon whose place was taken ends,
// or waits to be stopped if it is one that takes over itself.
func TestIntegrationTakeoverLosesNothing(t *testing.T) {
	for _, m := range e2e.Models() {
		t.Run(m.Name, func(t *testing.T) {
			w := e2e.NewWorld(t, "kb21", "kb22")
			e2e.StrictReversePath(t, w.Host("kb21"))
			w.Configure(m.Config)
			daemons := w.Start("kb21", "kb22")
			w.Mesh("kb21", "kb22")
			m.Await(t, w, lease.Lease{})
			flows := startFlows(t, w)
			fast := hasFastPath(t, daemons[0])
			const takeovers = 6
			for i := range takeovers {
				before := daemons[i%2]
				daemons[i%2] = takeOver(t, w, before)
				for _, f := range flows {
					f.goesOn(t)
				}
				if i >= 2 {
					signalDaemon(t, before, unix.SIGTERM) // what was started with -takeover waits for it
				}
				if err := before.Wait(); err != nil {
					t.Errorf("the daemon whose place was taken: %v", err)
				}
				if pid := e2e.AskStatus(t, daemons[i%2]).PID; pid != daemons[i%2].Process.Pid {
					t.Errorf("process %d answers on the control socket, not %d", pid, daemons[i%2].Process.Pid)
				}
			}
			allArrived(t, fmt.Sprintf("%d takeovers", takeovers), flows...)
			if now := hasFastPath(t, daemons[0]); now != fast || strings.Contains(e2e.LogOf(t, daemons[0]), "is of no use") {
				t.Errorf("the fast path was on: %t, and is now: %t, or another was attached", fast, now)
			}
			w.Mesh("kb21", "kb22")
		})
	}
}

// A daemon that can't work, or is killed before it does, leaves the one that runs at
// work. So does a connection that says something else.
func TestIntegrationTakeoverFails(t *testing.T) {
	w := e2e.NewWorld(t, "kb21", "kb22")
	kb21 := w.Host("kb21")
	d := w.Start("kb21", "kb22")[0]
	w.Mesh("kb21", "kb22")
	pings := startPings(t, w.Container("kb21").Node, w.Container("kb22").Address)
	state := e2e.SettledState(t, kb21)
	for _, c := range []struct {
		args  []string
		words string
	}{
		{[]string{"-subnet-file", "/proc/nothing/subnet.env"}, "choose a place that can be written"},
		{[]string{"-control-socket", "/proc/nothing/uvxlan.sock"}, "choose another path"},
	} {
		next, err := w.Cluster.Restart(t.Context(), kb21, append(c.args, "-takeover")...)
		if err != nil {
			t.Fatal(err)
		}
		if err := next.Wait(); err == nil || !strings.Contains(e2e.LogOf(t, next), c.words) {
			t.Errorf("%s: %v, and the log doesn't say %q", c.args, err, c.words)
		}
		pings.goesOn(t)
	}
	conn, _ := offered(t, d)
	conn.Close()
	e2e.AwaitLine(t, d, time.Time{}, "it ended before it could work")
	conn, err := net.Dial("unix", offerOf(d))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(conn, "GET / HTTP/1.1\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadAll(conn); err != nil && !errors.Is(err, unix.ECONNRESET) {
		t.Errorf("what can't be understood isn't hung up on: %v", err)
	}
	conn.Close()
	pings.goesOn(t)
	e2e.ExpectState(t, kb21, state, "after all that failed")
	takeOver(t, w, d)
	pings.goesOn(t)
	allArrived(t, "failed takeovers and one that works", pings)
}

// A daemon that is told to stop while another is about to take over goes on until that
// is done, since the packets would be nobody's. If nothing comes of it, it stops.
func TestIntegrationTakeoverStopped(t *testing.T) {
	w := e2e.NewWorld(t, "kb21", "kb22")
	w.Start("kb22")
	ownProgram(w)
	d := w.Start("kb21")[0]
	w.Mesh("kb21", "kb22")
	conn, _ := offered(t, d)
	pings := startPings(t, w.Container("kb21").Node, w.Container("kb22").Address)
	signalDaemon(t, d, unix.SIGTERM)
	pings.goesOn(t)
	pings.finish()
	select {
	case <-d.Done():
		t.Error("it stops in the middle of a takeover")
	default:
	}
	conn.Close()
	if err := d.Wait(); err != nil {
		t.Errorf("after a takeover that nothing came of: %v", err)
	}
	awaitGone(t, w, w.Host("kb21"))
}

// A daemon that is to work in another way can't go on with what is there: it has the one
// that runs end first, as a restart would. So does one that finds another configuration.
func TestIntegrationTakeoverUnlike(t *testing.T) {
	w := e2e.NewWorld(t, "kb21", "kb22")
	w.Start("kb22")
	ownProgram(w)
	d := w.Start("kb21")[0]
	w.Mesh("kb21", "kb22")
	for _, c := range []struct {
		name string
		args []string
		do   func()
	}{
		{"other settings", []string{"-workers", "1"}, func() {}},
		{"another configuration", []string{"-workers", "1"}, func() { w.Configure(e2e.HybridConfig) }},
	} {
		c.do()
		begin := time.Now()
		next, err := w.Cluster.Restart(t.Context(), d.Host, append(c.args, "-takeover")...)
		if err != nil {
			t.Fatal(err)
		}
		e2e.AwaitLine(t, next, begin, "packets stop for a moment", "works in another way")
		e2e.AwaitLine(t, next, begin, "another program starts in this one's place")
		e2e.Await(t, c.name+" is in force", func() bool {
			s, err := e2e.TryStatus(t.Context(), next)
			return err == nil && s.Ready && s.PID == next.Process.Pid
		})
		if c.name == "another configuration" {
			signalDaemon(t, d, unix.SIGTERM) // it waits for it
		}
		if err := d.Wait(); err != nil {
			t.Errorf("%s: the daemon that has ended: %v", c.name, err)
		}
		d = next
	}
	if model := e2e.AskStatus(t, d).Model; model != "vxlan, direct by socket" {
		t.Errorf("the model is %q", model)
	}
	w.Mesh("kb21", "kb22")
}

func offerOf(d *cluster.Daemon) string { return filepath.Join(d.StateDir(), "handover.sock") }

// offered asks a daemon for what it hands over, and returns the answer.
func offered(t *testing.T, d *cluster.Daemon) (net.Conn, map[string]any) {
	t.Helper()
	var conn net.Conn
	for end := time.Now().Add(e2e.Patience); ; time.Sleep(5 * time.Millisecond) {
		var err error
		if conn, err = net.Dial("unix", offerOf(d)); err == nil {
			break
		}
		if time.Now().After(end) {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() { conn.Close() })
	netns, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/net", d.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	hello := fmt.Sprintf(`{"format":1,"netns":%q}`, netns)
	if _, err := conn.Write(append(binary.BigEndian.AppendUint32(nil, uint32(len(hello))), hello...)); err != nil {
		t.Fatal(err)
	}
	if err := conn.SetReadDeadline(time.Now().Add(e2e.Patience)); err != nil {
		t.Fatal(err)
	}
	var length [4]byte
	if _, err := io.ReadFull(conn, length[:]); err != nil {
		t.Fatal(err)
	}
	text := make([]byte, binary.BigEndian.Uint32(length[:]))
	if _, err := io.ReadFull(conn, text); err != nil {
		t.Fatal(err)
	}
	var answer map[string]any
	if err := json.Unmarshal(text, &answer); err != nil {
		t.Fatal(err)
	}
	return conn, answer
}

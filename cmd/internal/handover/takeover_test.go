package handover

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"uvxlan/cmd/internal/hoststate"
	"uvxlan/tunnel/fastpath"
)

// donorOf has a state to give, with a file for each descriptor.
type donorOf struct {
	t         *testing.T
	state     func() *State
	refuse    error // of Release
	released  func()
	abandoned chan struct{}
}

// gatewayDonor gives a state without descriptors.
func gatewayDonor(t *testing.T) *donorOf {
	return &donorOf{t: t, abandoned: make(chan struct{}, 9), state: func() *State {
		e := testState(t)
		e.FastPath, e.Tunnel, e.Health, e.Control, e.Lock = nil, nil, None, None, None
		e.Config.Backend.Type = "host-gw"
		return e
	}}
}

// taker is what connects to an offer, as the taker's side says it.
func taker(t *testing.T, dir string) wire {
	t.Helper()
	conn, err := net.Dial("unix", hoststate.HandoverPath(dir))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return wire{conn.(*net.UnixConn)}
}

func (d *donorOf) Describe() (*State, error) { return d.state(), nil }

func (d *donorOf) Release(e *State) error {
	if d.released != nil {
		d.released()
	}
	if d.refuse == nil {
		e.FastPath = &fastpath.Descriptors{Maps: map[string]int{"a": named(d.t, "map a"), "b": named(d.t, "map b")}, Links: []int{named(d.t, "link")}, Layout: "1"}
	}
	return d.refuse
}

func (d *donorOf) Abandon(*State) { d.abandoned <- struct{}{} }

// named opens a file that has its name as its text.
func named(t *testing.T, name string) int {
	t.Helper()
	fd, err := memoryFile("test", []byte(name))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	return fd
}

func nameOf(t *testing.T, fd int) string {
	t.Helper()
	text := make([]byte, 64)
	n, err := unix.Pread(fd, text, 0)
	if err != nil {
		t.Errorf("descriptor %d: %v", fd, err)
	}
	return string(text[:n])
}

// offerIn runs an offer in the state directory. It returns what is given.
func offerIn(t *testing.T, dir string, d *donorOf) <-chan *State {
	t.Helper()
	given, _ := offerUntil(t.Context(), t, dir, d, slog.New(slog.DiscardHandler))
	return given
}

func offerUntil(ctx context.Context, t *testing.T, dir string, d *donorOf, log *slog.Logger) (<-chan *State, <-chan error) {
	t.Helper()
	o, err := OpenOffer(ctx, dir, log)
	if err != nil {
		t.Fatal(err)
	}
	given, ended := make(chan *State, 1), make(chan error, 1)
	go func() {
		e, err := o.Run(ctx, d)
		given <- e
		ended <- err
	}()
	t.Cleanup(func() { o.Close() })
	return given, ended
}

// Every descriptor arrives where it belongs, even if there are more than one message
// can carry.
func TestTakeOver(t *testing.T) {
	dir := t.TempDir()
	const queues = 2*maxRights + 10
	d := &donorOf{t: t, abandoned: make(chan struct{}, 9), state: func() *State {
		e := testState(t)
		e.FastPath, e.Health, e.Settings = nil, None, "/coreos.com/network"
		e.Lock, e.Control = named(t, "lock"), named(t, "control")
		e.Tunnel.Queues = nil
		for range queues {
			e.Tunnel.Queues = append(e.Tunnel.Queues, named(t, "queue"))
		}
		both, send := named(t, "both"), named(t, "send")
		e.Tunnel.Sockets.UDP[0].Receive, e.Tunnel.Sockets.UDP[0].Send = []int{both}, [][]int{{both, send}}
		e.Tunnel.Sockets.Packet = []int{named(t, "packet")}
		return e
	}}
	given := offerIn(t, dir, d)
	e, err := TakeOver(t.Context(), dir, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	if !e.Borrowed() || e.Given() || e.Settings != "/coreos.com/network" || e.Health != None {
		t.Errorf("borrowed %t, given %t, settings %q, health %d", e.Borrowed(), e.Given(), e.Settings, e.Health)
	}
	udp := e.Tunnel.Sockets.UDP[0]
	names := map[string]int{"lock": e.Lock, "control": e.Control, "both": udp.Receive[0], "send": udp.Send[0][1], "packet": e.Tunnel.Sockets.Packet[0]}
	for _, fd := range e.Tunnel.Queues {
		if name := nameOf(t, fd); name != "queue" {
			t.Errorf("a queue is %q", name)
		}
	}
	for want, fd := range names {
		if name := nameOf(t, fd); name != want {
			t.Errorf("%s is %q", want, name)
		}
	}
	if len(e.Tunnel.Queues) != queues || udp.Send[0][0] != udp.Receive[0] {
		t.Errorf("%d queues, the socket for both ways is %d and %d", len(e.Tunnel.Queues), udp.Send[0][0], udp.Receive[0])
	}
	if err := e.StopStandby(); err != nil {
		t.Fatal(err)
	}
	left := <-given
	if !left.Given() || e.Borrowed() || len(d.abandoned) > 0 {
		t.Errorf("given %t, still borrowed %t, abandoned %d times", left.Given(), e.Borrowed(), len(d.abandoned))
	}
	var fast []string
	for _, fd := range e.FastPath.All() {
		fast = append(fast, nameOf(t, fd))
	}
	if e.FastPath.Layout != "1" || !slices.Equal(fast, []string{"map a", "map b", "link"}) {
		t.Errorf("the fast path is %q, layout %q", fast, e.FastPath.Layout)
	}
	if _, err := os.Stat(hoststate.HandoverPath(dir)); !os.IsNotExist(err) {
		t.Errorf("the offer's socket is left: %v", err)
	}
	for _, fd := range e.Descriptors() {
		unix.Close(fd)
	}
}

// A daemon that won't stop goes on, and can be asked again.
func TestTakeOverRefused(t *testing.T) {
	dir := t.TempDir()
	d := gatewayDonor(t)
	d.refuse = errors.New("made again meanwhile")
	given := offerIn(t, dir, d)
	for range 2 {
		e, err := TakeOver(t.Context(), dir, slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		if err := e.StopStandby(); err == nil || !strings.Contains(err.Error(), "made again meanwhile") || !e.Borrowed() {
			t.Errorf("error %v, borrowed %t", err, e.Borrowed())
		}
		e.donor.wire.conn.Close()
		<-d.abandoned
	}
	if len(given) > 0 {
		t.Error("it was given all the same")
	}
}

// Where no daemon is there is nothing to take over; one that offers nothing is waited
// for.
func TestTakeOverNobody(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state")
	log := slog.New(slog.DiscardHandler)
	if e, err := TakeOver(t.Context(), dir, log); e != nil || err != nil {
		t.Errorf("%v, %v", e, err)
	}
	held, err := hoststate.Acquire(dir)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if _, err := TakeOver(ctx, dir, log); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("beside one that offers nothing: %v", err)
	}
	time.AfterFunc(20*time.Millisecond, func() { held.Close() })
	if e, err := TakeOver(t.Context(), dir, log); e != nil || err != nil {
		t.Errorf("after it has ended: %v, %v", e, err)
	}
}

// gate holds up an offer when it has given the state, until the test goes on.
type gate struct {
	slog.Handler
	open chan struct{}
}

func (g gate) Handle(ctx context.Context, r slog.Record) error {
	if strings.Contains(r.Message, "about to take over") {
		<-g.open
	}
	return g.Handler.Handle(ctx, r)
}

// What isn't "stop", or comes from a process that has ended, doesn't stop the daemon.
// Neither is told twice.
func TestOfferGoesOn(t *testing.T) {
	dir, d := t.TempDir(), gatewayDonor(t)
	d.released = func() { t.Error("the daemon was stopped") }
	var log bytes.Buffer
	ctx, cancel := context.WithCancel(t.Context())
	g := gate{slog.NewTextHandler(&log, nil), make(chan struct{})}
	_, ended := offerUntil(ctx, t, dir, d, slog.New(g))
	hello := message{Format: stateFormat, Netns: netns()}
	for _, c := range []struct {
		hello, order message
		words        string
		closes       bool
	}{
		{hello, message{Version: "of a later kind"}, "orders what this program doesn't know", false},
		{hello, message{Version: "of a later kind"}, "orders what this program doesn't know", false},
		{hello, message{Stop: true}, "", true},
		{message{Format: stateFormat, Netns: "net:[1]"}, message{}, "another network namespace", false},
		{message{Format: 99, Netns: netns()}, message{}, "format 99", false},
	} {
		w := taker(t, dir)
		if err := w.send(c.hello); err != nil {
			t.Fatal(err)
		}
		answer, fds, err := w.receive(t.Context(), messageTime)
		closeAll(fds)
		if err == nil && answer.Error == "" {
			err = w.send(c.order)
			if c.closes {
				w.conn.Close()
			}
			g.open <- struct{}{}
			if err == nil && !c.closes {
				answer, fds, err = w.receive(t.Context(), messageTime)
				closeAll(fds)
			}
			<-d.abandoned
		}
		if err != nil || !strings.Contains(answer.Error, c.words) {
			t.Errorf("%+v: answered %q, %v", c.order, answer.Error, err)
		}
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	if n := strings.Count(log.String(), "doesn't know"); n != 1 {
		t.Errorf("it is told %d times: %s", n, log.String())
	}
}

// A taker that ends after the daemon has stopped, and before it is told so, leaves
// nobody at work. The daemon is told.
func TestOfferForsaken(t *testing.T) {
	dir, d := t.TempDir(), gatewayDonor(t)
	w := wire{}
	d.released = func() { w.conn.Close() }
	_, ended := offerUntil(t.Context(), t, dir, d, slog.New(slog.DiscardHandler))
	w = taker(t, dir)
	if err := w.send(message{Format: stateFormat, Netns: netns()}); err != nil {
		t.Fatal(err)
	}
	if _, fds, err := w.receive(t.Context(), messageTime); err != nil || len(fds) != 1 {
		t.Fatalf("%d descriptors, %v", len(fds), err)
	}
	if err := w.send(message{Stop: true}); err != nil {
		t.Fatal(err)
	}
	if err := <-ended; !errors.Is(err, ErrForsaken) {
		t.Errorf("it ends with %v", err)
	}
}

// An offer ends with its context, whoever is connected. A taker hears no end as long as
// the process is there, or both would remove and make the same things.
func TestOfferEnds(t *testing.T) {
	for name, says := range map[string]func(w wire) error{
		"silent": func(wire) error { return nil },
		"about to take over": func(w wire) error {
			if err := w.send(message{Format: stateFormat, Netns: netns()}); err != nil {
				return err
			}
			_, fds, err := w.receive(t.Context(), messageTime)
			closeAll(fds)
			return err
		},
	} {
		dir, d := t.TempDir(), gatewayDonor(t)
		ctx, cancel := context.WithCancel(t.Context())
		_, ended := offerUntil(ctx, t, dir, d, slog.New(slog.DiscardHandler))
		w := taker(t, dir)
		if err := says(w); err != nil {
			t.Fatal(err)
		}
		begin := time.Now()
		cancel()
		if err := <-ended; err != nil || time.Since(begin) >= messageTime {
			t.Errorf("%s: %v, or the end waits for a message", name, err)
		}
		for range 3 {
			runtime.GC()
		}
		if name != "silent" && w.hasEnded() {
			t.Error("it hears of an end")
		}
	}
}

// A state directory whose socket can't have a name has no daemon that could be replaced.
func TestTakeOverLongDirectory(t *testing.T) {
	dir := filepath.Join(t.TempDir(), strings.Repeat("x", 120))
	if e, err := TakeOver(t.Context(), dir, slog.New(slog.DiscardHandler)); e != nil || err != nil {
		t.Errorf("%v, %v", e, err)
	}
}

// Descriptors of systemd's that are of no use don't stay open: one may be a lock.
func TestReceiveStoredOfNoUse(t *testing.T) {
	if os.Getenv("LISTEN_FDS") == "" {
		c := exec.CommandContext(t.Context(), "sh", "-c", `LISTEN_PID=$$ exec "$0" -test.run '^TestReceiveStoredOfNoUse$'`, os.Args[0])
		c.Env = append(os.Environ(), "LISTEN_FDS=3", "LISTEN_FDNAMES=uvxlan-7:uvxlan-7:uvxlan-8", "NOTIFY_SOCKET=")
		for range 3 {
			c.ExtraFiles = append(c.ExtraFiles, os.NewFile(uintptr(named(t, "file")), "file"))
		}
		if out, err := c.CombinedOutput(); err != nil {
			t.Errorf("%v: %s", err, out)
		}
		return
	}
	if e, err := receiveStored(); e != nil || !errors.Is(err, ErrStored) {
		t.Errorf("%v, %v", e, err)
	}
	for fd := 3; fd < 6; fd++ {
		if target, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", fd)); err == nil && strings.Contains(target, "memfd:test") {
			t.Errorf("descriptor %d is %s", fd, target)
		}
	}
}

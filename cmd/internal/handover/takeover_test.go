package handover

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
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
	abandoned chan struct{}
}

func (d *donorOf) Describe() (*State, error) { return d.state(), nil }

func (d *donorOf) Release(e *State) error {
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
	o, err := OpenOffer(t.Context(), dir, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	given := make(chan *State, 1)
	go func() {
		e, _ := o.Run(t.Context(), d)
		given <- e
	}()
	t.Cleanup(func() { o.Close() })
	return given
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
	d := &donorOf{t: t, abandoned: make(chan struct{}, 9), refuse: errors.New("made again meanwhile"), state: func() *State {
		e := testState(t)
		e.FastPath, e.Tunnel, e.Health, e.Control, e.Lock = nil, nil, None, None, None
		e.Config.Backend.Type = "host-gw"
		return e
	}}
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

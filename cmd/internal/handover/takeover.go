package handover

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"uvxlan/cmd/internal/hoststate"
	"uvxlan/cmd/internal/version"
	"uvxlan/tunnel/fastpath"
)

// quitTime is how long a daemon may take to end.
const quitTime = 30 * time.Second

// retryTime is how often a process tries to take over that can't yet.
const retryTime = 250 * time.Millisecond

// TakeOver returns the state of the daemon that has the state directory, which goes on
// to work until [State.StopStandby]; nil if no daemon has it. It waits, and says why,
// while the daemon can't be replaced: until that can be or the daemon has ended.
func TakeOver(ctx context.Context, dir string, log *slog.Logger) (*State, error) {
	for told := ""; ; {
		e, err := takeOver(ctx, dir)
		if err == nil {
			return e, nil
		}
		if text := err.Error(); text != told {
			told = text
			log.Warn("waiting to take over from the daemon that runs", "error", err)
		}
		select {
		case <-time.After(retryTime):
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

func takeOver(ctx context.Context, dir string) (*State, error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", hoststate.HandoverPath(dir))
	if err != nil {
		return nil, awaitNobody(dir, err)
	}
	w := wire{conn.(*net.UnixConn)}
	e, err := ask(ctx, w)
	if err != nil {
		return nil, inLine(err, conn.Close())
	}
	return e, nil
}

// awaitNobody returns an error as long as a daemon runs that offers nothing, as cause
// says.
func awaitNobody(dir string, cause error) error {
	switch lock, err := hoststate.Acquire(dir); {
	case errors.Is(err, hoststate.ErrRunning):
		return fmt.Errorf("it offers nothing: it isn't ready yet, or is too old a version, which must be stopped: %w (%w)", err, cause)
	case err == nil:
		return lock.Close()
	}
	return nil // the start tells
}

// ask has the daemon give its state.
func ask(ctx context.Context, w wire) (*State, error) {
	if err := w.send(message{Format: stateFormat, Version: version.String(), PID: os.Getpid(), Netns: netns()}); err != nil {
		return nil, err
	}
	m, fds, err := w.receive(ctx, messageTime)
	if err != nil {
		return nil, err
	}
	if m.Error != "" || len(fds) == 0 {
		closeAll(fds)
		return nil, errors.New(m.Error)
	}
	text, err := readMemoryFile(fds[0])
	fds = fds[1:]
	var e *State
	if err == nil {
		e, err = ReadState(text)
	}
	if err == nil {
		err = e.renumber(fds)
	}
	if err != nil {
		closeAll(fds)
		return nil, err
	}
	e.donor = &donor{wire: w}
	return e, nil
}

// renumber gives the state the descriptors as this process has them, in the order of
// Descriptors.
func (e *State) renumber(fds []int) error {
	theirs := e.Descriptors()
	if len(fds) != len(theirs) {
		return fmt.Errorf("%d descriptors came, of %d", len(fds), len(theirs))
	}
	here := map[int]int{None: None}
	for i, fd := range theirs {
		here[fd] = fds[i]
	}
	e.Lock, e.Health, e.Control = here[e.Lock], here[e.Health], here[e.Control]
	if e.Tunnel == nil {
		return nil
	}
	all := [][]int{e.Tunnel.Queues, e.Tunnel.Sockets.Packet}
	for i := range e.Tunnel.Sockets.UDP {
		all = append(append(all, e.Tunnel.Sockets.UDP[i].Receive), e.Tunnel.Sockets.UDP[i].Send...)
	}
	for _, some := range all {
		for i, fd := range some {
			some[i] = here[fd]
		}
	}
	return nil
}

// netns names this process's network namespace.
func netns() string {
	name, err := os.Readlink("/proc/self/ns/net")
	if err != nil {
		return ""
	}
	return name
}

// donor is the daemon that works until this process does.
type donor struct{ wire wire }

// errRefusedStop says that the daemon goes on.
var errRefusedStop = errors.New("the daemon that runs goes on")

// stop ends the daemon's work. It returns the descriptors by which a fast path stays
// attached.
func (d *donor) stop() (*fastpath.Descriptors, error) {
	err := d.wire.send(message{Stop: true})
	var m message
	var fds []int
	if err == nil {
		m, fds, err = d.wire.receive(context.Background(), messageTime)
	}
	switch {
	case errors.Is(err, io.EOF), errors.Is(err, unix.EPIPE), errors.Is(err, unix.ECONNRESET):
		return nil, nil // it has ended, and nobody else works
	case err == nil && m.Error != "":
		err = fmt.Errorf("%w: %s", errRefusedStop, m.Error)
	case err == nil && len(fds) != len(m.FastPath.All()):
		err = fmt.Errorf("%d descriptors of the fast path came, of %d", len(fds), len(m.FastPath.All()))
	}
	if err != nil {
		closeAll(fds)
		return nil, fmt.Errorf("take over: %w", err)
	}
	return m.FastPath.Renumber(fds), nil
}

// Dismiss has the daemon before end, with all that it has on the host, and waits for
// that.
func (e *State) Dismiss(ctx context.Context) error {
	if !e.Borrowed() {
		return nil
	}
	w := e.donor.wire
	err := w.send(message{Quit: true})
	var fds []int
	if err == nil {
		_, fds, err = w.receive(ctx, quitTime)
	}
	closeAll(fds)
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case err == nil, errors.Is(err, io.EOF), errors.Is(err, unix.EPIPE), errors.Is(err, unix.ECONNRESET):
		return nil
	}
	return fmt.Errorf("end the daemon that runs: %w", err)
}

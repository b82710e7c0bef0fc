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

	"uvxlan/cmd/internal/control"
	"uvxlan/cmd/internal/hoststate"
	"uvxlan/cmd/internal/version"
)

// messageTime bounds the wait for a message that the other process owes.
const messageTime = 10 * time.Second

// Offer is a daemon's offer of its place to another process, in the state directory.
// The other process starts beside the daemon, and the daemon works until the other
// is ready to: so a taker that fails changes nothing.
type Offer struct {
	listener *control.Socket
	log      *slog.Logger
}

// OpenOffer offers this daemon's place. The caller has the state directory's lock.
func OpenOffer(ctx context.Context, dir string, log *slog.Logger) (*Offer, error) {
	l, err := control.Listen(ctx, hoststate.HandoverPath(dir))
	if err != nil {
		return nil, fmt.Errorf("offer this daemon's place: %w", err)
	}
	return &Offer{listener: l, log: log}, nil
}

// Close withdraws the offer. A taker that is at it isn't told: it finds out by this
// process's end.
func (o *Offer) Close() error { return o.listener.Close() }

// Giver is the daemon whose place is offered.
type Giver interface {
	// Describe returns what a taker needs to work, or why the daemon can't be replaced
	// at the moment.
	Describe() (*State, error)
	// Release stops the daemon's work in favour of the taker. After an error the
	// daemon goes on.
	Release(e *State) error
	// Abandon says that nothing comes of what Describe returned.
	Abandon(e *State)
}

// ErrDismissed says that another process has told this one to end, since it works in
// another way.
var ErrDismissed = errors.New("another program starts in this one's place")

// Run serves takers, one after the other, and returns the state that was given once
// one of them has taken over; nil when ctx ends. The error is an [ErrDismissed].
func (o *Offer) Run(ctx context.Context, g Giver) (*State, error) {
	stop := context.AfterFunc(ctx, func() { _ = o.listener.Close() })
	defer stop()
	for ctx.Err() == nil {
		conn, err := o.listener.Accept()
		if errors.Is(err, net.ErrClosed) {
			return nil, nil
		}
		if err != nil {
			o.log.Warn("hear of a program that takes over", "error", err)
			select { // out of descriptors, perhaps
			case <-time.After(time.Second):
			case <-ctx.Done():
			}
			continue
		}
		e, err := o.serve(ctx, wire{conn.(*net.UnixConn)}, g)
		switch {
		case err == nil:
			return e, nil // the connection ends with this process
		case ctx.Err() != nil:
			return nil, nil // likewise: the taker must not work before this daemon has ended
		case errors.Is(err, ErrDismissed):
			return nil, err // likewise
		case !errors.Is(err, errNobody):
			o.log.Error("another program could not take over, this one goes on", "error", err)
		}
		conn.Close()
	}
	return nil, nil
}

// errNobody says that who connected only looked whether somebody listens.
var errNobody = errors.New("nobody takes over")

// serve gives the daemon's place to one taker.
func (o *Offer) serve(ctx context.Context, w wire, g Giver) (given *State, err error) {
	hello, fds, err := w.receive(time.Now().Add(messageTime))
	closeAll(fds)
	if errors.Is(err, io.EOF) {
		return nil, errNobody
	}
	if err != nil {
		return nil, err
	}
	e, err := g.Describe()
	if err != nil {
		return nil, o.refuse(w, err)
	}
	defer func() {
		if err != nil {
			g.Abandon(e)
		}
	}()
	e.taker = true
	if err := o.give(w, e); err != nil {
		return nil, err
	}
	o.log.Info("another program is about to take over", "pid", hello.PID, "version", hello.Version)
	interrupt := context.AfterFunc(ctx, func() { _ = w.conn.SetReadDeadline(time.Unix(1, 0)) })
	defer interrupt()
	order, fds, err := w.receive(time.Time{})
	if err != nil {
		return nil, fmt.Errorf("it ended before it could work: %w", err)
	}
	closeAll(fds)
	if order.Quit {
		return nil, ErrDismissed
	}
	if err := g.Release(e); err != nil {
		return nil, o.refuse(w, err)
	}
	// The taker's own offer has the same place.
	if err := o.listener.Close(); err != nil {
		o.log.Warn("withdraw the offer", "error", err)
	}
	if err := w.send(message{FastPath: e.FastPath}, e.FastPath.All()...); err != nil {
		o.log.Error("packets wait until the other program finds out that this one has ended", "error", err)
	}
	return e, nil
}

func (o *Offer) refuse(w wire, err error) error {
	return inLine(err, w.send(message{Error: err.Error()}))
}

// give sends the state with its descriptors.
func (o *Offer) give(w wire, e *State) error {
	text, err := e.Encode()
	if err != nil {
		return err
	}
	file, err := memoryFile("state", text)
	if err != nil {
		return err
	}
	defer unix.Close(file)
	if err := w.conn.SetWriteDeadline(time.Now().Add(messageTime)); err != nil {
		return err
	}
	return w.send(message{Format: e.Format, Version: version.String(), PID: os.Getpid()}, append([]int{file}, e.Descriptors()...)...)
}

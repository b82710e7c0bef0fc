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

// ErrForsaken says that the process that took over has ended before it worked. Nobody
// works.
var ErrForsaken = errors.New("the program that took over has ended")

// Run serves takers, one after the other, and returns the state that was given once
// one of them has taken over; nil when ctx ends. The error is an
// [ErrDismissed] or an [ErrForsaken].
func (o *Offer) Run(ctx context.Context, g Giver) (*State, error) {
	defer context.AfterFunc(ctx, func() { _ = o.listener.Close() })()
	told := "" // takers try again and again
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
		w := wire{conn.(*net.UnixConn)}
		e, err := o.serve(ctx, w, g)
		switch {
		case err == nil, errors.Is(err, ErrDismissed):
			w.keepOpen() // until then the taker waits
			return e, err
		case errors.Is(err, ErrForsaken):
			return nil, err
		case ctx.Err() != nil:
			w.keepOpen()
			return nil, nil
		case !errors.Is(err, errNobody) && err.Error() != told:
			told = err.Error()
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
	hello, fds, err := w.receive(ctx, messageTime)
	closeAll(fds)
	switch {
	case errors.Is(err, io.EOF):
		return nil, errNobody
	case err != nil:
		return nil, fmt.Errorf("hear of it: %w", err)
	case hello.Format != stateFormat:
		return nil, o.refuse(w, fmt.Errorf("it (version %s) takes states of format %d, and this is version %s with format %d: stop this one first",
			hello.Version, hello.Format, version.String(), stateFormat))
	case hello.Netns != netns():
		return nil, o.refuse(w, fmt.Errorf("it has another network namespace (%s, not %s)", hello.Netns, netns()))
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
	order, fds, err := w.receive(ctx, 0)
	closeAll(fds)
	switch {
	case err != nil:
		return nil, fmt.Errorf("it ended before it could work: %w", err)
	case w.hasEnded():
		return nil, errors.New("it ended before it was heard")
	case order.Quit:
		return nil, ErrDismissed
	case !order.Stop:
		return nil, o.refuse(w, errors.New("it orders what this program doesn't know"))
	}
	if err := g.Release(e); err != nil {
		return nil, o.refuse(w, err)
	}
	// The taker's own offer has the same place.
	if err := o.listener.Close(); err != nil {
		o.log.Warn("withdraw the offer", "error", err)
	}
	err = w.send(message{FastPath: e.FastPath}, e.FastPath.All()...)
	if errors.Is(err, unix.EPIPE) || errors.Is(err, unix.ECONNRESET) {
		return nil, fmt.Errorf("%w: %w", ErrForsaken, err)
	}
	if err != nil {
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
	return w.send(message{Format: e.Format, Version: version.String(), PID: os.Getpid()}, append([]int{file}, e.Descriptors()...)...)
}

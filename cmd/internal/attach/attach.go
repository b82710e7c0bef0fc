// Package attach keeps a router's fast path attached where it may be: where the
// operator wants one, the kernel and the underlay can have it, and the host's
// firewall rules do nothing with the datagrams that it takes past them.
package attach

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	"uvxlan/cmd/internal/control"
	"uvxlan/cmd/internal/host"
	"uvxlan/tunnel"
	"uvxlan/tunnel/fastpath"
)

// Mode is whether a fast path is wanted.
type Mode string

// The modes.
const (
	// Auto wants it where it can be had and bypasses no rule of the host's firewall
	// that would do something with its datagrams.
	Auto Mode = "auto"
	// On wants it, whatever the firewall's rules say; a start without it is refused.
	On Mode = "on"
	// Off wants none.
	Off Mode = "off"
)

// ParseMode reads a mode. An empty text is Auto.
func ParseMode(text string) (Mode, error) {
	switch m := Mode(text); m {
	case "":
		return Auto, nil
	case Auto, On, Off:
		return m, nil
	}
	return "", fmt.Errorf("%q: must be auto, on or off", text)
}

// ErrNone says that there is no fast path where the operator insists on one.
var ErrNone = errors.New("no fast path")

// Path is a fast path that is attached.
type Path interface {
	// Run follows the host until ctx ends. An error means that the path has become
	// of no use.
	Run(ctx context.Context) error
	// Describe tells of it.
	Describe() control.FastPath
	// Carries tells whether it carries a peer's packets, and else why not.
	Carries(p tunnel.Peer) (bool, string)
	// Release ends its work for the router and leaves it attached: it returns the
	// descriptors that keep it so, which are the caller's. After an error it is as it
	// was.
	Release() (*fastpath.Descriptors, error)
	// Close detaches it.
	Close() error
}

// Config is what a Keeper must know.
type Config struct {
	Mode Mode
	// Attach attaches a fast path to the router, with what another process has left
	// attached, if that isn't nil. It takes the descriptors, whatever becomes of it.
	Attach func(r *tunnel.Router, inherited *fastpath.Descriptors) (Path, error)
	// Discard detaches what another process has left attached, and closes its
	// descriptors.
	Discard func(inherited *fastpath.Descriptors) error
	// Hazards tells in words which rules of the host's firewall the fast path would
	// bypass.
	Hazards func() ([]string, error)
	// Wake asks for a look at the part of that name.
	Wake func(part string)
	// Interval is the time after which the host is looked at again.
	Interval time.Duration
	Logger   *slog.Logger
}

// Keeper attaches and detaches a router's fast path. Its methods may be called from
// any goroutine.
type Keeper struct {
	config Config

	mu        sync.Mutex // guards the rest
	router    *tunnel.Router
	inherited *fastpath.Descriptors
	path      Path
	stop      func() // ends the path's Run and waits for it
	hazards   []string
	why       string // why there is none
	told      string // the last why that was logged
	// After an attempt that failed, the next is made with another router or from
	// next on.
	failures int
	next     time.Time
}

// The shortest and the longest time between two attempts to attach.
const (
	retryFirst = time.Second
	retryLast  = 5 * time.Minute
)

// New returns a keeper of a fast path that isn't attached. It takes what another
// process has left attached, nil if there is nothing.
func New(c Config, inherited *fastpath.Descriptors) *Keeper {
	return &Keeper{config: c, inherited: inherited, why: "not attached yet"}
}

// PartName is the name of the fast path as a part of the host.
const PartName = "fast-path"

// Part has the keeper look at the host when firewall rules change, and every so
// often. With mode On, its faults are a fast path that is off, and the rules that it
// bypasses.
func (k *Keeper) Part() host.Part {
	return host.Part{
		Name: PartName, Check: k.check, Interval: k.config.Interval,
		Wakes: host.Is(host.Firewall, host.Link, host.Address, host.Rule),
	}
}

func (k *Keeper) check(context.Context) (faults []host.Fault) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.router != nil {
		_ = k.lookLocked() // the status tells
	}
	if k.config.Mode != On {
		return nil
	}
	if d := k.describeLocked(); k.router != nil && !d.On {
		faults = append(faults, host.Fault{What: "-fast-path=on, but it is off: " + d.Reason})
	}
	for _, h := range k.hazards {
		faults = append(faults, host.Fault{What: h + ", which the fast path bypasses", Remedy: "leave -fast-path=on away"})
	}
	return faults
}

// Use attaches a fast path to the router, where there may be one. With mode On its
// error is why there is none, an [ErrNone].
func (k *Keeper) Use(r *tunnel.Router) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.router != r {
		k.detachLocked()
		k.router, k.failures, k.next = r, 0, time.Time{}
	}
	err := k.lookLocked()
	if k.path != nil {
		if d := k.path.Describe(); !d.On {
			err = errors.New(d.Reason)
		}
	}
	if err != nil && k.config.Mode == On {
		return fmt.Errorf("-fast-path=on: %w: %w", ErrNone, err)
	}
	return nil
}

// lookLocked attaches or detaches, as the host is.
func (k *Keeper) lookLocked() error {
	if k.config.Mode == Off {
		k.discardLocked()
		k.offLocked("-fast-path=off")
		return nil
	}
	hazards, err := k.config.Hazards()
	switch {
	case err == nil:
		k.hazards = hazards
	case k.path == nil && k.config.Mode == Auto: // what isn't known speaks against it
		hazards = append(hazards, fmt.Sprintf("the host's firewall rules can't be read: %v", err))
	default:
		hazards = k.hazards
	}
	if len(hazards) > 0 && k.config.Mode == Auto {
		k.discardLocked()
		k.detachLocked()
		k.offLocked(strings.Join(hazards, "; "))
		return nil
	}
	if k.path != nil {
		return nil
	}
	return k.attachLocked()
}

func (k *Keeper) attachLocked() error {
	now := time.Now()
	if now.Before(k.next) {
		return errors.New(k.why)
	}
	inherited := k.inherited
	k.inherited = nil
	path, err := k.config.Attach(k.router, inherited)
	if err != nil {
		k.next = now.Add(min(retryFirst<<k.failures, retryLast))
		k.failures = min(k.failures+1, 16)
		k.offLocked(err.Error())
		return err
	}
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { k.run(ctx, path) })
	k.path, k.stop = path, func() { cancel(); running.Wait() }
	k.why, k.told, k.failures = "", "", 0
	d := path.Describe()
	k.config.Logger.Info("fast path is attached", "link", d.Link, "superpackets", d.Superpackets)
	return nil
}

// run follows the host, and has the keeper look when the path is of no use.
func (k *Keeper) run(ctx context.Context, p Path) {
	err := p.Run(ctx)
	if err == nil || ctx.Err() != nil {
		return
	}
	go k.lost(p, err) // ends by itself, after this goroutine at the latest
}

// lost detaches a path that has become of no use.
func (k *Keeper) lost(p Path, err error) {
	k.mu.Lock()
	if k.path == p {
		k.detachLocked()
		k.offLocked(err.Error())
		k.next = time.Now().Add(retryFirst)
	}
	k.mu.Unlock()
	k.config.Wake(PartName)
}

// offLocked takes note of why there is no fast path.
func (k *Keeper) offLocked(why string) {
	k.why = why
	if why != k.told {
		k.told = why
		k.config.Logger.Info("fast path is off: the workers carry all packets", "reason", why)
	}
}

// Detach detaches the fast path until the next Use, if there is one: the router is
// about to end.
func (k *Keeper) Detach() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.detachLocked()
	k.router, k.why = nil, "the device and the sockets are being made again"
}

// Close detaches the fast path for good.
func (k *Keeper) Close() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.discardLocked()
	k.detachLocked()
	k.router, k.why = nil, "the daemon stops"
}

func (k *Keeper) detachLocked() {
	if k.path == nil {
		return
	}
	k.stop()
	if err := k.path.Close(); err != nil {
		k.config.Logger.Warn("detach the fast path", "error", err)
	}
	k.path, k.stop = nil, nil
}

func (k *Keeper) discardLocked() {
	if k.inherited != nil {
		if err := k.config.Discard(k.inherited); err != nil {
			k.config.Logger.Warn("detach what was handed over", "error", err)
		}
		k.inherited = nil
	}
}

// Release ends the keeping. With keep it leaves the fast path attached and returns
// the descriptors for the process that goes on, nil if there is nothing; they belong
// to the caller.
func (k *Keeper) Release(keep bool) *fastpath.Descriptors {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.router, k.why = nil, "another process carries the packets"
	if k.path == nil || !keep {
		k.discardLocked()
		k.detachLocked()
		return nil
	}
	descriptors, err := k.path.Release()
	if err != nil {
		k.config.Logger.Warn("hand over the fast path", "error", err)
		k.detachLocked()
		return nil
	}
	k.stop()
	k.path, k.stop = nil, nil
	return descriptors
}

// Inherit takes what another process has left attached, nil if there is nothing, for
// the next Use.
func (k *Keeper) Inherit(d *fastpath.Descriptors) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.inherited = d
}

// Discard gives up what another process has left attached.
func (k *Keeper) Discard() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.discardLocked()
}

// Describe tells of the fast path, or why there is none.
func (k *Keeper) Describe() control.FastPath {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.describeLocked()
}

func (k *Keeper) describeLocked() control.FastPath {
	if k.path == nil {
		return control.FastPath{Reason: k.why}
	}
	return k.path.Describe()
}

// Carries tells whether the fast path carries a peer's packets, and else why not. The
// reason is empty where there is no fast path at all.
func (k *Keeper) Carries(p tunnel.Peer) (bool, string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.path == nil {
		return false, ""
	}
	return k.path.Carries(p)
}

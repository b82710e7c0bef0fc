package nexthop

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"uvxlan/tunnel/internal/lifecycle"
	"uvxlan/tunnel/internal/wake"
)

// ErrClosed is what Run returns on a watcher that was closed before.
var ErrClosed = lifecycle.ErrClosed

// Config is what a [Watcher] is to follow. The functions are called from Run's
// goroutine, one at a time, and may call any method but Close; while one of them
// runs, nothing is followed.
type Config struct {
	// Neighbours has neighbour entries followed, and resolved by the kernel,
	// which takes CAP_NET_ADMIN.
	Neighbours bool
	// Exclude names interfaces that are never a way, such as our own device.
	Exclude []string
	// InUse tells, once a second for each on-link address if neighbours are
	// followed, whether packets went to it since the last call. A used one is
	// asked for every second until it has a MAC, and confirmed when that gets
	// stale. Nil means that none is used.
	InUse func(netip.Addr) bool
	// Changed gets what Lookup returns from now on, whenever that changes and
	// when it is first known. The slice is its to keep. May be nil.
	Changed func([]Change)
	// Routes is called after routes, rules, links or addresses of the host
	// changed, once for many changes, and after Changed was told what they mean
	// for tracked addresses; also after Run has begun and after events were
	// lost. May be nil.
	Routes func()
	// Logger gets what happens rarely; nil means nothing is logged.
	Logger *slog.Logger
}

// Change is an address and how it is reached now.
type Change struct {
	Addr netip.Addr
	Hop  Hop
}

// Watcher follows how the kernel reaches a set of addresses. IPv4-mapped IPv6
// addresses are taken for the IPv4 ones that they are. Its methods may be called
// from any goroutine.
type Watcher struct {
	// immutable
	config        Config
	log           *slog.Logger
	handle        *netlink.Handle // requests
	events        *subscription   // of links, addresses, routes and rules
	neighbourhood *subscription   // of neighbours; nil if they aren't followed
	waker         wake.Waker

	// Run's goroutine
	links      map[int]link
	neighbours map[neighbourKey]neighbour
	addresses  addressSet
	onLink     map[*address]struct{}
	fresh      []*address // to be decided at once
	marked     []*address // to be decided in the next round
	all        bool       // the next round is for all
	lost       bool       // the next round begins with a resync
	debounce   debounce   // when the next round begins
	round      round
	repeat     time.Time  // when there will be a round for all; zero if not
	asking     []*address // to be asked for
	touched    []*address // to be compared with what was told of them
	nextTick   time.Time
	idleLeft   int       // requests for unused addresses until the next tick
	idleFrom   time.Time // no such requests before
	failing    bool      // the last request failed
	losses     int       // times that events were lost
	warned     time.Time // when that was logged

	life lifecycle.Life

	mu      sync.RWMutex // guards the rest
	wanted  map[netip.Addr]struct{}
	pending []netip.Addr // came to or left wanted
	hops    map[netip.Addr]Hop
}

// Open opens the watcher's sockets in the calling thread's network namespace,
// which it stays with. It starts nothing; the caller closes the result.
func Open(c Config) (*Watcher, error) { return open(c, eventBuffer) }

func open(c Config, buffer int) (*Watcher, error) {
	w := &Watcher{
		config: c, log: cmp.Or(c.Logger, slog.New(slog.DiscardHandler)), waker: wake.Waker{FD: -1},
		links: make(map[int]link), neighbours: make(map[neighbourKey]neighbour),
		addresses: newAddressSet(), onLink: make(map[*address]struct{}),
		wanted: make(map[netip.Addr]struct{}), hops: make(map[netip.Addr]Hop),
	}
	if err := w.acquire(buffer); err != nil {
		return nil, errors.Join(fmt.Errorf("open next-hop watcher: %w", err), w.release())
	}
	return w, nil
}

// SetLogger has l told of what happens, in place of Config.Logger, before Run.
func (w *Watcher) SetLogger(l *slog.Logger) { w.log = l }

func (w *Watcher) acquire(buffer int) (err error) {
	if w.waker, err = wake.Open(); err != nil {
		return err
	}
	w.events, err = subscribe(buffer, unix.RTNLGRP_LINK, unix.RTNLGRP_IPV4_IFADDR, unix.RTNLGRP_IPV6_IFADDR,
		unix.RTNLGRP_IPV4_ROUTE, unix.RTNLGRP_IPV6_ROUTE, unix.RTNLGRP_IPV4_RULE, unix.RTNLGRP_IPV6_RULE,
		unix.RTNLGRP_NEXTHOP)
	if err != nil {
		return err
	}
	if w.config.Neighbours {
		if w.neighbourhood, err = subscribe(buffer, unix.RTNLGRP_NEIGH); err != nil {
			return err
		}
	}
	if w.handle, err = netlink.NewHandle(unix.NETLINK_ROUTE); err != nil {
		return fmt.Errorf("open netlink socket: %w", err)
	}
	return nil
}

func (w *Watcher) release() error {
	var errs []error
	if w.waker.FD >= 0 {
		errs = append(errs, w.waker.Close())
	}
	for _, s := range []*subscription{w.events, w.neighbourhood} {
		if s != nil {
			errs = append(errs, s.close())
		}
	}
	if w.handle != nil {
		w.handle.Close()
	}
	return errors.Join(errs...)
}

func (w *Watcher) excluded(name string) bool { return slices.Contains(w.config.Exclude, name) }

// Track adds addresses to the set and removes others, and returns before they
// are looked at. Of a removed address Lookup knows nothing; a change of it that
// is being reported already may still arrive.
func (w *Watcher) Track(add, remove []netip.Addr) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, a := range remove {
		w.dropLocked(a.Unmap())
	}
	for _, a := range add {
		w.wantLocked(a.Unmap())
	}
	w.wake()
}

// Replace makes addrs the set. What stays in it stays as it is.
func (w *Watcher) Replace(addrs []netip.Addr) {
	keep := make(map[netip.Addr]struct{}, len(addrs))
	for _, a := range addrs {
		keep[a.Unmap()] = struct{}{}
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	for a := range w.wanted {
		if _, stays := keep[a]; !stays {
			w.dropLocked(a)
		}
	}
	for a := range keep {
		w.wantLocked(a)
	}
	w.wake()
}

func (w *Watcher) wantLocked(a netip.Addr) {
	if _, there := w.wanted[a]; there || !a.IsValid() {
		return
	}
	w.wanted[a] = struct{}{}
	w.pending = append(w.pending, a)
}

func (w *Watcher) dropLocked(a netip.Addr) {
	if _, there := w.wanted[a]; !there {
		return
	}
	delete(w.wanted, a)
	delete(w.hops, a)
	w.pending = append(w.pending, a)
}

// Lookup returns how an address is reached; ok is false if it isn't tracked or
// was not looked at yet.
func (w *Watcher) Lookup(a netip.Addr) (h Hop, ok bool) {
	w.mu.RLock()
	defer w.mu.RUnlock()
	h, ok = w.hops[a.Unmap()]
	return h, ok
}

// Run follows the kernel until ctx ends or Close is called, and then returns
// nil; [ErrClosed] on a closed watcher. It returns early only when the kernel's
// events can no longer be received. Run is called once.
func (w *Watcher) Run(ctx context.Context) error {
	if err := w.life.Start(); err != nil {
		return fmt.Errorf("run next-hop watcher: %w", err)
	}
	defer w.life.Done()
	stop := context.AfterFunc(ctx, w.wake)
	defer stop()
	w.lost, w.all = true, true
	w.beginRound(time.Now())
	for !w.stopping(ctx) {
		if err := w.receive(); err != nil {
			return fmt.Errorf("run next-hop watcher: %w", err)
		}
		w.work(time.Now())
		if err := w.sleep(); err != nil {
			return fmt.Errorf("run next-hop watcher: %w", err)
		}
	}
	return nil
}

func (w *Watcher) stopping(ctx context.Context) bool { return w.life.Closed() || ctx.Err() != nil }

func (w *Watcher) wake() { w.life.While(w.waker.Wake) }

// Close ends Run, waits for it and closes the sockets. Further calls do nothing.
func (w *Watcher) Close() error {
	return w.life.Close(w.waker.Wake, func() error {
		if err := w.release(); err != nil {
			return fmt.Errorf("close next-hop watcher: %w", err)
		}
		return nil
	})
}

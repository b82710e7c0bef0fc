package lab

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"sync"
	"time"
)

// closeTimeout bounds how long Close waits for killed processes to end.
const closeTimeout = 10 * time.Second

// DefaultContainerMTU leaves room for VXLAN on an underlay of 1500 bytes.
const DefaultContainerMTU = 1450

// Options says what New builds. The zero value is the lab of DefaultHosts.
type Options struct {
	// Hosts are the hosts to begin with. Nil means DefaultHosts.
	Hosts []HostSpec
	// PlainVeth gives the host's end of the container's link the gateway
	// address, instead of a bridge cni0 as container runtimes make it.
	PlainVeth bool
	// Bare leaves to a container runtime what such a one does: the host has no
	// bridge, no address in the container subnet, and forwards nothing; the
	// container is an empty namespace.
	Bare bool
	// ContainerMTU is the MTU in bytes of the container's link. Zero means
	// DefaultContainerMTU.
	ContainerMTU int
	// Keep lets namespaces and processes outlive Close and the calling process,
	// until the next New or Cleanup on the machine removes them. A command that
	// is to stay must not depend on a context or a pipe of the caller.
	Keep bool
	// Logger tells of waiting and of leftovers. Nil means silence.
	Logger *slog.Logger
}

// Lab is a running lab. Its methods are safe for concurrent use.
type Lab struct {
	// Immutable.
	options Options
	log     *slog.Logger
	lock    *os.File
	spawner *spawner

	mu      sync.Mutex // guards what follows
	closed  bool
	specs   []HostSpec
	hosts   []*Host
	router  *Node
	nodes   []*Node           // in order of creation, the router among them
	bridges map[string]string // underlay network to the router's bridge
	offload Offload

	closeOnce sync.Once
	closeErr  error
}

// New removes what a killed run left and builds a lab, all or nothing. It waits
// while another lab is in use on the machine. ctx bounds New only.
func New(ctx context.Context, o Options) (*Lab, error) {
	o = o.withDefaults()
	if err := validateHosts(o.Hosts); err != nil {
		return nil, fmt.Errorf("invalid lab: %w", err)
	}
	lock, err := acquire(ctx, o.Logger)
	if err != nil {
		return nil, err
	}
	if err := removeLeftovers(ctx, o.Logger); err != nil {
		return nil, errors.Join(fmt.Errorf("remove leftovers: %w", err), lock.Close())
	}
	l := &Lab{options: o, log: o.Logger, lock: lock, spawner: startSpawner(), bridges: make(map[string]string)}
	if err := l.build(ctx); err != nil {
		l.options.Keep = false
		return nil, errors.Join(fmt.Errorf("build lab: %w", err), l.Close())
	}
	return l, nil
}

func (o Options) withDefaults() Options {
	if o.Hosts == nil {
		o.Hosts = DefaultHosts()
	}
	if o.ContainerMTU == 0 {
		o.ContainerMTU = DefaultContainerMTU
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	return o
}

// Host returns the host of that name, nil if there is none.
func (l *Lab) Host(name string) *Host {
	for _, h := range l.Hosts() {
		if h.Name == name {
			return h
		}
	}
	return nil
}

// Hosts returns the hosts in the order in which they were added.
func (l *Lab) Hosts() []*Host {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.hosts)
}

// Router returns the router. Its interface towards a host is named after the
// host.
func (l *Lab) Router() *Node { return l.router }

// AddHost adds a host and its container to the running lab, all or nothing.
func (l *Lab) AddHost(ctx context.Context, spec HostSpec) (*Host, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return nil, os.ErrClosed
	}
	if err := validateHosts(append(slices.Clone(l.specs), spec)); err != nil {
		return nil, err
	}
	before := len(l.nodes)
	h, err := l.addHostLocked(ctx, spec)
	if err == nil && l.offload != Veth {
		err = h.setOffloads(l.offload)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("add host %s: %w", spec.Name, err), l.rollbackLocked(spec, before))
	}
	l.specs, l.hosts = append(l.specs, spec), append(l.hosts, h)
	return h, nil
}

// Close kills the processes that run in the lab's namespaces and removes the
// namespaces, unless Options.Keep is set. It is idempotent; its error tells
// what could not be removed.
func (l *Lab) Close() error {
	l.closeOnce.Do(func() { l.closeErr = l.close() })
	return l.closeErr
}

func (l *Lab) close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.closed = true
	var errs []error
	if !l.options.Keep {
		errs = append(errs, l.killLocked())
	}
	l.spawner.close()
	for _, n := range slices.Backward(l.nodes) {
		if l.options.Keep {
			errs = append(errs, n.release())
		} else {
			errs = append(errs, n.remove())
		}
	}
	// Last: the next lab must find nothing of this one.
	return errors.Join(append(errs, l.lock.Close())...)
}

// killLocked kills what was started through the lab, whatever else entered its
// namespaces, and containers.
func (l *Lab) killLocked() error {
	ctx, cancel := context.WithTimeout(context.Background(), closeTimeout)
	defer cancel()
	err := l.spawner.kill()
	return errors.Join(err, killIn(ctx, l.nodes), removeGroup(ctx))
}

// killIn kills the processes in the nodes' namespaces.
func killIn(ctx context.Context, nodes []*Node) error {
	ids := make(map[nsID]bool)
	for _, n := range nodes {
		ids[n.id] = true
	}
	return killProcesses(ctx, ids)
}

package daemon

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"uvxlan/cmd/internal/control"
	"uvxlan/cmd/internal/extiface"
	"uvxlan/cmd/internal/handover"
	"uvxlan/cmd/internal/host"
	"uvxlan/cmd/internal/hoststate"
	"uvxlan/cmd/internal/logqueue"
	"uvxlan/cmd/internal/sysctl"
	"uvxlan/cmd/internal/version"
	"uvxlan/lease"
	"uvxlan/lease/etcd"
	"uvxlan/lease/etcdserver"
)

// Run is the daemon's life: it returns nil when t ends, after the device is gone,
// and otherwise an error of one line that says what to do. The lease stays in etcd,
// so that the next run has the same subnet.
//
// It is also what takes over from a daemon that reloads, and what stands in for it
// meanwhile; which of them it is, the environment tells.
func Run(t *handover.Termination, o Options) error {
	sysctl.WriteBelow(cmp.Or(o.Overlay.SysctlDir, sysctl.Root))
	program, err := handover.Program()
	if err != nil {
		return err
	}
	before, main, err := handover.ReceiveState()
	if errors.Is(err, handover.ErrStored) {
		o.Logger.Warn("packets stop for a moment", "reason", err)
		err = nil
	}
	if err != nil {
		return err
	}
	if main != nil {
		return explain(standby(o, before, main))
	}
	if handover.IsRetired() {
		n := notifier{log: o.Logger, source: retired{}}
		n.run(t, nil) // a service manager may watch it
		<-t.Done()
		return nil
	}
	if before == nil && o.TakeOver {
		if before, err = handover.TakeOver(t, o.StateDir, o.Logger); err != nil {
			return ignoreCanceled(t, explain(err))
		}
	}
	if before != nil && before.IsOther() {
		if err := checkSettings(o, before); err != nil {
			return ignoreCanceled(t, startInPlace(t, o, before, err))
		}
	}
	for {
		after, err := run(t, o, program, before)
		if after == nil && errors.Is(err, lease.ErrReassigned) && t.Err() == nil {
			o.Logger.Warn("starting again with another subnet", "error", err)
			before = nil
			continue
		}
		switch {
		case after == nil && errors.Is(err, handover.ErrForsaken):
			o.Logger.Error("starting again: nobody carries the packets", "error", err)
			return ignoreCanceled(t, startAgain(t, o))
		case after == nil && errors.Is(err, errUnlike):
			return ignoreCanceled(t, startInPlace(t, o, before, err))
		case after == nil && !errors.Is(err, handover.ErrDismissed):
			return ignoreCanceled(t, explain(err))
		case after == nil:
			return retire(t, o, err.Error())
		case after.Given():
			return retire(t, o, "another program has taken over")
		}
		flushLog(o)
		if err = after.Exec(t, program, hoststate.Pending(o.StateDir)); t.Err() == nil {
			o.Logger.Error("reload failed, this program goes on", "error", err)
		}
		before = after
	}
}

// retire ends a daemon whose place is taken. One that takes over itself has a supervisor
// that would start it again, and waits to be stopped.
func retire(t *handover.Termination, o Options, why string) error {
	o.Logger.Info("this daemon's work is over", "reason", why)
	select {
	case <-t.Done():
		return nil
	default:
	}
	if !o.TakeOver {
		return nil
	}
	flushLog(o)
	return handover.Retire(t)
}

// retired is the state of a daemon whose place was taken.
type retired struct{}

// Status implements [control.Source].
func (retired) Status() control.Status {
	return control.Status{Version: version.String(), PID: os.Getpid(), Now: time.Now(), Reasons: []string{"another daemon has taken this one's place"}}
}

// Peers implements [control.Source].
func (retired) Peers() []control.Peer { return nil }

// startAgain makes this process the same program, as it was started by hand.
func startAgain(t *handover.Termination, o Options) error {
	flushLog(o)
	return handover.StartAgain(t)
}

// flushLog writes what the log has before the process becomes another. What is left
// after a moment is lost.
func flushLog(o Options) {
	if o.LogQueue != nil {
		o.LogQueue.Flush(logqueue.LastWords)
	}
}

// ignoreCanceled passes over an error that is ctx's end.
func ignoreCanceled(ctx context.Context, err error) error {
	if ctx.Err() != nil && errors.Is(err, ctx.Err()) {
		return nil
	}
	return err
}

// run returns what is to be handed over if the daemon reloads; then all that is on
// the host stays. before is what the one before handed over, or nil.
func run(ctx context.Context, o Options, program string, before *handover.State) (after *handover.State, err error) {
	r := &reloader{opts: o, program: program, turn: &turn{}, told: make(chan chan<- struct{})}
	ctx, cancel := gracefully(ctx, r)
	defer cancel()
	if err := checkCapability(); err != nil {
		return nil, err
	}
	lock, err := before.TakeLock(o.StateDir)
	if err != nil {
		return nil, err
	}
	defer func() {
		if after != nil {
			after.Keep(lock)
			return
		}
		if !before.Borrowed() {
			lock.Close()
		}
	}()
	if err := openRecord(o, before); err != nil {
		return nil, err
	}
	if before == nil {
		host.RestoreSysctls(o.StateDir, o.Logger)
		host.RemoveBlackholes(o.StateDir, o.Logger)
	}
	m := newMonitor()
	r.monitor, r.lock = m, lock
	if before != nil {
		m.started = before.Started
	}
	stop, err := m.open(ctx, o, before)
	if err != nil {
		return nil, err
	}
	defer func() { stop(after, after != nil || errors.Is(err, lease.ErrReassigned)) }()
	if o.Kube != nil {
		return runKube(ctx, o, r, before)
	}
	ext, err := chooseInterface(o, before)
	if err != nil {
		return nil, err
	}
	if o.EmbeddedEtcd {
		server, err := startEtcd(ctx, &o, ext)
		if err != nil {
			return nil, err
		}
		defer server.Close()
	}
	o.Etcd.Logger = o.Logger
	registry, err := etcd.Open(o.Etcd)
	if err != nil {
		return nil, err
	}
	defer registry.Close()
	m.set(func(m *monitor) { m.ext, m.leases, m.skipped = ext, registry, registry.Skipped })
	after, err = serve(ctx, o, ext, registry, r, before)
	if _, wrong := errors.AsType[lease.ConfigError](err); wrong {
		err = fmt.Errorf("%w: write another, by uvxlan config set%s JSON", err, o.Etcd.Flags())
	}
	return after, err
}

// chooseInterface keeps the one that the inherited sockets are bound to.
func chooseInterface(o Options, before *handover.State) (extiface.Interface, error) {
	if before != nil {
		return before.Interface, nil
	}
	ext, err := extiface.Choose(o.Interface)
	if err == nil {
		o.Logger.Info("external interface", "name", ext.Name, "address", ext.Address, "public_ip", ext.PublicIP, "mtu", int(ext.MTU))
	}
	return ext, err
}

// etcdPort is etcd's own.
const etcdPort = 2379

// etcdURLs are where the embedded etcd listens, and which of them the other hosts are
// told.
func etcdURLs(o *Options, ext extiface.Interface) (listen, advertise string) {
	at := o.EmbeddedEtcdListen
	if len(at) == 0 {
		at = []netip.AddrPort{netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), etcdPort), netip.AddrPortFrom(ext.Address, etcdPort)}
	}
	var all []string
	for _, a := range at {
		all = append(all, "http://"+a.String())
		told := a
		if a.Addr().IsUnspecified() {
			told = netip.AddrPortFrom(ext.Address, a.Port())
		}
		if advertise == "" || told.Addr() == ext.Address {
			advertise = "http://" + told.String()
		}
	}
	return strings.Join(all, ","), advertise
}

// checkEtcdFiles refuses a limit of open files by which etcd, which keeps 150 for
// itself, would end the process without a word.
func checkEtcdFiles(limit uint64) error {
	const own = 150
	if limit > own {
		return nil
	}
	return fmt.Errorf("the embedded etcd keeps %d descriptors for itself: %w", own, unix.EMFILE)
}

// startEtcd runs the embedded etcd, and makes it ours.
func startEtcd(ctx context.Context, o *Options, ext extiface.Interface) (*etcdserver.Server, error) {
	var files unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &files); err != nil {
		return nil, fmt.Errorf("read the limit of open files: %w", err)
	}
	if err := checkEtcdFiles(files.Cur); err != nil {
		return nil, err
	}
	listen, advertise := etcdURLs(o, ext)
	server, err := etcdserver.Start(ctx, etcdserver.Options{
		Dir:             hoststate.EtcdDir(o.StateDir),
		ListenClient:    listen,
		AdvertiseClient: advertise,
		Logger:          o.Logger,
	})
	if err != nil {
		return nil, err
	}
	o.Etcd.Endpoints = []string{server.Endpoint()}
	o.Logger.Info("embedded etcd is up; start the other hosts with", "etcd-endpoints", advertise)
	o.Logger.Warn("the embedded etcd has no authentication: who reaches it may change the network; guard it by a firewall, or choose where it listens with -embedded-etcd-listen", "listens", listen)
	return server, nil
}

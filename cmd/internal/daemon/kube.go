//go:build !nokube

package daemon

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"time"

	"k8s.io/klog/v2"

	"uvxlan/cmd/internal/handover"
	"uvxlan/cmd/internal/hoststate"
	"uvxlan/lease"
	"uvxlan/lease/kube"
)

// HasKube tells whether leases may be in Kubernetes.
const HasKube = true

const (
	// nodePatience is how long a start waits for the API server to tell what the Node
	// says of this host's addresses, if there is a stored lease to start from.
	nodePatience = 1500 * time.Millisecond
	// nodeRetry is how often it is asked.
	nodeRetry = 500 * time.Millisecond
	// nodeNag is how often a lasting wait is logged.
	nodeNag = 30 * time.Second
	// shortPatience is what is left for the leases then.
	shortPatience = 500 * time.Millisecond
)

func (o KubeOptions) options(log *slog.Logger) kube.Options {
	return kube.Options{
		URL: o.URL, Kubeconfig: o.Kubeconfig, Node: o.Node, PodNamespace: o.PodNamespace, Pod: o.Pod,
		AnnotationPrefix: o.AnnotationPrefix, ConfigFile: o.ConfigFile, LeaveCondition: o.LeaveCondition, Logger: log,
	}
}

// Check tells what is wrong with the options.
func (o KubeOptions) Check() error { return o.options(nil).Check() }

// runKube goes on with run where the leases are in Kubernetes.
func runKube(ctx context.Context, o Options, r *reloader, before *handover.State) (*handover.State, error) {
	m := r.monitor
	klog.SetSlogLogger(o.Logger)
	registry, err := kube.Open(o.Kube.options(o.Logger))
	if err != nil {
		return nil, err
	}
	defer registry.Close()
	m.set(func(m *monitor) { m.leases, m.skipped, m.node = registry, registry.Skipped, registry.NodeName })
	if before == nil {
		err = nodeAddresses(ctx, &o, m, registry)
	} else {
		err = o.takeStored() // as the daemon before knows them
	}
	if err != nil {
		return nil, err
	}
	ext, err := chooseInterface(o, before)
	if err != nil {
		return nil, err
	}
	m.set(func(m *monitor) { m.ext, m.waiting = ext, nil })
	return serve(ctx, o, ext, registry, r, before)
}

// nodeAddresses has the Node's annotations say what -public-ip and -public-ipv6 do, where
// those aren't given. It waits for the API server, unless there is a stored lease to
// start from: then what the Node said in the earlier run counts.
func nodeAddresses(ctx context.Context, o *Options, m *monitor, r *kube.Registry) error {
	limited, cancel := ctx, context.CancelFunc(func() {})
	if hasStoredLease(*o) {
		limited, cancel = context.WithTimeout(ctx, nodePatience)
	}
	defer cancel()
	start, logged := time.Now(), time.Time{}
	for {
		v4, v6, err := r.PublicIPs(limited)
		if err == nil {
			o.take(v4, v6)
			return hoststate.Update(o.StateDir, func(s *hoststate.State) { s.NodePublicIP, s.NodePublicIPv6 = v4, v6 })
		}
		if errors.Is(err, lease.ErrUnassigned) {
			limited = ctx // it answers, so what is stored may be wrong
		}
		if limited.Err() == nil {
			m.set(func(m *monitor) { m.waiting = err })
		}
		if limited.Err() == nil && time.Since(logged) > nodeNag {
			logged = time.Now()
			o.Logger.Warn("waiting for Kubernetes", "error", err, "for", time.Since(start).Round(time.Second))
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-limited.Done():
			o.patience = shortPatience
			return o.takeStored()
		case <-time.After(nodeRetry):
		}
	}
}

// hasStoredLease tells whether an earlier run has left a lease.
func hasStoredLease(o Options) bool {
	s, err := storeOf(o).Load()
	return err == nil && s != nil && s.Own.Subnet.IsValid()
}

// takeStored takes the addresses that the Node's annotations named last.
func (o *Options) takeStored() error {
	state, err := hoststate.Load(o.StateDir)
	o.take(state.NodePublicIP, state.NodePublicIPv6)
	return err
}

// take takes addresses for those of the flags that aren't given.
func (o *Options) take(v4, v6 netip.Addr) {
	if !o.Interface.PublicIP.IsValid() && v4.Is4() {
		o.Interface.PublicIP = v4
	}
	if !o.Interface.PublicIPv6.IsValid() && v6.Is6() {
		o.Interface.PublicIPv6 = v6
	}
}

// Package daemon is uvxland without its command line: it takes the host's
// lease, makes the overlay's device, and keeps the router fed with the peers'
// leases.
package daemon

import (
	"log/slog"
	"net/netip"
	"os"
	"time"

	"uvxlan/cmd/internal/extiface"
	"uvxlan/cmd/internal/hoststate"
	"uvxlan/cmd/internal/logqueue"
	"uvxlan/cmd/internal/overlay"
	"uvxlan/cmd/internal/subnetfile"
	"uvxlan/lease/etcd"
)

// Defaults of Options.
const (
	DefaultSubnetFile = subnetfile.DefaultPath
	DefaultStateDir   = hoststate.DefaultDir
)

// Options are what the command line says.
type Options struct {
	// Etcd says where the leases are. Its Endpoints don't count with
	// EmbeddedEtcd.
	Etcd etcd.Options
	// Kube says which Kubernetes cluster's Nodes are the leases. Where it isn't nil,
	// there is no etcd.
	Kube *KubeOptions
	// EmbeddedEtcd runs an etcd in this process, its data in StateDir.
	EmbeddedEtcd bool
	// EmbeddedEtcdListen are where it listens, "host:port" each; nil means port 2379
	// of loopback and of the interface to the other hosts.
	EmbeddedEtcdListen []netip.AddrPort
	// StateDir belongs to this daemon alone, as long as it runs.
	StateDir string
	// Interface says how the peers reach this host.
	Interface extiface.Wanted
	// SubnetFile is where container runtimes look for the host's subnet.
	SubnetFile string
	// CNIConfig is the path of the configuration by which container runtimes connect
	// containers through CNI without flannel's plugin; empty means none.
	CNIConfig string
	// Health is where /healthz, /readyz and /metrics are answered; with port 0
	// they are not.
	Health netip.AddrPort
	// ControlSocket is the path by which the operator's command asks; empty
	// means that there is none. With MustControl it is an error that it can't
	// be opened.
	ControlSocket string
	MustControl   bool
	// Overlay are the choices for VXLAN networks.
	Overlay overlay.Options
	// RenewMargin is how long before its end the lease is renewed; 0 means
	// lease.DefaultRenewMargin.
	RenewMargin time.Duration
	// UseExpired starts without etcd from a stored lease that has run out.
	UseExpired bool
	// Blackhole drops what is sent to our subnet while nothing on the host has a
	// route to it.
	Blackhole bool
	// Firewall says which rules the host is to have.
	Firewall FirewallOptions
	// ProbeInterval is the time between two echo requests to a peer; 0 means that none
	// is asked.
	ProbeInterval time.Duration
	// TakeOver has this daemon take the place of the one that runs, if one does: that
	// one works until this one is ready. When its own place is taken later, it stays
	// without work until it is stopped, so that a supervisor doesn't start it again.
	TakeOver bool
	// Reload says each time that the program on disk is to take this one's place;
	// nil means never.
	Reload <-chan os.Signal
	// Logger is required. It must not block.
	Logger *slog.Logger
	// LogQueue is what Logger writes to, nil if it writes to something else.
	LogQueue *logqueue.Queue

	patience time.Duration // how long a start waits for the registry, 0 for the default
}

// KubeOptions are those of package kube with the same names, which a program may leave
// out.
type KubeOptions struct {
	URL, Kubeconfig         string
	Node, PodNamespace, Pod string
	AnnotationPrefix        string
	ConfigFile              string
	LeaveCondition          bool
}

// logLost is how many lines of the log were lost.
func (o *Options) logLost() uint64 {
	if o.LogQueue == nil {
		return 0
	}
	return o.LogQueue.Lost()
}

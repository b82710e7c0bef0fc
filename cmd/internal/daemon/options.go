// Package daemon is uvxland without its command line: it takes the host's
// lease, makes the overlay's device, and keeps the router fed with the peers'
// leases.
package daemon

import (
	"log/slog"
	"net/netip"
	"os"
	"runtime"
	"time"

	"uvxlan/cmd/internal/extiface"
	"uvxlan/cmd/internal/hoststate"
	"uvxlan/lease/etcd"
	"uvxlan/tunnel"
)

// Defaults of Options.
const (
	DefaultSubnetFile = "/run/flannel/subnet.env"
	DefaultStateDir   = hoststate.DefaultDir
	// maxWorkers bounds the default number of workers: beyond it the flows of
	// one host seldom spread.
	maxWorkers = 8
)

// Options are what the command line says.
type Options struct {
	// Etcd says where the leases are. Its Endpoints don't count with
	// EmbeddedEtcd.
	Etcd etcd.Options
	// EmbeddedEtcd runs an etcd in this process, its data in StateDir.
	EmbeddedEtcd bool
	// StateDir belongs to this daemon alone, as long as it runs.
	StateDir string
	// Interface says how the peers reach this host.
	Interface extiface.Wanted
	// SubnetFile is where container runtimes look for the host's subnet.
	SubnetFile string
	// Health is where /healthz, /readyz and /metrics are answered; with port 0
	// they are not.
	Health netip.AddrPort
	// ControlSocket is the path by which the operator's command asks; empty
	// means that there is none. With MustControl it is an error that it can't
	// be opened.
	ControlSocket string
	MustControl   bool
	// Workers is the number of threads that move packets, where the device has as
	// many queues; 0 means one a CPU, at most 8.
	Workers int
	// Driver is the device's; empty means the first that the kernel allows.
	Driver tunnel.Driver
	// AnySource takes packets whatever address they come from.
	AnySource bool
	// Offloads are those to use, where the kernel has them; with MustOffload it
	// must.
	Offloads    tunnel.Offloads
	MustOffload bool
	// RenewMargin is how long before its end the lease is renewed; 0 means
	// lease.DefaultRenewMargin.
	RenewMargin time.Duration
	// Blackhole drops what is sent to our subnet while nothing on the host has a
	// route to it.
	Blackhole bool
	// Firewall says which rules the host is to have.
	Firewall FirewallOptions
	// Reload says each time that the program on disk is to take this one's place;
	// nil means never.
	Reload <-chan os.Signal
	// Logger is required.
	Logger *slog.Logger
}

func (o *Options) workers() int {
	if o.Workers > 0 {
		return o.Workers
	}
	return min(runtime.NumCPU(), maxWorkers)
}

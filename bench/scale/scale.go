// Package scale measures how uvxland copes with many leases: how soon it knows
// them, how soon it hears of a new one, how soon a path follows the underlay, what
// changes cost the traffic, and what a peer costs in memory.
package scale

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"time"

	"uvxlan/bench/cluster"
	"uvxlan/bench/lab"
)

// Parts are what [Run] can measure, in its order.
var Parts = []string{"start", "latency", "paths", "churn", "memory", "kubernetes"}

// many is the number of leases that the goals are about, and most the one that
// must be borne.
const many, most = 10_000, 100_000

// readiness bounds how long what should take a moment may take.
const readiness = time.Minute

// config has room for most subnets. Public addresses are outside of it.
const (
	config       = `{"Network":"10.0.0.0/8","SubnetLen":26,"Backend":{"Type":"VxLAN"}}`
	directConfig = `{"Network":"10.0.0.0/8","SubnetLen":26,"Backend":{"Type":"VxLAN","DirectRouting":true}}`
)

// Options say what to measure. All but Parts and Log are required.
type Options struct {
	// Lab has the hosts of [Hosts] and nothing else on them.
	Lab *lab.Lab
	// Endpoint is an empty etcd's, reached from the hosts.
	Endpoint string
	// Binary is the path of uvxland.
	Binary string
	// Dir is for the daemons' files.
	Dir string
	// Parts are those of [Parts] to measure; nil means all.
	Parts []string
	// Churn is how long leases change while iperf3 runs, in segments of five
	// seconds, and Puts how many new leases are waited for.
	Churn time.Duration
	Puts  int
	// Log gets a line for each step.
	Log io.Writer
}

// Hosts are two on one layer-2 network, with subnets of the network's end.
func Hosts() []lab.HostSpec {
	var hosts []lab.HostSpec
	for i, name := range []string{"kb21", "kb22"} {
		hosts = append(hosts, lab.HostSpec{
			Name:     name,
			Underlay: netip.PrefixFrom(netip.AddrFrom4([4]byte{192, 168, 14, byte(21 + i)}), 24),
			Gateway:  netip.AddrFrom4([4]byte{192, 168, 14, 1}),
			Subnet:   netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 255, 0, byte(64 * i)}), 26),
		})
	}
	return hosts
}

// Run measures the parts and returns a table of them.
func Run(ctx context.Context, o Options) (_ *Table, err error) {
	if o.Parts == nil {
		o.Parts = Parts
	}
	for _, p := range o.Parts {
		if !slices.Contains(Parts, p) {
			return nil, fmt.Errorf("part %q is none of %q", p, Parts)
		}
	}
	r := &run{Options: o, from: o.Lab.Host("kb21"), to: o.Lab.Host("kb22")}
	if r.leases, err = openStore(o.Endpoint, r.from, prefix); err != nil {
		return nil, err
	}
	defer r.leases.close()
	r.cluster = &cluster.Cluster{Etcd: r.from, Endpoint: o.Endpoint, Prefix: prefix}
	if err := r.cluster.SetConfig(ctx, config); err != nil {
		return nil, err
	}
	return &r.table, r.parts(ctx)
}

// prefix is the measured network's in etcd.
const prefix = "/scale/network"

// run is one measurement.
type run struct {
	Options
	from, to *lab.Host
	cluster  *cluster.Cluster
	leases   *store
	table    Table
}

func (r *run) parts(ctx context.Context) error {
	for _, p := range Parts {
		if !slices.Contains(r.Parts, p) {
			continue
		}
		measure := map[string]func(context.Context) error{
			"start": r.start, "latency": r.latency, "paths": r.paths, "churn": r.churn, "memory": r.memory, "kubernetes": r.kubernetes,
		}[p]
		if err := measure(ctx); err != nil {
			return fmt.Errorf("%s: %w", p, err)
		}
	}
	return nil
}

// fill makes so many leases in etcd.
func (r *run) fill(ctx context.Context, n int) error {
	fmt.Fprintf(r.Log, "%d leases in etcd\n", n)
	return r.leases.resize(ctx, n)
}

// with runs do while a daemon runs on a host that knows n leases, but for its own.
func (r *run) with(ctx context.Context, h *lab.Host, n int, do func(*daemon) error) (err error) {
	d, err := r.open(ctx, h)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.stop(), r.leases.forget(ctx, h)) }()
	if err := d.await(ctx, n); err != nil {
		return err
	}
	return do(d)
}

func (r *run) dir(h *lab.Host) (string, error) {
	dir := filepath.Join(r.Dir, h.Name)
	return dir, os.MkdirAll(dir, 0o755)
}

// Package demo shows uvxlan at work on one machine: three hosts in network
// namespaces, their leases in etcd, and traffic between their containers.
package demo

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"uvxlan/bench/cluster"
	"uvxlan/bench/docker"
	"uvxlan/bench/iperf"
	"uvxlan/bench/lab"
)

// DefaultDuration is that of each iperf3 run.
const DefaultDuration = 5 * time.Second

const (
	vxlanConfig  = `{"Network":"172.7.0.0/16","Backend":{"Type":"VxLAN"}}`
	hybridConfig = `{"Network":"172.7.0.0/16","Backend":{"Type":"VxLAN","Directrouting":true}}`
	// keptDir holds what the daemons of a kept lab need.
	keptDir = "/run/uvxlan-demo"
	// patience bounds what should take a moment.
	patience = 20 * time.Second
	// fullSize is the largest packet of a container whose MTU leaves room for
	// VXLAN.
	fullSize = lab.DefaultContainerMTU
)

var errInterrupted = errors.New("interrupted")

// Options say what to show.
type Options struct {
	// Binary is the path of uvxland.
	Binary string
	// Keep leaves the hosts up.
	Keep bool
	// Docker lets a dockerd on each host run the containers.
	Docker bool
	// Direct lets kb21 and kb22, which share a network, send without VXLAN.
	Direct bool
	// Duration is that of each iperf3 run.
	Duration time.Duration
	// Out gets the story.
	Out io.Writer
}

// demo is one showing.
type demo struct {
	Options
	say     *story
	lab     *lab.Lab
	cluster *cluster.Cluster
	daemons []*cluster.Daemon
	rtt     map[[2]string]time.Duration
	rates   []rate

	// With Options.Docker; containers by host.
	engines    []*docker.Engine
	containers map[string]*docker.Container
}

type rate struct {
	from, to *lab.Host
	iperf.Result
}

// Run shows it all and reports what it measured. Whatever happens, what it made
// is removed unless Keep says otherwise.
func Run(ctx context.Context, o Options) (report Report, err error) {
	if err := prepare(ctx, o); err != nil {
		return report, err
	}
	d := &demo{Options: o, say: newStory(o.Out)}
	dir, err := d.directory()
	if err != nil {
		return report, err
	}
	if !o.Keep {
		defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	}
	d.say.step("hosts kb21 and kb22 on one network, kb31 behind a router")
	d.lab, err = lab.New(ctx, lab.Options{Keep: o.Keep, Bare: o.Docker})
	if err != nil {
		return report, fmt.Errorf("make the hosts: %w", err)
	}
	defer func() { err = errors.Join(err, d.close()) }()
	d.say.done("")
	kb21 := d.lab.Host("kb21")
	d.cluster = &cluster.Cluster{
		Binary: o.Binary, Dir: dir, Etcd: kb21, Endpoint: cluster.Endpoint(kb21), Embedded: true,
	}
	if err := d.show(ctx); err != nil {
		d.say.line("")
		if ctx.Err() != nil {
			return report, errInterrupted
		}
		return report, err
	}
	if o.Keep {
		d.tellKept()
	}
	return d.report(), nil
}

// prepare finds out what is missing before anything is made.
func prepare(ctx context.Context, o Options) error {
	if os.Geteuid() != 0 {
		return errors.New("demo: it makes network namespaces and devices: run it as root")
	}
	if _, err := exec.LookPath(o.Binary); err != nil {
		return fmt.Errorf("demo: no daemon: %w (build it with `make build`, or name it with -uvxland)", err)
	}
	if o.Docker {
		if err := docker.Check(); err != nil {
			return fmt.Errorf("demo: %w", err)
		}
	}
	if _, err := exec.LookPath("iperf3"); err == nil {
		return nil
	}
	apt, err := exec.LookPath("apt-get")
	if err != nil {
		return iperf.ErrMissing
	}
	fmt.Fprintln(o.Out, "installing iperf3")
	install := exec.CommandContext(ctx, apt, "install", "-qy", "--no-install-recommends", "iperf3")
	install.Env = append(os.Environ(), "DEBIAN_FRONTEND=noninteractive")
	if out, err := install.CombinedOutput(); err != nil {
		return fmt.Errorf("%w: %w: %s", iperf.ErrMissing, err, out)
	}
	return nil
}

func (d *demo) directory() (string, error) {
	if !d.Keep {
		return os.MkdirTemp("", "uvxlan-demo-")
	}
	if err := os.RemoveAll(keptDir); err != nil {
		return "", fmt.Errorf("demo: %w", err)
	}
	if err := os.Mkdir(keptDir, 0o755); err != nil {
		return "", fmt.Errorf("demo: %w", err)
	}
	return keptDir, nil
}

// show is the story itself, once the hosts are there.
func (d *demo) show(ctx context.Context) error {
	acts := []func(context.Context) error{
		d.startDaemons, d.showConfig, d.showLeases, d.showDevices, d.pings, d.awaitDirect, d.rate, d.summary,
	}
	if d.Docker {
		acts = []func(context.Context) error{
			d.startDaemons, d.showConfig, d.showLeases, d.startDocker, d.showDevices, d.awaitDirect, d.dockerPings, d.dockerRates, d.summary,
		}
	}
	for _, act := range acts {
		if err := act(ctx); err != nil {
			return err
		}
	}
	return nil
}

func (d *demo) startDaemons(ctx context.Context) error {
	limited, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for _, h := range d.lab.Hosts() {
		d.say.step("uvxland on " + h.Name + d.with(h))
		// A daemon is stopped in order, or outlives this process if it is kept.
		daemon, err := d.cluster.Start(context.WithoutCancel(ctx), h)
		if err != nil {
			return err
		}
		d.daemons = append(d.daemons, daemon)
		if h == d.cluster.Etcd {
			if err := d.cluster.SetConfig(limited, d.config()); err != nil {
				return err
			}
		}
		if err := daemon.Ready(limited); err != nil {
			return err
		}
		d.say.done("")
	}
	return nil
}

func (d *demo) config() string {
	if d.Direct {
		return hybridConfig
	}
	return vxlanConfig
}

func (d *demo) with(h *lab.Host) string {
	if h == d.cluster.Etcd {
		return " with the embedded etcd"
	}
	return ""
}

func (d *demo) pings(ctx context.Context) error {
	limited, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	d.say.step(fmt.Sprintf("every container pings every other, %d bytes, DF set", fullSize))
	// The first round meets cold caches and is not what a user would see.
	if _, err := cluster.Mesh(limited, d.lab.Hosts(), fullSize); err != nil {
		return err
	}
	var err error
	d.rtt, err = cluster.Mesh(limited, d.lab.Hosts(), fullSize)
	if err != nil {
		return err
	}
	d.say.done("")
	return nil
}

// awaitDirect waits until hosts of one network reach each other without VXLAN,
// then measures the round trips on the paths that packets take from now on.
func (d *demo) awaitDirect(ctx context.Context) error {
	if !d.Direct {
		return nil
	}
	limited, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	d.say.step("kb21 and kb22, on one network, do without VXLAN")
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		err := errors.Join(d.daemons[0].Direct(d.daemons[1].Host), d.daemons[1].Direct(d.daemons[0].Host))
		if err == nil {
			break
		}
		select {
		case <-tick.C:
		case <-limited.Done():
			return err
		}
	}
	var err error
	if !d.Docker {
		d.rtt, err = cluster.Mesh(limited, d.lab.Hosts(), fullSize)
	}
	if err == nil {
		d.say.done("")
	}
	return err
}

// path names how packets travel between two hosts.
func (d *demo) path(from, to *lab.Host) string {
	for _, daemon := range d.daemons {
		if daemon.Host == from && daemon.Direct(to) == nil {
			return "directly"
		}
	}
	return "by VXLAN"
}

func (d *demo) rate(ctx context.Context) error {
	from := d.lab.Host("kb21")
	for _, name := range []string{"kb22", "kb31"} {
		to := d.lab.Host(name)
		d.say.step(fmt.Sprintf("iperf3, one TCP stream, %s -> %s %s, %s", from.Name, to.Name, d.path(from, to), d.Duration))
		result, err := iperf.Test{
			Server: to.Container.Node, Client: from.Container.Node, To: to.Container.Address, Duration: d.Duration,
		}.Run(ctx)
		if err != nil {
			return err
		}
		d.rates = append(d.rates, rate{from, to, result})
		d.say.done(gbits(result.BitsPerSecond))
	}
	return nil
}

// close stops the daemons as a service manager would, then removes the hosts.
func (d *demo) close() error {
	if d.Keep {
		return d.lab.Close()
	}
	d.say.step("removing it all")
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	var errs []error
	for _, e := range d.engines {
		errs = append(errs, e.Close(ctx))
	}
	for _, daemon := range d.daemons {
		errs = append(errs, daemon.Stop(ctx))
	}
	err := errors.Join(append(errs, d.lab.Close())...)
	if err == nil {
		d.say.done("")
	}
	return err
}

// Cleanup removes what Run left with Keep.
func Cleanup(ctx context.Context) error {
	if err := lab.Cleanup(ctx); err != nil {
		return err
	}
	docker.Cleanup()
	if err := os.RemoveAll(filepath.Clean(keptDir)); err != nil {
		return fmt.Errorf("demo: %w", err)
	}
	return nil
}

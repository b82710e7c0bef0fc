package main

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

// options say what to show.
type options struct {
	// binary is the path of uvxland; it is built from the source if empty.
	binary string
	// keep leaves the hosts up.
	keep bool
	// docker lets a dockerd on each host run the containers.
	docker bool
	// direct lets kb21 and kb22, which share a network, send without VXLAN.
	direct bool
	// duration is that of each iperf3 run.
	duration time.Duration
	// out gets the story, with colours if it may have them.
	out    io.Writer
	colour bool

	// self is the path of this program, for what it prints; empty means that of the
	// process.
	self string
	// whileKept is called before the hosts are left to themselves, nil for nothing.
	whileKept func([]keptCommand) error
}

// demo is one showing.
type demo struct {
	options
	say     *story
	lab     *lab.Lab
	cluster *cluster.Cluster
	daemons []*cluster.Daemon
	rtt     map[[2]string]time.Duration
	rates   []rate

	// With options.docker; containers by host.
	engines    []*docker.Engine
	containers map[string]*docker.Container
}

type rate struct {
	from, to *lab.Host
	iperf.Result
}

// show shows it all and reports what it measured. Whatever happens, what it made
// is removed unless keep says otherwise.
func show(ctx context.Context, o options) (r report, err error) {
	if err := prepare(ctx, o); err != nil {
		return r, err
	}
	d := &demo{options: o, say: newStory(o)}
	dir, err := d.directory()
	if err != nil {
		return r, err
	}
	if !o.keep {
		defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	}
	if d.binary == "" {
		if err := d.build(ctx, dir); err != nil {
			return r, err
		}
	}
	d.say.step("hosts kb21 and kb22 on one network, kb31 behind a router")
	d.lab, err = lab.New(ctx, lab.Options{Keep: o.keep, Bare: o.docker})
	if err != nil {
		return r, fmt.Errorf("make the hosts: %w", err)
	}
	defer func() { err = errors.Join(err, d.close()) }()
	d.say.done("")
	kb21 := d.lab.Host("kb21")
	d.cluster = &cluster.Cluster{
		Binary: d.binary, Dir: dir, Etcd: kb21, Endpoint: cluster.Endpoint(kb21), Embedded: true,
	}
	if err := d.acts(ctx); err != nil {
		d.say.line("")
		if ctx.Err() != nil {
			return r, errInterrupted
		}
		return r, err
	}
	if o.keep {
		d.tellKept()
		if o.whileKept != nil {
			err = o.whileKept(d.keptCommands())
		}
	}
	return d.report(), err
}

// prepare finds out what is missing before anything is made.
func prepare(ctx context.Context, o options) error {
	if os.Geteuid() != 0 {
		return errors.New("it makes network namespaces and devices: run it as root")
	}
	if o.binary != "" {
		if _, err := exec.LookPath(o.binary); err != nil {
			return fmt.Errorf("no daemon: %w (build it with `make build`, or leave -uvxland out)", err)
		}
	}
	if o.docker {
		if err := docker.Check(); err != nil {
			return err
		}
	}
	if _, err := exec.LookPath("iperf3"); err == nil {
		return nil
	}
	apt, err := exec.LookPath("apt-get")
	if err != nil {
		return iperf.ErrMissing
	}
	fmt.Fprintln(o.out, "installing iperf3")
	install := exec.CommandContext(ctx, apt, "install", "-qy", "--no-install-recommends", "iperf3")
	install.Env = append(os.Environ(), "DEBIAN_FRONTEND=noninteractive")
	if out, err := install.CombinedOutput(); err != nil {
		return fmt.Errorf("%w: %w: %s", iperf.ErrMissing, err, out)
	}
	return nil
}

// build builds the daemon, since the source is at hand, and the operator's command if
// it is of use afterwards.
func (d *demo) build(ctx context.Context, dir string) error {
	d.binary = filepath.Join(dir, "uvxland")
	args := []string{"build", "-o", dir + "/", "uvxlan/cmd/uvxland"}
	if d.keep {
		args = append(args, "uvxlan/cmd/uvxlan")
	}
	build := exec.CommandContext(ctx, "go", args...)
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return fmt.Errorf("build uvxland: %w\n%s", err, out)
	}
	return nil
}

func (d *demo) directory() (string, error) {
	if !d.keep {
		return os.MkdirTemp("", "uvxlan-demo-")
	}
	if err := os.RemoveAll(keptDir); err != nil {
		return "", fmt.Errorf("keep the hosts: %w", err)
	}
	if err := os.Mkdir(keptDir, 0o755); err != nil {
		return "", fmt.Errorf("keep the hosts: %w", err)
	}
	return keptDir, nil
}

// acts is the story itself, once the hosts are there.
func (d *demo) acts(ctx context.Context) error {
	acts := []func(context.Context) error{
		d.startDaemons, d.showConfig, d.showLeases, d.showDevices, d.pings, d.awaitDirect, d.rate, d.summary,
	}
	if d.docker {
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
	if d.direct {
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
	if !d.direct {
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
	if !d.docker {
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
		d.say.step(fmt.Sprintf("iperf3, one TCP stream, %s -> %s %s, %s", from.Name, to.Name, d.path(from, to), d.duration))
		result, err := iperf.Test{
			Server: to.Container.Node, Client: from.Container.Node, To: to.Container.Address, Duration: d.duration,
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
	if d.keep {
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

// cleanup removes what show left with keep.
func cleanup(ctx context.Context) error {
	if err := lab.Cleanup(ctx); err != nil {
		return err
	}
	docker.Cleanup()
	if err := os.RemoveAll(filepath.Clean(keptDir)); err != nil {
		return fmt.Errorf("clean up: %w", err)
	}
	return nil
}

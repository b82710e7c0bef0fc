// Package cluster runs uvxland on the hosts of a lab, as a user would: one
// process a host, told what it needs by flags.
package cluster

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"time"

	"uvxlan/bench/lab"
	"uvxlan/lease"
	"uvxlan/lease/etcd"
)

// Cluster is where the daemons of one lab find etcd, and each other.
type Cluster struct {
	// Binary is the path of uvxland.
	Binary string
	// Dir holds a folder for each host: its subnet file, state and log.
	Dir string
	// Etcd is the host that etcd runs on, and Endpoint its URL there.
	Etcd     *lab.Host
	Endpoint string
	// Prefix is the etcd key prefix of the network; empty means uvxland's own
	// default. It lets several networks share an etcd.
	Prefix string
	// Kubernetes takes the place of etcd, nil for etcd.
	Kubernetes *Kubernetes
	// Embedded makes Etcd's own daemon run the etcd.
	Embedded bool
	// FastPath is the daemons' -fast-path, unless Env or their arguments say
	// otherwise; empty means uvxland's own default.
	FastPath string
	// Args are given to every daemon, and Env beside this process's environment.
	Args []string
	Env  []string
	// Log takes what the daemons write; nil means each one's LogFile.
	Log *os.File
}

// Kubernetes is where the daemons find an API server. Each host is the Node of its name.
type Kubernetes struct {
	// Kubeconfig and NetConfig are paths of the kubeconfig and of the network
	// configuration.
	Kubeconfig, NetConfig string
}

// Endpoint is the URL of an etcd on a host of the lab, at its usual port.
func Endpoint(h *lab.Host) string { return "http://" + net.JoinHostPort(h.Address.String(), "2379") }

// Open connects to the cluster's etcd from inside its host. The caller closes
// the registry.
func (c *Cluster) Open() (*etcd.Registry, error) {
	return etcd.Open(etcd.Options{Endpoints: []string{c.Endpoint}, Prefix: c.Prefix, Dial: func(ctx context.Context, address string) (net.Conn, error) {
		var conn net.Conn
		err := c.Etcd.Do(func() (err error) {
			var d net.Dialer
			conn, err = d.DialContext(ctx, "tcp", address)
			return err
		})
		return conn, err
	}})
}

// SetConfig writes the network configuration, as an operator would, as soon as
// etcd answers.
func (c *Cluster) SetConfig(ctx context.Context, config string) error {
	if _, err := lease.ParseConfig([]byte(config)); err != nil {
		return err
	}
	registry, err := c.Open()
	if err != nil {
		return err
	}
	defer registry.Close()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		err := registry.SetConfig(ctx, []byte(config))
		if !errors.Is(err, lease.ErrUnavailable) {
			return err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return err
		}
	}
}

// Start starts a daemon on the host. The subnet of the host's container is what
// an earlier run would have left in the subnet file, so the host gets that one
// if it is free.
func (c *Cluster) Start(ctx context.Context, h *lab.Host, args ...string) (*Daemon, error) {
	d := c.daemon(h)
	if err := d.prepare(); err != nil {
		return nil, fmt.Errorf("prepare uvxland on %s: %w", h.Name, err)
	}
	return c.Restart(ctx, h, args...)
}

func (c *Cluster) daemon(h *lab.Host) *Daemon {
	return &Daemon{Host: h, dir: filepath.Join(c.Dir, h.Name)}
}

// Restart starts a daemon as a supervisor would: with what the run before left.
func (c *Cluster) Restart(ctx context.Context, h *lab.Host, args ...string) (*Daemon, error) {
	d := c.daemon(h)
	own := []string{"-subnet-file", d.SubnetFile(), "-state-dir", d.StateDir()}
	switch {
	case c.Kubernetes != nil:
		own = append(own, "-kube-subnet-mgr", "-kubeconfig-file", c.Kubernetes.Kubeconfig, "-net-config-path", c.Kubernetes.NetConfig)
	case c.Embedded && h == c.Etcd:
		own = append(own, "-embedded-etcd")
	default:
		own = append(own, "-etcd-endpoints", c.Endpoint)
	}
	if c.Prefix != "" {
		own = append(own, "-etcd-prefix", c.Prefix)
	}
	log, err := os.OpenFile(d.LogFile(), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return nil, fmt.Errorf("open log of %s: %w", h.Name, err)
	}
	defer log.Close()
	d.Cmd = h.Command(ctx, c.Binary, slices.Concat(own, c.Args, args)...)
	// A build that doesn't know a variable starts all the same.
	variables := []string{"FLANNELD_CONTROL_SOCKET=" + d.ControlSocket(), "FLANNELD_FAST_PATH=" + c.FastPath, "NODE_NAME=" + h.Name}
	d.Env = slices.Concat(os.Environ(), variables, c.Env)
	d.Stdout, d.Stderr = log, log
	if c.Log != nil {
		d.Stdout, d.Stderr = c.Log, c.Log
	}
	if err := d.Start(); err != nil {
		return nil, err
	}
	go func() { _ = d.Wait() }() // closes Done; ends with the process
	return d, nil
}

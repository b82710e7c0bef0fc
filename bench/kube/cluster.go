package kube

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	"uvxlan/bench/lab"
)

// The networks of the cluster.
const (
	// PodNetwork is where the nodes' podCIDRs are taken from.
	PodNetwork     = "10.244.0.0/16"
	serviceNetwork = "10.96.0.0/16"
	serviceAddress = "10.96.0.1" // of the API server
)

const (
	// interval is how often a condition is looked at.
	interval = 100 * time.Millisecond
	// startTimeout bounds how long a cluster takes to start, on a loaded machine.
	startTimeout = 5 * time.Minute
)

// Options say how a cluster is made. All of it is required.
type Options struct {
	// Programs is the folder of Kubernetes' programs and kubectl.
	Programs string
	// Dir is an empty folder for the cluster's data. It must not be below /etc, /opt,
	// /run or /var.
	Dir string
	// Logs is the folder for what the programs and pods write.
	Logs   string
	Logger *slog.Logger
}

// Cluster is a running cluster. It is meant for one goroutine.
type Cluster struct {
	Lab   *lab.Lab
	Nodes []*Node

	opts       Options
	authority  *authority
	kubeconfig string // of the administrator
	apiserver  *lab.Cmd
}

// Start makes a cluster whose nodes have registered. They become ready once a
// network is installed. It waits while another lab is in use on the machine, until ctx
// ends. Close ends the cluster.
func Start(ctx context.Context, o Options) (*Cluster, error) {
	l, err := lab.New(ctx, lab.Options{Hosts: lab.DefaultHosts()[:2], Bare: true, Logger: o.Logger})
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	c := &Cluster{Lab: l, opts: o}
	if err := c.start(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("start the cluster: %w", err), c.Close())
	}
	return c, nil
}

func (c *Cluster) start(ctx context.Context) (err error) {
	if c.authority, err = newAuthority(c.path("pki")); err != nil {
		return err
	}
	if err := c.startControlPlane(ctx); err != nil {
		return err
	}
	images, err := packImages(ctx, c.path("images"))
	if err != nil {
		return err
	}
	for _, h := range c.Lab.Hosts() {
		n, err := c.startNode(ctx, h)
		if err != nil {
			return fmt.Errorf("node %s: %w", h.Name, err)
		}
		c.Nodes = append(c.Nodes, n)
		for _, image := range images {
			if err := n.Import(ctx, image); err != nil {
				return err
			}
		}
	}
	return nil
}

// Close ends all processes of the cluster and removes its namespaces. The files in
// Options.Dir stay.
func (c *Cluster) Close() error { return c.Lab.Close() }

func (c *Cluster) path(elements ...string) string {
	return filepath.Join(append([]string{c.opts.Dir}, elements...)...)
}

func (c *Cluster) program(name string) string { return filepath.Join(c.opts.Programs, name) }

// launch starts a process that runs until it is killed. What it writes goes to the
// log of that name.
func (c *Cluster) launch(ctx context.Context, n *lab.Node, log string, argv ...string) (*lab.Cmd, error) {
	f, err := os.OpenFile(filepath.Join(c.opts.Logs, log+".log"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	cmd := n.Command(context.WithoutCancel(ctx), argv[0], argv[1:]...)
	cmd.Stdout, cmd.Stderr = f, f
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	go func() { _ = cmd.Wait() }() // closes Done; ends with the process
	return cmd, nil
}

// Tail returns the last lines of the log of a program, such as "kb21-kubelet".
func (c *Cluster) Tail(name string, lines int) string {
	text, err := os.ReadFile(filepath.Join(c.opts.Logs, name+".log"))
	if err != nil {
		return err.Error()
	}
	all := strings.Split(strings.TrimSpace(string(text)), "\n")
	return strings.Join(all[max(len(all)-lines, 0):], "\n")
}

// Kubectl runs kubectl as the administrator and returns what it printed.
func (c *Cluster) Kubectl(ctx context.Context, args ...string) (string, error) {
	return c.kubectl(ctx, nil, args...)
}

// Apply applies a manifest.
func (c *Cluster) Apply(ctx context.Context, manifest string) error {
	_, err := c.kubectl(ctx, strings.NewReader(manifest), "apply", "-f", "-")
	return err
}

func (c *Cluster) kubectl(ctx context.Context, in io.Reader, args ...string) (string, error) {
	cmd := c.Lab.Router().Command(ctx, c.program("kubectl"), append([]string{"--kubeconfig", c.kubeconfig}, args...)...)
	cmd.Stdin = in
	var out, errs strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		return out.String(), fmt.Errorf("kubectl %s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(errs.String()))
	}
	return strings.TrimSpace(out.String()), nil
}

// Await waits until what returns no error, or ctx ends: then the last error is told.
func Await(ctx context.Context, what func() error) error {
	tick := time.NewTicker(interval)
	defer tick.Stop()
	for {
		err := what()
		if err == nil {
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("%w: %w", ctx.Err(), err)
		}
	}
}

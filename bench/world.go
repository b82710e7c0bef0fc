package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"uvxlan/bench/cluster"
	"uvxlan/bench/lab"
	"uvxlan/bench/scenario"
	"uvxlan/bench/system"
)

// readiness bounds how long what should take a moment may take.
const readiness = 20 * time.Second

// world is a lab of one kind of underlay in which every system has a pair of
// hosts of its own, so that they can take turns without being set up anew.
type world struct {
	lab   *lab.Lab
	dir   string
	sites map[string]*system.Site
}

func newWorld(ctx context.Context, kind lab.Offload, dir string) (_ *world, err error) {
	dir = filepath.Join(dir, kind.String())
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	// The first pair has the lab's usual names.
	l, err := lab.New(ctx, lab.Options{Hosts: pair(0), Logger: slog.New(slog.NewTextHandler(os.Stdout, nil))})
	if err != nil {
		return nil, err
	}
	w := &world{lab: l, dir: dir, sites: map[string]*system.Site{}}
	defer func() {
		if err != nil {
			err = errors.Join(err, l.Close())
		}
	}()
	if err := l.SetOffloads(kind); err != nil {
		return nil, err
	}
	return w, startEtcd(ctx, l, dir)
}

// pair is the two hosts of the n-th system, on a layer-2 network of their own.
func pair(n int) []lab.HostSpec {
	var hosts []lab.HostSpec
	for i, name := range []string{"kb21", "kb22"} {
		if n > 0 {
			name = fmt.Sprintf("%s-%d", name, n)
		}
		hosts = append(hosts, lab.HostSpec{
			Name:     name,
			Underlay: netip.PrefixFrom(netip.AddrFrom4([4]byte{192, 168, byte(14 + n), byte(21 + i)}), 24),
			Gateway:  netip.AddrFrom4([4]byte{192, 168, byte(14 + n), 1}),
			Subnet:   netip.PrefixFrom(netip.AddrFrom4([4]byte{172, 7, byte(21 + 2*n + i), 0}), 24),
		})
	}
	return hosts
}

// add gives the system its hosts and waits until their containers reach each
// other, in the way that the system promises.
func (w *world) add(ctx context.Context, s system.System) error {
	site, err := w.site(ctx, s)
	if err != nil {
		return err
	}
	if err := s.Start(ctx, site); err != nil {
		return err
	}
	limited, cancel := context.WithTimeout(ctx, readiness)
	defer cancel()
	if _, err := cluster.Mesh(limited, site.Hosts(), mtu(s)); err != nil {
		return errors.Join(err, site.Check())
	}
	return site.Settle(limited)
}

// close removes everything.
func (w *world) close() error {
	err := w.lab.Close()
	for _, site := range w.sites {
		err = errors.Join(err, site.Close())
	}
	return err
}

func mtu(s system.System) int {
	if s.MTU > 0 {
		return s.MTU
	}
	return lab.DefaultContainerMTU
}

func (w *world) site(ctx context.Context, s system.System) (*system.Site, error) {
	hosts := w.lab.Hosts()
	if n := len(w.sites); n > 0 {
		hosts = nil
		for _, spec := range pair(n) {
			h, err := w.lab.AddHost(ctx, spec)
			if err != nil {
				return nil, err
			}
			hosts = append(hosts, h)
		}
	}
	site := &system.Site{
		A: hosts[0], B: hosts[1],
		Endpoint: etcdAt(hosts[0].Gateway),
		Prefix:   "/bench/" + hosts[0].Name,
		Dir:      filepath.Join(w.dir, s.Name),
	}
	w.sites[s.Name] = site
	for _, h := range site.Hosts() {
		if err := setMTU(h.Container, mtu(s)); err != nil {
			return nil, err
		}
	}
	return site, os.MkdirAll(site.Dir, 0o755)
}

func setMTU(c *lab.Container, mtu int) error {
	nl := c.Netlink()
	link, err := nl.LinkByName("eth0")
	if err == nil {
		err = nl.LinkSetMTU(link, mtu)
	}
	if err != nil {
		return fmt.Errorf("set MTU of %s: %w", c.Name, err)
	}
	return nil
}

// run measures one scenario on one system.
func (w *world) run(ctx context.Context, st step, d time.Duration) (scenario.Sample, error) {
	site := w.sites[st.system.Name]
	limited, cancel := context.WithTimeout(ctx, d+readiness)
	defer cancel()
	if err := site.Settle(limited); err != nil {
		return nil, err
	}
	sample, err := st.scenario.Run(limited, scenario.Path{
		Client: site.A.Container, Server: site.B.Container, PIDs: site.PIDs(),
	}, d)
	return sample, errors.Join(err, site.Check())
}

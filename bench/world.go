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

// world is a lab of one kind of underlay in which every system has hosts of its
// own, so that they can take turns without being set up anew.
type world struct {
	lab   *lab.Lab
	dir   string
	sites map[place]*system.Site
}

// place names a site: a system has one of two hosts, and one of three for the
// scenarios that take them.
type place struct {
	system string
	three  bool
}

func (s step) place() place { return place{s.system.Name, s.scenario.Third} }

func newWorld(ctx context.Context, kind lab.Offload, dir string) (_ *world, err error) {
	dir = filepath.Join(dir, kind.String())
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	// The first two have the lab's usual names.
	l, err := lab.New(ctx, lab.Options{Hosts: trio(0)[:2], Logger: slog.New(slog.NewTextHandler(os.Stdout, nil))})
	if err != nil {
		return nil, err
	}
	w := &world{lab: l, dir: dir, sites: map[place]*system.Site{}}
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

// trio is the hosts of the n-th site, on a layer-2 network of their own. Most sites
// have the first two only.
func trio(n int) []lab.HostSpec {
	var hosts []lab.HostSpec
	for i, name := range []string{"kb21", "kb22", "kb23"} {
		if n > 0 {
			name = fmt.Sprintf("%s-%d", name, n)
		}
		hosts = append(hosts, lab.HostSpec{
			Name:     name,
			Underlay: netip.PrefixFrom(netip.AddrFrom4([4]byte{192, 168, byte(14 + n), byte(21 + i)}), 24),
			Gateway:  netip.AddrFrom4([4]byte{192, 168, byte(14 + n), 1}),
			Subnet:   netip.PrefixFrom(netip.AddrFrom4([4]byte{172, 7, byte(21 + 3*n + i), 0}), 24),
		})
	}
	return hosts
}

// add gives the step's system its hosts and waits until their containers reach each
// other, in the way that the system promises.
func (w *world) add(ctx context.Context, st step) error {
	site, err := w.site(ctx, st)
	if err != nil {
		return err
	}
	return w.start(ctx, st.system, site)
}

func (w *world) start(ctx context.Context, s system.System, site *system.Site) error {
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

func (w *world) site(ctx context.Context, st step) (*system.Site, error) {
	n, at := len(w.sites), st.place()
	specs := trio(n)
	dir := st.system.Name
	if at.three {
		dir += "-three"
	} else {
		specs = specs[:2]
	}
	var hosts []*lab.Host
	for _, spec := range specs {
		h := w.lab.Host(spec.Name)
		if h == nil {
			var err error
			if h, err = w.lab.AddHost(ctx, spec); err != nil {
				return nil, err
			}
		}
		if err := setMTU(h.Container, mtu(st.system)); err != nil {
			return nil, err
		}
		hosts = append(hosts, h)
	}
	site := &system.Site{
		A: hosts[0], B: hosts[1],
		Endpoint: etcdAt(hosts[0].Gateway),
		Prefix:   "/bench/" + hosts[0].Name,
		Dir:      filepath.Join(w.dir, dir),
	}
	if at.three {
		site.C = hosts[2]
	}
	w.sites[at] = site
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
	site := w.sites[st.place()]
	limited, cancel := context.WithTimeout(ctx, d+2*readiness)
	defer cancel()
	if st.scenario.Fresh {
		// What it starts outlives the run.
		if err := errors.Join(site.Stop(limited), w.start(ctx, st.system, site)); err != nil {
			return nil, err
		}
	}
	if err := site.Settle(limited); err != nil {
		return nil, err
	}
	path := scenario.Path{
		Client: site.A.Container, Server: site.B.Container, ClientHost: site.A, ServerHost: site.B, PIDs: site.PIDs(),
	}
	if site.C != nil {
		path.Third = site.C.Container
	}
	sample, err := st.scenario.Run(limited, path, d)
	return sample, errors.Join(err, site.Check())
}

package system

import (
	"context"
	"fmt"
	"path/filepath"
	"time"

	"uvxlan/bench/cluster"
	"uvxlan/bench/lab"
)

// readiness bounds how long a system may take to start.
const readiness = 20 * time.Second

// The networks that uvxland may be told to make.
const (
	vxlanConfig  = `{"Network":"172.7.0.0/16","Backend":{"Type":"VxLAN"}}`
	socketConfig = `{"Network":"172.7.0.0/16","Backend":{"Type":"VxLAN","Directrouting":true}}`
	routeConfig  = `{"Network":"172.7.0.0/16","Backend":{"Type":"VxLAN","Directrouting":true,"DirectMode":"route"}}`
	hostGWConfig = `{"Network":"172.7.0.0/16","Backend":{"Type":"host-gw"}}`
)

// variant is one way to run uvxland.
type variant struct {
	name, about string
	config      string
	needs       string // flag
	fastPath    string // -fast-path; empty means the build's default
	args        []string
}

var variants = []variant{
	{"uvxlan", "uvxland, all traffic by VXLAN", vxlanConfig, "", "", nil},
	{"uvxlan-no-fastpath", "uvxland, all traffic by VXLAN and by its workers (-fast-path=off)", vxlanConfig, "fast-path", "off", nil},
	{"uvxlan-direct", "uvxland, the other host on-link: nothing encapsulated", socketConfig, "", "", nil},
	{"uvxlan-direct-no-fastpath", "uvxland, the other host on-link: by its raw socket, nothing encapsulated (-fast-path=off)", socketConfig, "fast-path", "off", nil},
	{"uvxlan-route", "uvxland, the other host on-link: by kernel routes (DirectMode route)", routeConfig, "", "", nil},
	{"uvxlan-host-gw", "uvxland, backend host-gw: kernel routes and no device", hostGWConfig, "", "", nil},
	{"uvxlan-off", "uvxland's workers, a packet at a time (-offload=off -fast-path=off)", vxlanConfig, "offload", "off", []string{"-offload=off"}},
	{"uvxlan-no-udp", "uvxland's workers, joining no UDP datagrams (-offload-disable=udp -fast-path=off)", vxlanConfig, "offload-disable", "off", []string{"-offload-disable=udp"}},
	{"uvxlan-1-worker", "uvxland with 1 worker (-workers=1 -fast-path=off)", vxlanConfig, "workers", "off", []string{"-workers=1"}},
	{"uvxlan-2-workers", "uvxland with 2 workers (-workers=2 -fast-path=off)", vxlanConfig, "workers", "off", []string{"-workers=2"}},
	{"uvxlan-8-workers", "uvxland with 8 workers (-workers=8 -fast-path=off)", vxlanConfig, "workers", "off", []string{"-workers=8"}},
	{"uvxlan-wireguard", "uvxland on wireguard-go's tun (-device-driver=wireguard -fast-path=off)", vxlanConfig, "device-driver", "off", []string{"-device-driver=wireguard"}},
	{"uvxlan-water", "uvxland on songgao/water (-device-driver=water -fast-path=off)", vxlanConfig, "device-driver", "off", []string{"-device-driver=water"}},
}

func init() {
	register(func(_ context.Context, e Env) (all []System) {
		for _, v := range variants {
			for _, d := range e.Daemons {
				all = append(all, System{
					Name: d.Name(v.name), About: v.about, Missing: v.missing(d), rank: ours, Three: true,
					Start: func(ctx context.Context, s *Site) error { return v.start(ctx, s, d) },
				})
			}
		}
		return all
	})
}

// direct reports whether the hosts reach each other without VXLAN.
func (v variant) direct() bool { return v.config != vxlanConfig }

// missing says what the build lacks; empty if nothing.
func (v variant) missing(d Daemon) string {
	switch {
	case v.needs != "" && !d.has(v.needs):
		return fmt.Sprintf("%s has no flag -%s", d.Path, v.needs)
	case v.direct() && !d.direct:
		return d.Path + " has no direct routes"
	}
	return ""
}

func (v variant) start(ctx context.Context, s *Site, d Daemon) error {
	c := s.cluster(d, v.args...)
	c.FastPath = v.fastPath
	daemons, err := startUvxlan(ctx, s, c, v.config, s.Hosts())
	if err != nil || !v.direct() {
		return err
	}
	for _, from := range daemons {
		for _, to := range s.others(from.Host) {
			s.require(func() error { return from.Direct(to) })
		}
	}
	return nil
}

// startUvxlan runs the cluster's daemon on some hosts of the site.
func startUvxlan(ctx context.Context, s *Site, c *cluster.Cluster, config string, on []*lab.Host) ([]*cluster.Daemon, error) {
	limited, cancel := context.WithTimeout(ctx, readiness)
	defer cancel()
	if err := c.SetConfig(limited, config); err != nil {
		return nil, err
	}
	var daemons []*cluster.Daemon
	for _, h := range on {
		daemon, err := c.Start(ctx, h)
		if err != nil {
			return nil, err
		}
		s.watch(daemon.Cmd, daemon.LogFile())
		if err := daemon.Ready(limited); err != nil {
			return nil, err
		}
		daemons = append(daemons, daemon)
	}
	return daemons, nil
}

func (s *Site) cluster(d Daemon, args ...string) *cluster.Cluster {
	return &cluster.Cluster{
		Binary: d.Path, Dir: filepath.Join(s.Dir, "uvxland"), Etcd: s.A, Endpoint: s.Endpoint, Prefix: s.Prefix, Args: args,
		// The other systems have no such rules either.
		Env: []string{"FLANNELD_IPTABLES_FORWARD_RULES=false"},
	}
}

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

const vxlanConfig = `{"Network":"172.7.0.0/16","Backend":{"Type":"VxLAN"}}`

// variants are the ways to run uvxland.
var variants = []struct {
	name, about string
	needs       string // flag
	args        []string
}{
	{"uvxlan", "uvxland, all traffic by VXLAN", "", nil},
	{"uvxlan-off", "uvxland, a packet at a time (-offload=off)", "offload", []string{"-offload=off"}},
	{"uvxlan-wireguard", "uvxland on wireguard-go's tun", "device-driver", []string{"-device-driver=wireguard"}},
	{"uvxlan-water", "uvxland on songgao/water", "device-driver", []string{"-device-driver=water"}},
}

func init() {
	register(func(_ context.Context, e Env) (all []System) {
		for _, v := range variants {
			for _, d := range e.Daemons {
				s := System{Name: d.Name(v.name), About: v.about, rank: ours, Start: func(ctx context.Context, s *Site) error {
					return startUvxlan(ctx, s, d, s.Hosts(), v.args...)
				}}
				if v.needs != "" && !d.has(v.needs) {
					s.Missing = fmt.Sprintf("%s has no flag -%s", d.Path, v.needs)
				}
				all = append(all, s)
			}
		}
		return all
	})
}

// startUvxlan runs the daemon on some hosts of the site.
func startUvxlan(ctx context.Context, s *Site, d Daemon, on []*lab.Host, args ...string) error {
	c := s.cluster(d, args...)
	limited, cancel := context.WithTimeout(ctx, readiness)
	defer cancel()
	if err := c.SetConfig(limited, vxlanConfig); err != nil {
		return err
	}
	for _, h := range on {
		daemon, err := c.Start(ctx, h)
		if err != nil {
			return err
		}
		s.watch(daemon.Cmd, daemon.LogFile())
		if err := daemon.Ready(limited); err != nil {
			return err
		}
	}
	return nil
}

func (s *Site) cluster(d Daemon, args ...string) *cluster.Cluster {
	return &cluster.Cluster{
		Binary: d.Path, Dir: filepath.Join(s.Dir, "uvxland"), Etcd: s.A, Endpoint: s.Endpoint, Prefix: s.Prefix, Args: args,
	}
}

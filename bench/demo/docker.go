package main

import (
	"context"
	"fmt"
	"path/filepath"
	"time"

	"uvxlan/bench/docker"
)

// startDocker starts a dockerd on each host, as its subnet file says, and one
// container there.
func (d *demo) startDocker(ctx context.Context) error {
	d.say.title("Docker, with --bip and --mtu of each host's subnet.env")
	limited, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	d.containers = make(map[string]*docker.Container)
	for _, daemon := range d.daemons {
		h := daemon.Host
		d.say.step("dockerd and a container on " + h.Name)
		e, err := docker.Start(limited, h, filepath.Join(d.cluster.Dir, h.Name, "docker"), daemon.SubnetFile())
		if err != nil {
			return err
		}
		d.engines = append(d.engines, e)
		c, err := e.Run(limited, h.Container.Name)
		if err != nil {
			return err
		}
		d.containers[h.Name] = c
		d.say.done(c.Address.String())
	}
	return nil
}

func (d *demo) dockerPings(ctx context.Context) error {
	limited, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	d.say.step(fmt.Sprintf("docker exec: every container pings every other, %d bytes", fullSize))
	d.rtt = make(map[[2]string]time.Duration)
	for _, from := range d.lab.Hosts() {
		for _, to := range d.lab.Hosts() {
			if from == to {
				continue
			}
			rtt, err := d.containers[from.Name].Ping(limited, d.containers[to.Name], fullSize)
			if err != nil {
				return err
			}
			d.rtt[[2]string{from.Name, to.Name}] = rtt
		}
	}
	d.say.done("")
	return nil
}

func (d *demo) dockerRates(ctx context.Context) error {
	from := d.lab.Host("kb21")
	for _, name := range []string{"kb22", "kb31"} {
		to := d.lab.Host(name)
		d.say.step(fmt.Sprintf("docker exec: iperf3, %s -> %s %s, %s", from.Name, to.Name, d.path(from, to), d.duration))
		result, err := d.containers[from.Name].Rate(ctx, d.containers[to.Name], d.duration)
		if err != nil {
			return err
		}
		d.rates = append(d.rates, rate{from, to, result})
		d.say.done(gbits(result.BitsPerSecond))
	}
	return nil
}

// keptDocker is a command in one of the containers that stay.
func (d *demo) keptDocker() keptCommand {
	first, other := d.engines[0], d.engines[1].Host
	return keptCommand{"a container", fmt.Sprintf("docker -H unix://%s exec %s ping -c 3 %s",
		first.Socket(), first.Host.Container.Name, d.containers[other.Name].Address)}
}

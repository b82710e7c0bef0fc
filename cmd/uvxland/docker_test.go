package main

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"uvxlan/bench/cluster"
	"uvxlan/bench/docker"
	"uvxlan/bench/lab"
	"uvxlan/tunnel/netnstest"
)

// requireDocker ends a test that can't run containers.
func requireDocker(t *testing.T) {
	t.Helper()
	netnstest.RequireRoot(t)
	err := docker.Check()
	if err != nil && os.Getenv("CI") != "" {
		t.Fatal(err)
	}
	if err != nil {
		t.Skip(err)
	}
}

// dockerHosts are the hosts of a lab with a container each that Docker runs.
type dockerHosts struct {
	*world
	containers map[string]*docker.Container
}

// startDocker starts a dockerd on every host as its subnet file says, with a
// container that serves 8 MB of random bytes.
func (w *world) startDocker() *dockerHosts {
	w.t.Helper()
	d := &dockerHosts{w, make(map[string]*docker.Container)}
	for _, h := range w.Hosts() {
		e, err := docker.Start(w.context(), h, filepath.Join(w.dir, h.Name, "docker"), filepath.Join(w.dir, h.Name, "subnet.env"))
		if err != nil {
			w.t.Fatal(err)
		}
		w.t.Cleanup(func() {
			ctx, cancel := context.WithTimeout(context.Background(), patience)
			defer cancel()
			if w.t.Failed() {
				text, err := os.ReadFile(e.LogFile())
				w.t.Logf("%s: %v\n%s", e.LogFile(), err, text)
			}
			if err := e.Close(ctx); err != nil {
				w.t.Error(err)
			}
		})
		if d.containers[h.Name], err = e.Run(w.context(), h.Name+"-web"); err != nil {
			w.t.Fatal(err)
		}
	}
	return d
}

// exchange checks that the containers of two hosts reach each other, and that
// what they send over TCP arrives.
func (d *dockerHosts) exchange(t *testing.T, a, b string) {
	t.Helper()
	for _, pair := range [][2]string{{a, b}, {b, a}} {
		from, to := d.containers[pair[0]], d.containers[pair[1]]
		if _, err := from.Ping(d.context(), to, lab.DefaultContainerMTU); err != nil {
			t.Fatal(err)
		}
		want, err := to.Fill(d.context(), "random", 8)
		if err != nil {
			t.Fatal(err)
		}
		got, err := from.Fetch(d.context(), to, "random")
		if err != nil || got != want || len(got) != 64 {
			t.Errorf("%s gets bytes from %s with the SHA-256 %q, %v; want %q", from.Name, to.Name, got, err, want)
		}
	}
}

// sees checks what address a container of one host sees another's come from.
func (d *dockerHosts) sees(t *testing.T, host, from string, want netip.Addr) {
	t.Helper()
	got, err := d.containers[from].SeenBy(d.context(), d.containers[host])
	if err != nil || got != want {
		t.Errorf("%s sees %s come from %s, %v; want %s", host, from, got, err, want)
	}
}

// Docker's containers reach each other in each of the models, and go on running
// while an operator changes from one to the next. Docker forwards nothing that
// it doesn't know (FORWARD's policy is DROP), and masquerades if uvxland
// doesn't.
func TestIntegrationDocker(t *testing.T) {
	requireDocker(t)
	w := newWorldOf(t, lab.Options{Bare: true}, hostGWConfig)
	daemons := w.startMasquerading()
	d := w.startDocker()
	for _, h := range w.Hosts() {
		if rules := command(t, h.Node, "iptables -S FORWARD"); !strings.HasPrefix(rules, "-P FORWARD DROP\n") {
			t.Errorf("Docker on %s leaves the rules\n%s", h.Name, rules)
		}
	}
	kb22 := w.Host("kb22")
	vtep := kb22.Subnet.Addr()
	for _, model := range []struct {
		name, config string
		behindRouter bool       // kb31 is reached too
		masqueraded  netip.Addr // what kb21's container sees kb22's come from
	}{
		{"host-gw", hostGWConfig, false, kb22.Address},
		{"VxLAN", vxlanConfig, true, vtep},
		{"Directrouting", hybridConfig, true, vtep},
	} {
		t.Run(model.name, func(t *testing.T) {
			for _, daemon := range daemons {
				if err := daemon.Stop(w.context()); err != nil {
					t.Fatal(err)
				}
			}
			command(t, w.Host("kb21").Node, commandBinary+" config set -etcd-endpoints "+w.cluster.Endpoint+" "+model.config)
			daemons = w.startMasquerading()
			if model.config == hybridConfig {
				awaitDirect(t, daemons[0], daemons[1])
			}
			d.exchange(t, "kb21", "kb22")
			if model.behindRouter {
				d.exchange(t, "kb21", "kb31")
				d.exchange(t, "kb31", "kb22")
			} else if said, err := d.containers["kb21"].Exec(w.context(), "ping", "-c", "1", "-W", "1", d.containers["kb31"].Address.String()); err == nil {
				t.Errorf("kb31, behind a router, is reached: %s", said)
			}
			d.sees(t, "kb22", "kb21", d.containers["kb21"].Address)
			d.sees(t, "kb21", "kb22", model.masqueraded)
		})
	}
}

// startMasquerading starts the daemons, with -ip-masq but on kb22, where that is
// left to Docker.
func (w *world) startMasquerading() (daemons []*cluster.Daemon) {
	w.t.Helper()
	for _, h := range w.Hosts() {
		d, err := w.cluster.Start(w.t.Context(), h, fmt.Sprintf("-ip-masq=%t", h.Name != "kb22"))
		if err != nil {
			w.t.Fatal(err)
		}
		daemons = append(daemons, d)
	}
	for _, d := range daemons {
		if err := d.Ready(w.context()); err != nil {
			w.t.Fatal(err)
		}
	}
	return daemons
}

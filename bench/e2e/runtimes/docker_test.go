package runtimes_test

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"uvxlan/bench/e2e"

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
	*e2e.World
	containers map[string]*docker.Container
}

// startDocker starts a dockerd on every host as its subnet file says, with a
// container that serves 8 MB of random bytes.
func startDocker(w *e2e.World) *dockerHosts {
	w.T.Helper()
	d := &dockerHosts{w, make(map[string]*docker.Container)}
	for _, h := range w.Hosts() {
		e, err := docker.Start(w.Context(), h, filepath.Join(w.Dir, h.Name, "docker"), filepath.Join(w.Dir, h.Name, "subnet.env"))
		if err != nil {
			w.T.Fatal(err)
		}
		w.T.Cleanup(func() {
			ctx, cancel := context.WithTimeout(context.Background(), e2e.Patience)
			defer cancel()
			if w.T.Failed() {
				text, err := os.ReadFile(e.LogFile())
				w.T.Logf("%s: %v\n%s", e.LogFile(), err, text)
			}
			if err := e.Close(ctx); err != nil {
				w.T.Error(err)
			}
		})
		if d.containers[h.Name], err = e.Run(w.Context(), h.Name+"-web"); err != nil {
			w.T.Fatal(err)
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
		if _, err := from.Ping(d.Context(), to, lab.DefaultContainerMTU); err != nil {
			t.Fatal(err)
		}
		want, err := to.Fill(d.Context(), "random", 8)
		if err != nil {
			t.Fatal(err)
		}
		got, err := from.Fetch(d.Context(), to, "random")
		if err != nil || got != want || len(got) != 64 {
			t.Errorf("%s gets bytes from %s with the SHA-256 %q, %v; want %q", from.Name, to.Name, got, err, want)
		}
	}
}

// sees checks what address a container of one host sees another's come from.
func (d *dockerHosts) sees(t *testing.T, host, from string, want netip.Addr) {
	t.Helper()
	got, err := d.containers[from].SeenBy(d.Context(), d.containers[host])
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
	w := e2e.NewWorldOf(t, lab.Options{Bare: true}, e2e.HostGWConfig)
	daemons := startMasquerading(w)
	d := startDocker(w)
	for _, h := range w.Hosts() {
		if rules := e2e.Command(t, h.Node, "iptables -S FORWARD"); !strings.HasPrefix(rules, "-P FORWARD DROP\n") {
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
		{"host-gw", e2e.HostGWConfig, false, kb22.Address},
		{"VxLAN", e2e.VXLANConfig, true, vtep},
		{"Directrouting", e2e.HybridConfig, true, vtep},
	} {
		t.Run(model.name, func(t *testing.T) {
			for _, daemon := range daemons {
				if err := daemon.Stop(w.Context()); err != nil {
					t.Fatal(err)
				}
			}
			e2e.Command(t, w.Host("kb21").Node, e2e.CommandBinary+" config set -etcd-endpoints "+w.Cluster.Endpoint+" "+model.config)
			daemons = startMasquerading(w)
			if model.config == e2e.HybridConfig {
				e2e.AwaitDirect(t, daemons[0], daemons[1])
			}
			d.exchange(t, "kb21", "kb22")
			if model.behindRouter {
				d.exchange(t, "kb21", "kb31")
				d.exchange(t, "kb31", "kb22")
			} else if said, err := d.containers["kb21"].Exec(w.Context(), "ping", "-c", "1", "-W", "1", d.containers["kb31"].Address.String()); err == nil {
				t.Errorf("kb31, behind a router, is reached: %s", said)
			}
			d.sees(t, "kb22", "kb21", d.containers["kb21"].Address)
			d.sees(t, "kb21", "kb22", model.masqueraded)
		})
	}
}

// startMasquerading starts the daemons, with -ip-masq but on kb22, where that is
// left to Docker.
func startMasquerading(w *e2e.World) (daemons []*cluster.Daemon) {
	w.T.Helper()
	for _, h := range w.Hosts() {
		d, err := w.Cluster.Start(w.T.Context(), h, fmt.Sprintf("-ip-masq=%t", h.Name != "kb22"))
		if err != nil {
			w.T.Fatal(err)
		}
		daemons = append(daemons, d)
	}
	for _, d := range daemons {
		if err := d.Ready(w.Context()); err != nil {
			w.T.Fatal(err)
		}
	}
	return daemons
}

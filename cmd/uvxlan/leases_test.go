package main

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"path/filepath"
	"strings"
	"testing"

	"uvxlan/cmd/internal/control"
	"uvxlan/cmd/internal/leaseadmin"
	"uvxlan/internal/cli"
	"uvxlan/lease"
	"uvxlan/lease/etcd"
	"uvxlan/lease/etcd/etcdtest"
)

// byRegistry is a daemon that has reached its etcd.
type byRegistry struct{ registry leaseadmin.Registry }

func (b byRegistry) ListLeases(ctx context.Context) ([]control.LeaseRow, error) {
	return leaseadmin.List(ctx, b.registry)
}

func (b byRegistry) ChangeLease(ctx context.Context, c control.LeaseChange) (string, error) {
	return leaseadmin.Change(ctx, b.registry, c)
}

// listen answers on a control socket until the test ends; without leases as an older
// daemon does.
func listen(t *testing.T, leases control.Leases) (socket string) {
	t.Helper()
	socket = filepath.Join(t.TempDir(), "socket")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	server := control.Serve(l, control.Handler(fixed{}, leases), slog.New(slog.DiscardHandler))
	t.Cleanup(func() {
		if err := server.Close(); err != nil {
			t.Error(err)
		}
	})
	return socket
}

// The daemon is asked unless an etcd is named, and the etcd if there is no daemon that
// knows.
func TestLeasesByTheDaemonOrEtcd(t *testing.T) {
	endpoints := make([]string, 2)
	registries := make([]*etcd.Registry, 2)
	for i, subnet := range []string{"172.7.21.0/24", "172.7.22.0/24"} {
		endpoints[i] = etcdtest.Start(t).Endpoint()
		registries[i] = etcdtest.Open(t, endpoints[i])
		l := lease.Lease{Subnet: netip.MustParsePrefix(subnet), Attrs: lease.Attrs{PublicIP: netip.MustParseAddr("192.168.14.21")}}
		if _, err := registries[i].Create(t.Context(), l, lease.DefaultTTL); err != nil {
			t.Fatal(err)
		}
	}
	daemon := listen(t, byRegistry{registries[0]})
	leases := func(args ...string) (string, error) {
		var out strings.Builder
		err := capture(t, &out, func(ctx context.Context) error { return run(ctx, append([]string{"leases"}, args...)) })
		return out.String(), err
	}
	for _, c := range []struct {
		args []string
		want string // in what it prints, or in the error
		code int
	}{
		{[]string{"-control-socket", daemon}, "172.7.21.0/24", 0},
		{[]string{"-control-socket", daemon, "-etcd-endpoints", endpoints[1]}, "172.7.22.0/24", 0},
		{[]string{"-control-socket", daemon}, "in 24h0m", 0},
		{[]string{"release", "172.7.21.0/24", "-control-socket", daemon}, "192.168.14.21 holds it", 1},
		{[]string{"release", "172.7.21.0/24", "-force", "-control-socket", daemon}, "released 172.7.21.0/24 of 192.168.14.21", 0},
		{[]string{"release", "172.7.21.0/24", "-force", "-control-socket", daemon}, "there is no such lease", 1},
		{[]string{"reserve", "172.7.21.0/24", "-control-socket", daemon}, "say for which host, with -public-ip", 1},
		{[]string{"reserve", "-etcd-endpoints", endpoints[1], "172.7.22.0/24"}, "reserved 172.7.22.0/24 for 192.168.14.21", 0},
		{[]string{"-etcd-endpoints", endpoints[1]}, "never", 0},
		{[]string{"release", "-etcd-endpoints", endpoints[1], "172.7.22.0-24", "-o", "json"}, `"done": "released 172.7.22.0/24`, 0},
	} {
		out, err := leases(c.args...)
		if err != nil {
			out += err.Error()
		}
		if cli.ExitCode(err) != c.code || !strings.Contains(out, c.want) {
			t.Errorf("%q: exit code %d, %s, want %s", c.args, cli.ExitCode(err), out, c.want)
		}
	}
	// Variables name an etcd too; an older daemon and none are passed over.
	t.Setenv("FLANNELD_ETCD_ENDPOINTS", endpoints[1])
	if out, err := leases("-control-socket", daemon); err != nil || strings.Contains(out, "172.7.21") {
		t.Errorf("it printed %s%v", out, err)
	}
	t.Setenv("FLANNELD_ETCD_ENDPOINTS", "")
	c := leasesCommand{options: func() etcd.Options { return etcd.Options{Endpoints: []string{endpoints[0]}} }}
	for _, socket := range []string{filepath.Join(t.TempDir(), "none"), listen(t, nil)} {
		c.socket = &socket
		asked := false
		err := c.anyWay(func(d *control.Client) error { _, err := d.Leases(t.Context()); return err },
			func(*etcd.Registry) error { asked = true; return nil })
		if err != nil || !asked {
			t.Errorf("%s: etcd was asked: %t, %v", socket, asked, err)
		}
		err = c.anyWay(func(d *control.Client) error { _, err := d.Leases(t.Context()); return err },
			func(*etcd.Registry) error { return lease.ErrUnavailable })
		if !errors.Is(err, lease.ErrUnavailable) || !strings.Contains(err.Error(), "-etcd-endpoints") {
			t.Errorf("%s: %v", socket, err)
		}
	}
}

package main

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"path/filepath"
	"strings"
	"testing"

	"uvxlan/cmd/internal/control"
	"uvxlan/internal/cli"
	"uvxlan/lease/kube/kubetest"
)

// Where the leases are in Kubernetes, they are shown as what they are, and what isn't
// ours to change is refused in words.
func TestKubernetes(t *testing.T) {
	s := kubetest.Start(t)
	s.WriteConfig(t, `{"Network":"10.244.0.0/16","Backend":{"Type":"vxlan"}}`)
	s.CreateNode(t, "n1", "10.244.0.0/24")
	s.Join(t, "n1", "192.168.14.21", "02:00:00:00:00:21")
	socket := filepath.Join(t.TempDir(), "socket")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	status := control.Status{Ready: true, Kubernetes: &control.Registry{Up: true}}
	server := control.Serve(l, control.Handler(fixed{status: status}, byRegistry{s.Open(t, "n1", nil)}), slog.New(slog.DiscardHandler))
	t.Cleanup(func() {
		if err := server.Close(); err != nil {
			t.Error(err)
		}
	})
	for _, c := range []struct {
		args string
		want []string // in what it prints, or in the error
		code int
	}{
		{"leases", []string{"10.244.0.0/24", "192.168.14.21", "02:00:00:00:00:21", "never", "podCIDR"}, 0},
		{"leases release 10.244.0.0/24", []string{"refused", "kubectl delete node"}, 1},
		{"leases reserve 10.244.0.0/24", []string{"refused", "kubectl delete node"}, 1},
		{`config set {"Network":"10.9.0.0/16"}`, []string{"-net-config-path", "ConfigMap"}, 1},
		{"config get", []string{"-net-config-path"}, 1},
		{"config check", []string{"-net-config-path"}, 1},
		{`config check {"Network":"10.244.0.0/16","Backend":{"Type":"vxlan"}}`, []string{"the configuration is valid"}, 0},
		{"status", []string{"kubernetes"}, 0},
	} {
		var out strings.Builder
		args := append(strings.Fields(c.args), "-control-socket", socket)
		err := capture(t, &out, func(ctx context.Context) error { return run(ctx, args) })
		text := out.String()
		if err != nil {
			text += err.Error()
		}
		for _, want := range c.want {
			if !strings.Contains(text, want) {
				t.Errorf("%s: no %q in %s", c.args, want, text)
			}
		}
		if cli.ExitCode(err) != c.code {
			t.Errorf("%s: exit code %d, %v", c.args, cli.ExitCode(err), err)
		}
	}
	if err := run(t.Context(), []string{"config", "get", "-control-socket", socket, "-etcd-endpoints", "http://127.0.0.1:1"}); err == nil || errors.Is(err, errInKubernetes) {
		t.Errorf("with an etcd named: %v", err)
	}
}

package kubernetes_test

import (
	"os"
	"testing"

	"uvxlan/bench/cluster"
	"uvxlan/bench/e2e"
	"uvxlan/bench/lab"
	"uvxlan/lease/kube/kubetest"
	"uvxlan/tunnel/netnstest"
)

func TestMain(m *testing.M) { e2e.Main(m) }

// netConfig is the network as the lab's containers have it.
const netConfig = `{"Network":"172.7.0.0/16","Backend":{"Type":"vxlan","Port":8472}}`

// world is a lab whose hosts are Nodes. The API server is on kb21.
type world struct {
	*e2e.World
	api *kubetest.Server
}

// newWorld makes the hosts. Those named in nodes are registered, with their containers'
// subnets as podCIDRs.
func newWorld(t *testing.T, nodes ...string) *world {
	t.Helper()
	return newWorldOf(t, lab.Options{}, netConfig, nodes...)
}

// newWorldOf makes other hosts, and another configuration.
func newWorldOf(t *testing.T, o lab.Options, config string, nodes ...string) *world {
	t.Helper()
	netnstest.RequireRoot(t)
	l, err := lab.New(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	kb21 := l.Host("kb21")
	w := &world{&e2e.World{Lab: l, T: t, Dir: t.TempDir()}, kubetest.StartAt(t, kb21.Address.String()+":6443", kb21.Do)}
	w.Cluster = &cluster.Cluster{
		Binary: e2e.DaemonBinary, Dir: w.Dir,
		Kubernetes: &cluster.Kubernetes{Kubeconfig: w.api.Kubeconfig(t), NetConfig: w.api.WriteConfig(t, config)},
	}
	for _, name := range nodes {
		podCIDRs := []string{l.Host(name).Subnet.String()}
		if v6 := l.Host(name).IPv6.Subnet; v6.IsValid() {
			podCIDRs = append(podCIDRs, v6.String())
		}
		w.api.CreateNode(t, name, podCIDRs...)
	}
	t.Cleanup(func() {
		if t.Failed() {
			w.ShowLogs()
		}
	})
	return w
}

// subnetFile is what a host's container runtime reads, "" if there is none.
func subnetFile(t *testing.T, d *cluster.Daemon) string {
	t.Helper()
	text, err := os.ReadFile(d.SubnetFile())
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	return string(text)
}

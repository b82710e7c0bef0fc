package kube_test

import (
	"fmt"
	"testing"

	"uvxlan/lease/kube"
	"uvxlan/lease/kube/kubetest"
	"uvxlan/lease/registrytest"
)

func TestContract(t *testing.T) {
	t.Parallel()
	registrytest.Run(t, func(t *testing.T) registrytest.Cluster {
		s := kubetest.Start(t)
		return newContractCluster(t, s.Cluster, s)
	})
}

// A real API server passes the same tests.
func TestContractOfKubeAPIServer(t *testing.T) {
	t.Parallel()
	s := kubetest.StartInstalled(t)
	registrytest.Run(t, func(t *testing.T) registrytest.Cluster { return newContractCluster(t, s.Cluster, s) })
	for _, test := range clusterTests {
		t.Run(test.name, func(t *testing.T) {
			s.Clear(t)
			test.run(t, s.Cluster)
		})
	}
}

// clusterTests are those that any API server passes.
var clusterTests = []struct {
	name string
	run  func(*testing.T, *kubetest.Cluster)
}{
	{"Publish", publish},
	{"OwnNode", ownNode},
	{"Duplicate", duplicate},
	{"DuplicateOfOwn", duplicateOfOwn},
	{"NodeRegistersAnew", nodeRegistersAnew},
	{"Unreadable", unreadable},
	{"Overwrite", overwrite},
	{"Condition", networkUnavailable},
}

func TestCluster(t *testing.T) {
	t.Parallel()
	for _, test := range clusterTests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			test.run(t, kubetest.Start(t).Cluster)
		})
	}
}

// ups can go and come back.
type ups interface {
	Up(tb testing.TB)
	Down()
}

type contractCluster struct {
	*kubetest.Cluster
	ups ups
}

func newContractCluster(t *testing.T, c *kubetest.Cluster, u ups) *contractCluster {
	t.Helper()
	c.Clear(t)
	for i := range 3 {
		c.CreateNode(t, contractNode(i+1), registrytest.Subnet(i+1).String())
	}
	return &contractCluster{c, u}
}

func contractNode(host int) string { return fmt.Sprintf("host-%d", host) }

func (c *contractCluster) Configure(tb testing.TB, config string) {
	tb.Helper()
	c.WriteConfig(tb, config)
}

func (c *contractCluster) Open(tb testing.TB, host int) registrytest.Registry {
	tb.Helper()
	return c.Cluster.Open(tb, contractNode(host), func(o *kube.Options) { o.LeaveCondition = true })
}

func (c *contractCluster) Rewrite(tb testing.TB, host int, publicIP string) {
	tb.Helper()
	c.Annotate(tb, contractNode(host), map[string]any{"public-ip": publicIP})
}

func (c *contractCluster) Spoil(tb testing.TB, host int) {
	tb.Helper()
	c.Annotate(tb, contractNode(host), map[string]any{"backend-data": "{"})
}

func (c *contractCluster) Remove(tb testing.TB, host int) {
	tb.Helper()
	c.Annotate(tb, contractNode(host), map[string]any{"kube-subnet-manager": nil, "backend-data": nil, "backend-type": nil, "public-ip": nil})
}

func (c *contractCluster) Down(testing.TB) { c.ups.Down() }

func (c *contractCluster) Up(tb testing.TB) {
	tb.Helper()
	c.ups.Up(tb)
}

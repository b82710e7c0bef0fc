package etcd_test

import (
	"encoding/json"
	"testing"

	"uvxlan/lease"
	"uvxlan/lease/etcd/etcdtest"
	"uvxlan/lease/registrytest"
)

func TestContract(t *testing.T) {
	t.Parallel()
	registrytest.Run(t, func(t *testing.T) registrytest.Cluster {
		dir := t.TempDir()
		c := &contractCluster{dir: dir, server: etcdtest.StartAt(t, dir, "http://127.0.0.1:0")}
		c.endpoint = c.server.Endpoint()
		return c
	})
}

// contractCluster is an etcd that goes and comes back at its address.
type contractCluster struct {
	dir, endpoint string
	server        *etcdtest.Server
}

func (c *contractCluster) Configure(tb testing.TB, config string) {
	tb.Helper()
	if err := etcdtest.Open(tb, c.endpoint).SetConfig(tb.Context(), []byte(config)); err != nil {
		tb.Fatal(err)
	}
}

func (c *contractCluster) Open(tb testing.TB, _ int) registrytest.Registry {
	tb.Helper()
	return etcdtest.Open(tb, c.endpoint)
}

func (*contractCluster) key(host int) string {
	return subnets + lease.Lease{Subnet: registrytest.Subnet(host)}.Key()
}

func (c *contractCluster) Rewrite(tb testing.TB, host int, publicIP string) {
	tb.Helper()
	client := etcdtest.Client(tb, c.endpoint)
	got, err := client.Get(tb.Context(), c.key(host))
	if err != nil || len(got.Kvs) != 1 {
		tb.Fatalf("%v, %v", got, err)
	}
	var value map[string]any
	if err := json.Unmarshal(got.Kvs[0].Value, &value); err != nil {
		tb.Fatal(err)
	}
	value["PublicIP"] = publicIP
	text, err := json.Marshal(value)
	if err != nil {
		tb.Fatal(err)
	}
	c.put(tb, host, string(text))
}

func (c *contractCluster) put(tb testing.TB, host int, value string) {
	tb.Helper()
	if _, err := etcdtest.Client(tb, c.endpoint).Put(tb.Context(), c.key(host), value); err != nil {
		tb.Fatal(err)
	}
}

func (c *contractCluster) Spoil(tb testing.TB, host int) {
	tb.Helper()
	c.put(tb, host, "{")
}

func (c *contractCluster) Remove(tb testing.TB, host int) {
	tb.Helper()
	if _, err := etcdtest.Client(tb, c.endpoint).Delete(tb.Context(), c.key(host)); err != nil {
		tb.Fatal(err)
	}
}

func (c *contractCluster) Down(testing.TB) { c.server.Close() }

func (c *contractCluster) Up(tb testing.TB) {
	tb.Helper()
	c.server = etcdtest.StartAt(tb, c.dir, c.endpoint)
}

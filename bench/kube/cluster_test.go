package kube_test

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"uvxlan/bench/kube"
	"uvxlan/tunnel/netnstest"
)

const (
	// programs, in the environment, is the folder of the cluster's programs, and own
	// that of uvxlan's.
	programs, own = "UVXLAN_KUBE", "UVXLAN_TEST_BIN"
	// patience bounds what a cluster does by itself, on a loaded machine.
	patience = 3 * time.Minute
	// outage is how long the API server is away.
	outage = 20 * time.Second
	// settled is how many answered pings say that pods reach each other.
	settled = 100
	// prefix is that of the nodes' annotations.
	prefix = "flannel.alpha.coreos.com/"
)

// clusterTest is a cluster, and a pod on each node.
type clusterTest struct {
	*testing.T
	*kube.Cluster
	pods  []*kube.Pod
	table []string // what pings of all scenarios came to
	// losses is the file that tells when pings were sent that were lost.
	losses *os.File
}

func (c *clusterTest) ctx() context.Context {
	c.Helper()
	ctx, cancel := context.WithTimeout(c.Context(), patience)
	c.Cleanup(cancel)
	return ctx
}

// must ends the test if there is an error.
func (c *clusterTest) must(err error) {
	c.Helper()
	if err != nil {
		c.Fatal(err)
	}
}

// kubectl runs kubectl with the words of a line.
func (c *clusterTest) kubectl(line string) string {
	c.Helper()
	said, err := c.Kubectl(c.ctx(), strings.Fields(line)...)
	c.must(err)
	return said
}

// start starts a cluster that has the image of uvxlan.
func start(t *testing.T) *clusterTest {
	t.Helper()
	netnstest.RequireRoot(t)
	dir := os.Getenv(programs)
	if dir == "" {
		t.Skip("a cluster is for make kube")
	}
	c := &clusterTest{T: t}
	logs := t.ArtifactDir()
	var err error
	c.losses, err = os.Create(filepath.Join(logs, "losses"))
	c.must(err)
	t.Cleanup(func() { c.losses.Close() })
	cluster, err := kube.Start(t.Context(), kube.Options{Programs: dir, Dir: t.TempDir(), Logs: logs, Logger: slog.New(slog.DiscardHandler)})
	c.must(err)
	t.Cleanup(func() {
		if err := cluster.Close(); err != nil {
			t.Error(err)
		}
	})
	c.Cluster = cluster
	t.Cleanup(func() {
		if t.Failed() {
			c.explain()
		}
	})
	c.must(c.LoadUvxlan(c.ctx(), os.Getenv(own)))
	return c
}

// explain has the log tell what there is when a test has failed.
func (c *clusterTest) explain() {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(c.Context()), patience)
	defer cancel()
	for _, line := range []string{
		"get nodes,pods,daemonsets,services --all-namespaces -o wide",
		"get events --all-namespaces --sort-by=.lastTimestamp",
		"-n uvxlan logs -l app=uvxlan --tail=100 --prefix",
	} {
		said, err := c.Kubectl(ctx, strings.Fields(line)...)
		c.Logf("kubectl %s: %v\n%s", line, err, said)
	}
}

// startPods waits until the nodes are ready and starts a pod on each, afresh.
func (c *clusterTest) startPods() {
	c.Helper()
	c.pods = nil
	for i, n := range c.Nodes {
		c.must(n.AwaitReady(c.ctx()))
		p, err := n.Pod(c.ctx(), "web-"+n.Name, 8080+i)
		c.must(err)
		c.pods = append(c.pods, p)
	}
}

// scenario is something that happens while pods ping each other.
type scenario struct {
	name string
	// lost is how many pings of one direction may be lost, and gap for how long none
	// may be answered, if that isn't 0. Where it isn't none, the bound is several times
	// what an idle machine shows, since this one may be busy.
	lost int
	gap  time.Duration
	do   func(c *clusterTest)
}

// run pings in both directions through a scenario.
func (c *clusterTest) run(s scenario) {
	c.Helper()
	var pings []*kube.Pings
	for i, from := range c.pods {
		g, err := from.Ping(c.pods[1-i])
		c.must(err)
		pings = append(pings, g)
	}
	settle := func() {
		c.Helper()
		for _, g := range pings {
			c.must(g.AwaitAnswers(c.ctx(), settled))
		}
	}
	settle()
	s.do(c)
	settle()
	for i, g := range pings {
		loss, err := g.End()
		c.must(err)
		line := fmt.Sprintf("%-40s %s -> %s: %s", s.name, c.pods[i].Node.Name, c.pods[1-i].Node.Name, loss)
		c.Log(line)
		c.table = append(c.table, line)
		for _, at := range g.Lost() {
			fmt.Fprintln(c.losses, s.name, c.pods[i].Node.Name, at.UTC().Format("15:04:05.000"))
		}
		if s.gap == 0 && loss.Lost > s.lost || s.gap > 0 && loss.Gap > s.gap {
			c.Errorf("%s: more than allowed: %d lost, a gap of %s", s.name, s.lost, s.gap)
		}
	}
}

// TestIntegrationKubernetes runs uvxlan in a cluster through all that a network of
// containers must live through.
func TestIntegrationKubernetes(t *testing.T) {
	c := start(t)
	c.must(c.InstallUvxlan(c.ctx()))
	for _, n := range c.Nodes {
		c.must(n.AwaitDaemon(c.ctx(), "uvxlan", "uvxlan"))
	}
	c.startPods()
	c.show()
	c.reach()
	for _, s := range []scenario{
		{name: "annotations removed", do: (*clusterTest).removeAnnotations},
		{name: "API server killed for 20 s", do: (*clusterTest).killAPIServer},
		{name: "API server away, daemon killed", gap: 10 * time.Second, do: (*clusterTest).killDaemon},
		{name: "rollout of the DaemonSet", do: (*clusterTest).rollOut},
		{name: "rollout that adds the fast path", do: (*clusterTest).addFastPath},
	} {
		c.run(s)
	}
	c.recreateNode()
	c.reach()
	t.Logf("in short:\n%s", strings.Join(c.table, "\n"))
}

// show has the log tell what there is.
func (c *clusterTest) show() {
	c.Helper()
	c.Log("\n" + c.kubectl("get nodes,pods,daemonsets --all-namespaces -o wide"))
	for _, n := range c.Nodes {
		said, err := n.Uvxlan(c.ctx(), "status")
		c.Logf("%s: %v\n%s", n.Name, err, said)
	}
}

// reach asks each pod from the other and from its node: by its own address, by that of
// a service, and by its node's port.
func (c *clusterTest) reach() {
	c.Helper()
	ctx := c.ctx()
	for i, p := range c.pods {
		service, err := p.Expose(c.ctx())
		c.must(err)
		other := c.pods[1-i]
		for _, from := range []string{other.Namespace(), other.Node.Namespace()} {
			for way, at := range map[string]netip.AddrPort{
				"address": netip.AddrPortFrom(p.Address, 80), "ClusterIP": service,
				"hostPort": netip.AddrPortFrom(p.Node.Address, uint16(8080+i)),
			} {
				err := kube.Await(ctx, func() error {
					name, err := kube.Ask(ctx, from, at)
					if err == nil && name != p.Name {
						err = fmt.Errorf("%s answers", name)
					}
					return err
				})
				if err != nil {
					c.Errorf("%s, by its %s %s from %s: %v", p.Name, way, at, from, err)
				}
			}
		}
		c.kubectl("delete service " + p.Name)
	}
}

// removeAnnotations removes what flannel's annotations say of each node. It is put
// back.
func (c *clusterTest) removeAnnotations() {
	for _, n := range c.Nodes {
		before, err := n.Annotations(c.ctx())
		c.must(err)
		line := "annotate node " + n.Name
		for name := range before {
			if strings.HasPrefix(name, prefix) {
				line += " " + name + "-"
			}
		}
		c.kubectl(line)
		c.must(kube.Await(c.ctx(), func() error {
			now, err := n.Annotations(c.ctx())
			for name, value := range before {
				if strings.HasPrefix(name, prefix) && now[name] != value {
					err = fmt.Errorf("%s: %s is %q, was %q", n.Name, name, now[name], value)
				}
			}
			return err
		}))
	}
}

func (c *clusterTest) killAPIServer() {
	c.must(c.KillAPIServer())
	time.Sleep(outage) // the scenario's length
	c.must(c.StartAPIServer(c.ctx()))
}

// killDaemon kills the daemon while the API server is away. The kubelet starts it
// again.
func (c *clusterTest) killDaemon() {
	c.must(c.KillAPIServer())
	n := c.Nodes[1]
	c.must(n.KillDaemon(c.ctx()))
	time.Sleep(outage) // the scenario's length
	c.must(c.StartAPIServer(c.ctx()))
	c.must(n.AwaitDaemon(c.ctx(), "uvxlan", "uvxlan"))
}

// rollOut replaces all pods of the DaemonSet.
func (c *clusterTest) rollOut() {
	c.kubectl("-n uvxlan rollout restart daemonset uvxlan")
	c.kubectl("-n uvxlan rollout status daemonset uvxlan --timeout=150s")
}

// addFastPath gives the daemons the capability that the fast path takes.
func (c *clusterTest) addFastPath() {
	c.must(c.InstallUvxlan(c.ctx(), "fast-path"))
	c.kubectl("-n uvxlan rollout status daemonset uvxlan --timeout=150s")
	for _, n := range c.Nodes {
		c.must(kube.Await(c.ctx(), func() error { return fastPath(c.ctx(), n) }))
	}
}

// fastPath is why a node has no fast path, nil if it has.
func fastPath(ctx context.Context, n *kube.Node) error {
	said, err := n.Uvxlan(ctx, "status", "-o", "json")
	if err != nil {
		return err
	}
	var status struct {
		FastPath struct {
			On     bool   `json:"on"`
			Reason string `json:"reason"`
		} `json:"fast_path"`
	}
	err = json.Unmarshal([]byte(said), &status)
	if err == nil && !status.FastPath.On {
		err = fmt.Errorf("the fast path of %s is off: %s", n.Name, status.FastPath.Reason)
	}
	return err
}

// recreateNode deletes a node and has its kubelet register it anew, with another
// podCIDR. Its pods are gone; new ones have addresses of the new subnet and are
// reached.
func (c *clusterTest) recreateNode() {
	c.Helper()
	n := c.Nodes[1]
	before, err := n.PodCIDR(c.ctx())
	c.must(err)
	c.must(n.StopKubelet(c.ctx()))
	c.kubectl("delete node " + n.Name)
	c.must(n.StartKubelet(c.ctx()))
	var after string
	c.must(kube.Await(c.ctx(), func() (err error) {
		after, err = n.PodCIDR(c.ctx())
		return err
	}))
	c.must(n.AwaitDaemon(c.ctx(), "uvxlan", "uvxlan"))
	c.must(n.AwaitNetwork(c.ctx(), after))
	// A pod that outlived the Node has an address of the old subnet.
	c.must(c.pods[1].Delete(c.ctx()))
	c.startPods()
	if !netip.MustParsePrefix(after).Contains(c.pods[1].Address) {
		c.Errorf("the new pod has %s, the node %s", c.pods[1].Address, after)
	}
	line := fmt.Sprintf("%s recreated: its podCIDR was %s and is %s", n.Name, before, after)
	c.Log(line)
	c.table = append(c.table, line)
	c.run(scenario{name: "after " + n.Name + " was recreated", do: func(*clusterTest) {}})
}

// TestIntegrationMigration moves nodes from flannel to uvxlan and back, while pods
// ping each other.
func TestIntegrationMigration(t *testing.T) {
	c := start(t)
	c.must(c.InstallFlannel(c.ctx()))
	c.kubectl("label nodes --all network=flannel")
	c.kubectl(`-n kube-flannel patch daemonset kube-flannel-ds --type=merge -p {"spec":{"template":{"spec":{"nodeSelector":{"network":"flannel"}}}}}`)
	c.kubectl("-n kube-flannel rollout status daemonset kube-flannel-ds --timeout=150s")
	c.startPods()
	c.must(c.InstallUvxlan(c.ctx(), "migration"))
	to := func(n *kube.Node, network, namespace, app string) func(*clusterTest) {
		return func(c *clusterTest) {
			c.kubectl("label node --overwrite " + n.Name + " network=" + network)
			c.must(n.AwaitDaemon(c.ctx(), namespace, app))
		}
	}
	toUvxlan := func(n *kube.Node) func(*clusterTest) { return to(n, "uvxlan", "uvxlan", "uvxlan") }
	first, second := c.Nodes[0], c.Nodes[1]
	for _, s := range []scenario{
		{name: "both with flannel", do: func(*clusterTest) {}},
		{name: "kb22 from flannel to uvxlan", lost: 20, do: toUvxlan(second)},
		{name: "kb22 back to flannel", lost: 1000, do: to(second, "flannel", "kube-flannel", "flannel")},
		{name: "kb22 from flannel to uvxlan again", lost: 20, do: toUvxlan(second)},
		{name: "kb21 from flannel to uvxlan", lost: 20, do: toUvxlan(first)},
	} {
		c.run(s)
	}
	c.kubectl("delete namespace kube-flannel")
	c.show()
	c.reach()
	t.Logf("in short:\n%s", strings.Join(c.table, "\n"))
}

package health_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"uvxlan/bench/cluster"
	"uvxlan/bench/e2e"
	"uvxlan/bench/lab"
)

// often is an interval between probes that tests can wait for.
const often = "-probe-interval=1s"

// start starts daemons that probe often.
func start(w *e2e.World, names ...string) (daemons []*cluster.Daemon) {
	w.T.Helper()
	for _, name := range names {
		d, err := w.Cluster.Start(w.T.Context(), w.Host(name), often)
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

// await waits until a daemon's peer of a host is as wanted. A host with both families
// is two peers.
func await(t *testing.T, d *cluster.Daemon, h *lab.Host, what string, ok func(e2e.Peer) bool) {
	t.Helper()
	e2e.Await(t, h.Name+" "+what, func() bool {
		found, right := 0, 0
		for _, p := range e2e.AskPeers(t, d) {
			if p.Subnet == h.Subnet || p.Subnet == h.IPv6.Subnet {
				found++
				if p.Health != nil && ok(p) {
					right++
				}
			}
		}
		return found > 0 && right == found
	})
}

func answers(p e2e.Peer) bool {
	return p.Health.State == "answers" && p.Health.RTTSeconds > 0 && p.Health.Answered > 0 && !p.LastHeard.IsZero()
}

func takesLong(p e2e.Peer) bool { return answers(p) && p.Health.FullSize == "passes" }

func isSilent(p e2e.Peer) bool {
	return p.Health.State == "silent" && p.Health.Loss.Missed >= 3 && p.Health.RTTSeconds == 0
}

// table is what the operator sees.
func table(t *testing.T, d *cluster.Daemon) string {
	t.Helper()
	return e2e.Command(t, d.Host.Node, e2e.CommandBinary+" peers -control-socket "+d.ControlSocket())
}

func lines(t *testing.T, d *cluster.Daemon, words string) int {
	t.Helper()
	return strings.Count(e2e.LogOf(t, d), words)
}

// A peer whose link is down, one whose port is blocked and one that loses long packets
// are told apart from those that are well. They stay in the table, and are well again
// once the fault is gone. A reload blames nobody.
func TestIntegrationPeersHealth(t *testing.T) {
	w := e2e.NewWorld(t)
	kb22, kb31 := w.Host("kb22"), w.Host("kb31")
	daemons := start(w, "kb21", "kb22")
	d := daemons[0]
	kernel := e2e.NewKernelPeer(t, kb31) // which answers as uvxlan does
	kernel.Learn(w.LeaseOf("kb21"))
	l, err := w.Registry().Create(w.Context(), kernel.Lease(), time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	l.Attrs = kernel.Lease().Attrs
	await(t, d, kb22, "answers", takesLong)
	await(t, d, kb31, "answers", takesLong)
	t.Logf("all are well:\n%s", table(t, d))

	if err := kb22.LinkDown(); err != nil {
		t.Fatal(err)
	}
	await(t, d, kb22, "is silent", isSilent)
	await(t, d, kb31, "answers", answers)
	t.Logf("the link of %s is down:\n%s", kb22.Name, table(t, d))
	if text := table(t, d); !strings.Contains(text, "it last answered ") {
		t.Errorf("the table is\n%s", text)
	}
	e2e.AwaitLine(t, d, time.Time{}, "peer doesn't answer", kb22.Subnet.String())
	e2e.AwaitWords(t, d, "peers", "2, of which 1 don't answer")
	if err := kb22.LinkUp(w.Context()); err != nil {
		t.Fatal(err)
	}
	await(t, d, kb22, "answers again", answers)
	e2e.AwaitLine(t, d, time.Time{}, "peer answers again", kb22.Subnet.String())

	block(t, kb31.Node, "udp dport 4789")
	await(t, d, kb31, "is silent", isSilent)
	e2e.Await(t, "its packets are heard", func() bool {
		// They come, whatever becomes of the answers.
		_, _ = kb31.Container.Run(t.Context(), "ping", "-c1", "-W1", w.Container("kb21").Address.String())
		return strings.Contains(table(t, d), "its packets come")
	})
	t.Logf("the port of %s is blocked on the way in:\n%s", kb31.Name, table(t, d))
	unblock(t, kb31.Node)
	await(t, d, kb31, "answers again", answers)

	block(t, kb31.Node, "udp dport 4789 meta length > 1400")
	silent := lines(t, d, "peer doesn't answer")
	if err := d.Process.Signal(unix.SIGUSR2); err != nil {
		t.Fatal(err)
	}
	e2e.AwaitLine(t, d, time.Time{}, "took over")
	await(t, d, kb22, "answers after the reload", takesLong)
	await(t, d, kb31, "loses long packets", func(p e2e.Peer) bool { return answers(p) && p.Health.FullSize == "lost" })
	e2e.AwaitLine(t, d, time.Time{}, "long packets to a peer or back are lost", kb31.Subnet.String())
	t.Logf("%s loses long packets:\n%s", kb31.Name, table(t, d))
	if n := lines(t, d, "peer doesn't answer") - silent; n != 0 {
		t.Errorf("the reload has %d peers silent:\n%s", n, e2e.LogOf(t, d))
	}
}

// block drops on a host what comes and matches a rule.
func block(t *testing.T, n *lab.Node, match string) {
	t.Helper()
	e2e.Shell(t, n, fmt.Sprintf("nft 'add table inet health; add chain inet health in { type filter hook input priority 0; }; add rule inet health in %s drop'", match))
}

func unblock(t *testing.T, n *lab.Node) {
	t.Helper()
	e2e.Shell(t, n, "nft delete table inet health")
}

// The peers answer in each model and by each carrier, of both families.
func TestIntegrationHealthInEachModel(t *testing.T) {
	w := e2e.NewDualWorld(t, e2e.VXLANConfig)
	for _, m := range []struct{ backend, carrier, path22 string }{
		{`"Type":"vxlan"`, "off", "vxlan"},
		{`"Type":"vxlan"`, "auto", "vxlan"},
		{`"Type":"vxlan","DirectRouting":true`, "off", "direct"},
		{`"Type":"vxlan","DirectRouting":true`, "auto", "direct"},
		{`"Type":"vxlan","DirectRouting":true,"DirectMode":"route"`, "auto", "direct"},
		{`"Type":"host-gw"`, "auto", "direct"},
	} {
		t.Run(m.backend+" "+m.carrier, func(t *testing.T) {
			w.Configure(`{"Network":"172.7.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:7::/56","Backend":{` + m.backend + `}}`)
			w.Cluster.FastPath = m.carrier
			daemons := start(w, "kb21", "kb22")
			for i, to := range []string{"kb22", "kb21"} {
				await(t, daemons[i], w.Host(to), "answers by "+m.path22, func(p e2e.Peer) bool { return takesLong(p) && p.Path == m.path22 })
			}
			t.Logf("\n%s", table(t, daemons[0]))
			e2e.End(t, unix.SIGTERM, daemons...)
		})
	}
}

// A host of flannel's answers.
func TestIntegrationHealthOfFlannel(t *testing.T) {
	flanneld, err := exec.LookPath("flanneld")
	if err != nil {
		t.Skip("no flanneld in PATH")
	}
	w := e2e.NewWorld(t, "kb21", "kb22")
	// With nftables, flanneld doesn't insist on br_netfilter; its port is the kernel's.
	w.Configure(`{"Network":"172.7.0.0/16","EnableNFTables":true,"Backend":{"Type":"vxlan","Port":8472}}`)
	kb22 := w.Host("kb22")
	file := filepath.Join(t.TempDir(), "subnet.env")
	previous := fmt.Sprintf("FLANNEL_NETWORK=172.7.0.0/16\nFLANNEL_SUBNET=%s/24\n", kb22.Container.Address.Prev())
	if err := os.WriteFile(file, []byte(previous), 0o644); err != nil {
		t.Fatal(err)
	}
	f := kb22.Command(t.Context(), flanneld, "-etcd-endpoints="+w.Cluster.Endpoint, "-iface=eth0", "-subnet-file="+file, "-ip-masq=false", "-iptables-forward-rules=false")
	if err := f.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Stop(t.Context()) })
	d := start(w, "kb21")[0]
	await(t, d, kb22, "answers", takesLong)
	t.Logf("\n%s", table(t, d))
}

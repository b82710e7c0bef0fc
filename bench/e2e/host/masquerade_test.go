package host_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"uvxlan/bench/e2e"
)

const masqNFTConfig = `{"Network":"172.7.0.0/16","EnableNFTables":true,"Backend":{"Type":"VxLAN"}}`

// What containers send out of the overlay comes from their host's address, what
// they send to each other from their own, and a host that forwards nothing by
// itself forwards for the overlay.
func TestIntegrationMasquerade(t *testing.T) {
	w := e2e.NewWorld(t, "kb21", "kb31")
	kb21, kb31 := w.Host("kb21"), w.Host("kb31")
	for _, c := range []struct {
		name, config, deny, left string
		leftover                 []string
	}{
		{
			"iptables", e2e.VXLANConfig, "iptables -P FORWARD DROP", "iptables -t nat -S FLANNEL-POSTRTG",
			[]string{"removed iptables chain FLANNEL-POSTRTG of table nat", "removed iptables chain FLANNEL-FWD of table filter"},
		},
		{
			"nftables", masqNFTConfig, "iptables -P FORWARD ACCEPT", "nft list table ip flannel-ipv4",
			[]string{"removed nftables table flannel-ipv4"},
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			w.Configure(c.config)
			for _, h := range w.Hosts() {
				e2e.Command(t, h.Node, c.deny)
			}
			w.Cluster.Args = []string{"-ip-masq", "-iptables-resync=1"}
			daemons := w.Start("kb21", "kb31")
			w.Mesh("kb21", "kb31")
			if got := e2e.SeenFrom(t, kb21.Container.Node, w.Router(), kb21.Gateway); got != kb21.Address {
				t.Errorf("the router sees %s, want the host's %s", got, kb21.Address)
			}
			if got := e2e.SeenFrom(t, kb21.Container.Node, kb31.Container.Node, kb31.Container.Address); got != kb21.Container.Address {
				t.Errorf("a container of the other host sees %s, want the container's own %s", got, kb21.Container.Address)
			}
			for _, d := range daemons {
				if file := e2e.SubnetFile(t, d.SubnetFile()); file["FLANNEL_IPMASQ"] != "true" {
					t.Errorf("the subnet file says %v", file)
				}
				if err := d.Stop(w.Context()); err != nil {
					t.Error(err)
				}
				rules := e2e.Command(t, d.Host.Node, c.left)
				if !strings.Contains(rules, d.Host.Subnet.String()) {
					t.Errorf("after the daemon the rules are\n%s", rules)
				}
				said := e2e.Command(t, d.Host.Node, e2e.CommandBinary+" cleanup -state-dir "+d.StateDir())
				for _, line := range c.leftover {
					if !strings.Contains(said, line+"\n") {
						t.Errorf("the cleanup doesn't say %q:\n%s", line, said)
					}
				}
				if _, err := d.Host.Run(t.Context(), "sh", "-c", c.left); err == nil {
					t.Errorf("the cleanup leaves\n%s", e2e.Command(t, d.Host.Node, c.left))
				}
			}
		})
	}
}

// A restart with another subnet, or without -ip-masq, leaves no rule of the one
// before.
func TestIntegrationMasqueradeOfAnotherSubnet(t *testing.T) {
	w := e2e.NewWorld(t, "kb21")
	kb21 := w.Host("kb21")
	d, err := w.Cluster.Start(t.Context(), kb21, "-ip-masq")
	if err != nil {
		t.Fatal(err)
	}
	if err := d.Ready(w.Context()); err != nil {
		t.Fatal(err)
	}
	earlier := e2e.Command(t, kb21.Node, "iptables -t nat -S FLANNEL-POSTRTG")
	if err := d.Stop(w.Context()); err != nil {
		t.Fatal(err)
	}
	w.Configure(`{"Network":"172.8.0.0/16","Backend":{"Type":"VxLAN"}}`)
	run := func(args ...string) {
		t.Helper()
		args = append(args, "-subnet-file", d.SubnetFile(), "-state-dir", d.StateDir(), "-etcd-endpoints", w.Cluster.Endpoint)
		c, out := e2e.NewCommand(t, w, append([]string{e2e.DaemonBinary}, args...)...)
		if err := c.Start(); err != nil {
			t.Fatal(err)
		}
		for ctx := w.Context(); ; time.Sleep(5 * time.Millisecond) {
			if file := e2e.SubnetFile(t, d.SubnetFile()); file["FLANNEL_NETWORK"] == "172.8.0.0/16" && (file["FLANNEL_IPMASQ"] == "true") == (args[0] == "-ip-masq") {
				break
			}
			if ctx.Err() != nil {
				t.Fatalf("it isn't ready: %v", c.Stop(ctx))
			}
		}
		if err := c.Stop(w.Context()); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}
	run("-ip-masq")
	now := e2e.Command(t, kb21.Node, "iptables -t nat -S FLANNEL-POSTRTG")
	if strings.Contains(now, "172.7.") || strings.Count(now, "172.8.") == 0 || strings.Count(now, "\n") != strings.Count(earlier, "\n") {
		t.Errorf("the rules were\n%sand are\n%s", earlier, now)
	}
	run("-iptables-forward-rules=true")
	if all := e2e.Command(t, kb21.Node, "iptables -t nat -S"); strings.Contains(all, "FLANNEL") {
		t.Errorf("without -ip-masq there is\n%s", all)
	}
}

// Where there is no iptables, the daemon says so once and goes on, unless it was
// told to masquerade (see TestIntegrationStartErrors).
func TestIntegrationNoIPTables(t *testing.T) {
	w := e2e.NewWorld(t, "kb21")
	kb21 := w.Host("kb21")
	w.Cluster.Binary = filepath.Join(t.TempDir(), "uvxland")
	script := fmt.Sprintf("#!/bin/sh\nPATH=/nowhere exec %s \"$@\"\n", e2e.DaemonBinary)
	if err := os.WriteFile(w.Cluster.Binary, []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	d := w.Start("kb21")[0]
	if log := e2e.LogOf(t, d); strings.Count(log, "iptables can't be used") != 1 || strings.Count(log, "level=WARN") != 1 {
		t.Errorf("it says\n%s", log)
	}
	if err := d.Stop(w.Context()); err != nil {
		t.Fatal(err)
	}
	w.Configure(masqNFTConfig)
	w.Cluster.Args = []string{"-ip-masq"}
	w.Start("kb21")
	if got := e2e.SeenFrom(t, kb21.Container.Node, w.Router(), kb21.Gateway); got != kb21.Address {
		t.Errorf("with nftables the router sees %s, want the host's %s", got, kb21.Address)
	}
}

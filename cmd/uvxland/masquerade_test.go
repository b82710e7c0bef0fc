package main

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"uvxlan/bench/lab"
	"uvxlan/cmd/internal/subnetfile"
)

const masqNFTConfig = `{"Network":"172.7.0.0/16","EnableNFTables":true,"Backend":{"Type":"VxLAN"}}`

// seenFrom sends datagrams from one node to another until one arrives and
// returns the address that it came from.
func seenFrom(t *testing.T, from, to *lab.Node, at netip.Addr) netip.Addr {
	t.Helper()
	var receiver *net.UDPConn
	err := to.Do(func() (err error) {
		receiver, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(at, 0)))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	defer receiver.Close()
	var sender net.Conn
	err = from.Do(func() (err error) {
		sender, err = net.Dial("udp", receiver.LocalAddr().String())
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	defer sender.Close()
	for end := time.Now().Add(patience); time.Now().Before(end); {
		if _, err := sender.Write([]byte("hello")); err != nil {
			t.Fatal(err)
		}
		if err := receiver.SetReadDeadline(time.Now().Add(100 * time.Millisecond)); err != nil {
			t.Fatal(err)
		}
		if _, source, err := receiver.ReadFromUDPAddrPort(make([]byte, 16)); err == nil {
			return source.Addr().Unmap()
		}
	}
	t.Fatalf("nothing from %s arrives at %s", from.Name, at)
	return netip.Addr{}
}

// What containers send out of the overlay comes from their host's address, what
// they send to each other from their own, and a host that forwards nothing by
// itself forwards for the overlay.
func TestIntegrationMasquerade(t *testing.T) {
	w := newWorld(t, "kb21", "kb31")
	kb21, kb31 := w.Host("kb21"), w.Host("kb31")
	for _, c := range []struct {
		name, config, deny, left string
		leftover                 []string
	}{
		{
			"iptables", vxlanConfig, "iptables -P FORWARD DROP", "iptables -t nat -S FLANNEL-POSTRTG",
			[]string{"removed iptables chain FLANNEL-POSTRTG of table nat", "removed iptables chain FLANNEL-FWD of table filter"},
		},
		{
			"nftables", masqNFTConfig, "iptables -P FORWARD ACCEPT", "nft list table ip flannel-ipv4",
			[]string{"removed nftables table flannel-ipv4"},
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			w.configure(c.config)
			for _, h := range w.Hosts() {
				command(t, h.Node, c.deny)
			}
			w.cluster.Args = []string{"-ip-masq", "-iptables-resync=1"}
			daemons := w.start("kb21", "kb31")
			w.mesh("kb21", "kb31")
			if got := seenFrom(t, kb21.Container.Node, w.Router(), kb21.Gateway); got != kb21.Address {
				t.Errorf("the router sees %s, want the host's %s", got, kb21.Address)
			}
			if got := seenFrom(t, kb21.Container.Node, kb31.Container.Node, kb31.Container.Address); got != kb21.Container.Address {
				t.Errorf("a container of the other host sees %s, want the container's own %s", got, kb21.Container.Address)
			}
			for _, d := range daemons {
				if file, err := subnetfile.Read(d.SubnetFile()); err != nil || !file.IPMasq {
					t.Errorf("the subnet file says %+v, %v", file, err)
				}
				if err := d.Stop(w.context()); err != nil {
					t.Error(err)
				}
				rules := command(t, d.Host.Node, c.left)
				if !strings.Contains(rules, d.Host.Subnet.String()) {
					t.Errorf("after the daemon the rules are\n%s", rules)
				}
				said := command(t, d.Host.Node, commandBinary+" cleanup -state-dir "+d.StateDir())
				for _, line := range c.leftover {
					if !strings.Contains(said, line+"\n") {
						t.Errorf("the cleanup doesn't say %q:\n%s", line, said)
					}
				}
				if _, err := d.Host.Run(t.Context(), "sh", "-c", c.left); err == nil {
					t.Errorf("the cleanup leaves\n%s", command(t, d.Host.Node, c.left))
				}
			}
		})
	}
}

// A restart with another subnet, or without -ip-masq, leaves no rule of the one
// before.
func TestIntegrationMasqueradeOfAnotherSubnet(t *testing.T) {
	w := newWorld(t, "kb21")
	kb21 := w.Host("kb21")
	d, err := w.cluster.Start(t.Context(), kb21, "-ip-masq")
	if err != nil {
		t.Fatal(err)
	}
	if err := d.Ready(w.context()); err != nil {
		t.Fatal(err)
	}
	earlier := command(t, kb21.Node, "iptables -t nat -S FLANNEL-POSTRTG")
	if err := d.Stop(w.context()); err != nil {
		t.Fatal(err)
	}
	w.configure(`{"Network":"172.8.0.0/16","Backend":{"Type":"VxLAN"}}`)
	run := func(args ...string) {
		t.Helper()
		args = append(args, "-subnet-file", d.SubnetFile(), "-state-dir", d.StateDir(), "-etcd-endpoints", w.cluster.Endpoint)
		c, out := startCommand(t, w, append([]string{daemonBinary}, args...)...)
		if err := c.Start(); err != nil {
			t.Fatal(err)
		}
		for ctx := w.context(); ; time.Sleep(5 * time.Millisecond) {
			if file, err := subnetfile.Read(d.SubnetFile()); err == nil && file.Network.String() == "172.8.0.0/16" && file.IPMasq == (args[0] == "-ip-masq") {
				break
			}
			if ctx.Err() != nil {
				t.Fatalf("it isn't ready: %v", c.Stop(ctx))
			}
		}
		if err := c.Stop(w.context()); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}
	run("-ip-masq")
	now := command(t, kb21.Node, "iptables -t nat -S FLANNEL-POSTRTG")
	if strings.Contains(now, "172.7.") || strings.Count(now, "172.8.") == 0 || strings.Count(now, "\n") != strings.Count(earlier, "\n") {
		t.Errorf("the rules were\n%sand are\n%s", earlier, now)
	}
	run("-iptables-forward-rules=true")
	if all := command(t, kb21.Node, "iptables -t nat -S"); strings.Contains(all, "FLANNEL") {
		t.Errorf("without -ip-masq there is\n%s", all)
	}
}

// Where there is no iptables, the daemon says so once and goes on, unless it was
// told to masquerade (see TestIntegrationStartErrors).
func TestIntegrationNoIPTables(t *testing.T) {
	w := newWorld(t, "kb21")
	kb21 := w.Host("kb21")
	w.cluster.Binary = filepath.Join(t.TempDir(), "uvxland")
	script := fmt.Sprintf("#!/bin/sh\nPATH=/nowhere exec %s \"$@\"\n", daemonBinary)
	if err := os.WriteFile(w.cluster.Binary, []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	d := w.start("kb21")[0]
	if log := logOf(t, d); strings.Count(log, "iptables can't be used") != 1 || strings.Count(log, "level=WARN") != 1 {
		t.Errorf("it says\n%s", log)
	}
	if err := d.Stop(w.context()); err != nil {
		t.Fatal(err)
	}
	w.configure(masqNFTConfig)
	w.cluster.Args = []string{"-ip-masq"}
	w.start("kb21")
	if got := seenFrom(t, kb21.Container.Node, w.Router(), kb21.Gateway); got != kb21.Address {
		t.Errorf("with nftables the router sees %s, want the host's %s", got, kb21.Address)
	}
}

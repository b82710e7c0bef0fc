package fastpath_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"uvxlan/bench/cluster"
	"uvxlan/bench/e2e"
	"uvxlan/bench/lab"
)

// awaitFastPath waits until a daemon's fast path is on, or off for a reason with all
// the words.
func awaitFastPath(t *testing.T, d *cluster.Daemon, on bool, words ...string) {
	t.Helper()
	what := fmt.Sprintf("the fast path is on: %t %q", on, words)
	e2e.AwaitStatus(t, d, what, func(s e2e.Status) bool {
		if s.FastPath == nil || s.FastPath.On != on {
			return false
		}
		for _, w := range words {
			if !strings.Contains(s.FastPath.Reason, w) {
				return false
			}
		}
		return true
	})
}

// attached counts the programs at ingress and egress of a host's interfaces, by tcx
// and by clsact.
func attached(t *testing.T, h *lab.Host) (n int) {
	t.Helper()
	err := h.Do(func() error {
		links, err := h.Netlink().LinkList()
		if err != nil {
			return err
		}
		for _, l := range links {
			for _, at := range []ebpf.AttachType{ebpf.AttachTCXIngress, ebpf.AttachTCXEgress} {
				found, err := link.QueryPrograms(link.QueryOptions{Target: l.Attrs().Index, Attach: at})
				if err != nil && !errors.Is(err, ebpf.ErrNotSupported) && !errors.Is(err, unix.EINVAL) {
					return err
				}
				if found != nil {
					n += len(found.Programs)
				}
			}
			out, err := h.Run(t.Context(), "tc", "filter", "show", "dev", l.Attrs().Name, "ingress")
			if err == nil {
				n += strings.Count(string(out), " bpf ")
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// start starts daemons with a fast path of the mode.
func start(t *testing.T, w *e2e.World, mode string) []*cluster.Daemon {
	t.Helper()
	w.Cluster.FastPath = mode
	w.Cluster.Args = []string{"-iptables-resync=1"}
	daemons := w.Start("kb21", "kb22")
	w.Mesh("kb21", "kb22")
	return daemons
}

// Rules that would be passed by switch the fast path off, and packets go on by the
// workers; once the rules are gone it is on again.
func TestIntegrationFirewallRules(t *testing.T) {
	w := e2e.NewWorld(t, "kb21", "kb22")
	d := start(t, w, "auto")[0]
	awaitFastPath(t, d, true)
	kb21 := w.Host("kb21")
	for _, c := range []struct{ add, remove, words string }{
		{"iptables-nft -t mangle -A OUTPUT -p udp --dport 4789 -j DSCP --set-dscp 46", "iptables-nft -t mangle -F OUTPUT", "th dport 4789 -j DSCP"},
		{"iptables-legacy -A INPUT -p udp --dport 4789 -m limit --limit 100000/s -j ACCEPT; iptables-legacy -A INPUT -p udp --sport 53 -j DROP; iptables-legacy -A OUTPUT -p udp -m multiport --dports 53,4789", "iptables-legacy -F", "--dports 53,4789"},
		{`nft 'table inet z { set ports { type inet_service; flags interval; elements = { 4000-5000 }; }; chain in { type filter hook input priority 0; udp dport @ports counter; }; }'`, "nft delete table inet z", "th dport @ports"},
		{"iptables-nft -A INPUT -s 192.168.14.0/24 -j ACCEPT; iptables-nft -A INPUT -i lo -j ACCEPT; iptables-nft -P INPUT DROP", "iptables-nft -P INPUT ACCEPT; iptables-nft -F INPUT", ""},
	} {
		e2e.Shell(t, kb21.Node, c.add)
		if c.words == "" { // each peer is accepted: nothing is passed by that matters
			awaitFastPath(t, d, true)
		} else {
			awaitFastPath(t, d, false, c.words, "VXLAN datagrams")
			if n := attached(t, kb21); n != 0 {
				t.Errorf("%d programs are attached in spite of %s", n, c.add)
			}
		}
		w.Mesh("kb21", "kb22")
		e2e.Shell(t, kb21.Node, c.remove)
		awaitFastPath(t, d, true)
	}
}

// With on, such rules are a note.
func TestIntegrationFirewallRulesAndOn(t *testing.T) {
	w := e2e.NewWorld(t, "kb21", "kb22")
	d := start(t, w, "on")[0]
	e2e.Shell(t, d.Host.Node, "iptables-nft -t mangle -A OUTPUT -p udp --dport 4789 -j DSCP --set-dscp 46")
	e2e.AwaitWords(t, d, "note", "th dport 4789 -j DSCP", "which the fast path bypasses")
	awaitFastPath(t, d, true)
}

// A start with on is refused, in a line, where there can be no fast path; auto starts
// without.
func TestIntegrationNoCapability(t *testing.T) {
	w := e2e.NewWorld(t, "kb21", "kb22")
	program := filepath.Join(t.TempDir(), "uvxland")
	text := "#!/bin/sh\nexec setpriv --bounding-set=-bpf,-sys_admin --inh-caps=-bpf,-sys_admin " + e2e.DaemonBinary + " \"$@\"\n"
	if err := os.WriteFile(program, []byte(text), 0o755); err != nil {
		t.Fatal(err)
	}
	w.Cluster.Binary = program
	w.Cluster.FastPath = "on"
	d, err := w.Cluster.Start(t.Context(), w.Host("kb21"))
	if err != nil {
		t.Fatal(err)
	}
	err = d.Ready(w.Context())
	if err == nil || !strings.Contains(err.Error(), "-fast-path=on: no fast path") || !strings.Contains(err.Error(), "leave -fast-path=on away") {
		t.Errorf("a start with on: %v", err)
	}
	if links := e2e.Shell(t, w.Host("kb21").Node, "ip -o link"); strings.Contains(links, "flannel.1") {
		t.Errorf("the device is left: %s", links)
	}
	d = start(t, w, "auto")[0]
	awaitFastPath(t, d, false)
}

// Who carries a peer is told, and what is carried is counted, whoever does it.
func TestIntegrationCarrier(t *testing.T) {
	for _, config := range []string{e2e.VXLANConfig, e2e.HybridConfig} {
		for _, mode := range []string{"on", "off"} {
			t.Run(config+mode, func(t *testing.T) {
				w := e2e.NewWorldOf(t, lab.Options{Hosts: lab.DefaultHosts()[:2]}, config)
				daemons := start(t, w, mode)
				if config == e2e.HybridConfig {
					e2e.AwaitDirect(t, daemons...)
				}
				d, on := daemons[0], mode == "on"
				e2e.Await(t, "the peer's carrier", func() bool {
					peers := e2e.AskPeers(t, d)
					return len(peers) == 1 && peers[0].Fast == on
				})
				before := e2e.AskPeers(t, d)[0].Traffic
				fastBefore := e2e.AskStatus(t, d).FastPath
				e2e.Transfer(t, w.Container("kb21").Node, w.Container("kb22"), 8<<20)
				e2e.Await(t, "the counters", func() bool {
					now := e2e.AskPeers(t, d)[0].Traffic
					return now.Sent.Packets >= before.Sent.Packets+8<<20/1500
				})
				fast := e2e.AskStatus(t, d).FastPath
				if carried := fast.Sent.Packets - fastBefore.Sent.Packets; (carried > 0) != on {
					t.Errorf("the fast path carried %d packets, and left %v", carried, fast.Sent.Left)
				}
			})
		}
	}
}

// However a daemon ends, nothing stays attached that its device would be missing.
func TestIntegrationNothingStays(t *testing.T) {
	w := e2e.NewWorld(t, "kb21", "kb22")
	kb21 := w.Host("kb21")
	d := start(t, w, "on")[0]
	for _, signal := range []unix.Signal{unix.SIGTERM, unix.SIGKILL} {
		if attached(t, kb21) == 0 {
			t.Fatal("nothing is attached")
		}
		e2e.End(t, signal, d)
		e2e.Await(t, fmt.Sprintf("nothing is attached after %s", signal), func() bool { return attached(t, kb21) == 0 })
		var err error
		if d, err = w.Cluster.Restart(t.Context(), kb21); err != nil {
			t.Fatal(err)
		}
		e2e.Await(t, "the fast path is on again", func() bool {
			s, err := e2e.TryStatus(t.Context(), d)
			return err == nil && s.FastPath != nil && s.FastPath.On
		})
		w.Mesh("kb21", "kb22")
	}
}

// A device that is deleted, and one whose underlay moves, has a fast path again.
func TestIntegrationMadeAgain(t *testing.T) {
	w := e2e.NewWorld(t, "kb21", "kb22")
	d := start(t, w, "on")[0]
	e2e.Shell(t, d.Host.Node, "ip link del flannel.1")
	e2e.Await(t, "a new device", func() bool { return strings.Contains(e2e.LogOf(t, d), "making the device and the sockets again") })
	w.Mesh("kb21", "kb22")
	awaitFastPath(t, d, true)
	e2e.Await(t, "the peer is carried", func() bool { return e2e.AskPeers(t, d)[0].Fast })
}

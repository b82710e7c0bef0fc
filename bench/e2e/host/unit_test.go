package host_test

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"uvxlan/bench/e2e"
	"uvxlan/bench/lab"
)

// unitCapabilities are those that the unit of systemd leaves the daemon, in the
// form of setpriv, such as "net_admin".
func unitCapabilities(t *testing.T) (names []string) {
	t.Helper()
	text, err := os.ReadFile("../../../cmd/uvxland/deploy/systemd/uvxland.service")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if all, ok := strings.CutPrefix(line, "CapabilityBoundingSet="); ok {
			for name := range strings.FieldsSeq(all) {
				names = append(names, strings.ToLower(strings.TrimPrefix(name, "CAP_")))
			}
		}
	}
	if len(names) == 0 {
		t.Fatal("the unit limits no capabilities")
	}
	return names
}

// The daemon does all it is for with the capabilities that its unit leaves it, on a
// file system that it can't write to apart from /run and its own folders.
func TestIntegrationConfinedByUnit(t *testing.T) {
	w := e2e.NewWorldOf(t, lab.Options{Hosts: lab.DefaultHosts()[:2]}, e2e.HybridConfig)
	program := filepath.Join(t.TempDir(), "uvxland")
	text := fmt.Sprintf(`#!/bin/sh
exec unshare --mount sh -ec '
	for dir in /run %[1]s; do mount --bind "$dir" "$dir"; done
	mount -o remount,bind,ro /
	exec setpriv --no-new-privs --bounding-set=-all,+%[2]s --inh-caps=-all %[3]s "$@"
' sh "$@"
`, w.Dir, strings.Join(unitCapabilities(t), ",+"), e2e.DaemonBinary)
	if err := os.WriteFile(program, []byte(text), 0o755); err != nil {
		t.Fatal(err)
	}
	w.Cluster.Binary, w.Cluster.FastPath, w.Cluster.Args = program, "on", []string{"-ip-masq"}
	daemons := w.Start("kb21", "kb22")
	d := daemons[0]
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", d.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	allowed := fmt.Sprintf("%016x", 1<<unix.CAP_NET_ADMIN|1<<unix.CAP_NET_RAW|1<<unix.CAP_BPF)
	for _, line := range []string{"Name:\tuvxland\n", "CapEff:\t" + allowed + "\n", "CapBnd:\t" + allowed + "\n", "NoNewPrivs:\t1\n"} {
		if !bytes.Contains(status, []byte(line)) {
			t.Errorf("the process has no %q:\n%s", line, status)
		}
	}
	inside := fmt.Sprintf("nsenter --mount=/proc/%d/ns/mnt ", d.Process.Pid)
	if said := e2e.Shell(t, d.Host.Node, inside+"touch /etc/uvxlan-test /usr/uvxlan-test 2>&1 || true"); strings.Count(said, "Read-only file system") != 2 {
		t.Errorf("the file system can be written to: %s", said)
	}

	works := func() {
		t.Helper()
		w.Mesh("kb21", "kb22")
		e2e.AwaitDirect(t, daemons...)
		e2e.AwaitStatus(t, d, "the fast path is on, and what it lacks", func(s e2e.Status) bool {
			return s.FastPath != nil && s.FastPath.On && strings.Contains(s.FastPath.NoRelay, "CAP_SYS_ADMIN")
		})
		e2e.Await(t, "the peer answers probes", func() bool {
			peers := e2e.AskPeers(t, d)
			return len(peers) == 1 && peers[0].Health != nil && peers[0].Health.State == "answers"
		})
		rules := e2e.Shell(t, d.Host.Node, "iptables -t nat -S; iptables -S")
		if !strings.Contains(rules, "FLANNEL-POSTRTG") || !strings.Contains(rules, "FLANNEL-FWD") {
			t.Errorf("the firewall rules are %s", rules)
		}
	}
	works()
	begin := time.Now()
	if err := d.Process.Signal(unix.SIGUSR2); err != nil {
		t.Fatal(err)
	}
	e2e.AwaitLine(t, d, begin, "took over")
	works()
	e2e.End(t, unix.SIGTERM, daemons...)
}

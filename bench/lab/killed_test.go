package lab

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"uvxlan/tunnel/netnstest"
)

// killedRun starts a process that makes a lab, kills it and returns the
// processes that it had started: one directly, one by way of a shell.
func killedRun(t *testing.T) (direct, orphan int) {
	t.Helper()
	run := exec.CommandContext(t.Context(), os.Args[0])
	run.Env = append(os.Environ(), childVariable+"=1")
	out, err := run.StdoutPipe()
	must(t, err)
	must(t, run.Start())
	line, err := bufio.NewReader(out).ReadString('\n')
	must(t, err)
	if _, err := fmt.Sscanf(line, "ready %d %d", &direct, &orphan); err != nil {
		t.Fatalf("child: %s", line)
	}
	must(t, run.Process.Kill())
	_ = run.Wait()
	return direct, orphan
}

func alive(pid int) bool { return processID(pid) != nsID{} }

func TestIntegrationKilledRun(t *testing.T) {
	netnstest.RequireRoot(t)
	must(t, Cleanup(t.Context()))
	warmUp(t)
	before := traces(t)
	_, orphan := killedRun(t)
	if names, err := markedNamespaces(); err != nil || len(names) != 7 {
		t.Fatalf("a killed run left %v, %v", names, err)
	}
	if !alive(orphan) {
		t.Error("nothing left to be killed")
	}
	l, err := New(t.Context(), Options{Hosts: DefaultHosts()[:2]})
	must(t, err)
	if alive(orphan) {
		t.Error("process of the killed run still runs")
	}
	reach(t, l.Host("kb21").Node, l.Host("kb22").Address, underlayMTU)
	must(t, l.Close())
	expectNoTraces(t, before)
}

func TestIntegrationCleanup(t *testing.T) {
	netnstest.RequireRoot(t)
	must(t, Cleanup(t.Context()))
	warmUp(t)
	before := traces(t)
	direct, orphan := killedRun(t)
	must(t, os.WriteFile(namespacePath("kb22-c1.keep"), nil, 0o444))
	t.Cleanup(func() { must(t, os.Remove(namespacePath("kb22-c1.keep"))) })
	must(t, Cleanup(t.Context()))
	if alive(direct) || alive(orphan) {
		t.Error("processes left")
	}
	must(t, os.WriteFile(namespacePath("kb21"), nil, 0o444))
	must(t, Cleanup(t.Context()))
	before = append(before, namespacePath("kb22-c1.keep")+" ")
	expectNoTraces(t, before)
}

func TestIntegrationKeep(t *testing.T) {
	netnstest.RequireRoot(t)
	warmUp(t)
	before := traces(t)
	l := newLab(t, Options{Hosts: DefaultHosts()[:1], Keep: true})
	sleep := l.Host("kb21").Command(t.Context(), "sleep", "1000")
	must(t, sleep.Start())
	must(t, l.Close())
	if !alive(sleep.Process.Pid) {
		t.Error("process ended with Close")
	}
	must(t, Cleanup(t.Context()))
	if err := sleep.Wait(); err == nil || !sleep.endedBy(unix.SIGKILL) {
		t.Errorf("process not killed: %v", err)
	}
	expectNoTraces(t, before)
}

func TestIntegrationMark(t *testing.T) {
	l := newLab(t, Options{Hosts: DefaultHosts()[:1]})
	lo, err := l.Router().Netlink().LinkByName("lo")
	must(t, err)
	if lo.Attrs().Alias != mark || lo.Attrs().OperState == netlink.OperDown {
		t.Errorf("loopback: %+v", lo.Attrs())
	}
}

package host_test

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"uvxlan/bench/e2e"
	"uvxlan/bench/lab"
)

// controlGroup is a new group of the machine's that has a controller: of v2 where
// that is in force, or else of v1.
type controlGroup struct {
	dir string
	v2  bool
}

func newControlGroup(t *testing.T, controller string) controlGroup {
	t.Helper()
	const root = "/sys/fs/cgroup"
	name := "uvxlan-test-" + strconv.Itoa(os.Getpid())
	g := controlGroup{dir: filepath.Join(root, name), v2: true}
	has, _ := os.ReadFile(filepath.Join(root, "cgroup.subtree_control"))
	if !slices.Contains(strings.Fields(string(has)), controller) {
		parent := filepath.Join(root, controller)
		if _, err := os.Stat(filepath.Join(parent, "cgroup.procs")); err != nil {
			t.Skipf("the machine has no control groups for %s: %v", controller, err)
		}
		g = controlGroup{dir: filepath.Join(parent, name)}
	}
	if err := os.Mkdir(g.dir, 0o755); err != nil {
		t.Skip("control groups can't be made: ", err)
	}
	t.Cleanup(func() { // once those within have ended
		for end := time.Now().Add(e2e.Patience); ; time.Sleep(10 * time.Millisecond) {
			err := os.Remove(g.dir)
			if err == nil || time.Now().After(end) {
				if err != nil {
					t.Error(err)
				}
				return
			}
		}
	})
	return g
}

// set sets a limit, which v1 has under another name.
func (g controlGroup) set(t *testing.T, v2, v1, value string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(g.dir, g.file(v2, v1)), []byte(value), 0); err != nil {
		t.Fatal(err)
	}
}

func (g controlGroup) file(v2, v1 string) string {
	if g.v2 {
		return v2
	}
	return v1
}

// wrap has what the world starts as its daemon run in the group from the first
// instruction on.
func (g controlGroup) wrap(t *testing.T, w *e2e.World) {
	t.Helper()
	script := fmt.Sprintf("#!/bin/sh\necho $$ >%s/cgroup.procs && exec %s \"$@\"\n", g.dir, e2e.DaemonBinary)
	name := filepath.Join(t.TempDir(), "uvxland")
	if err := os.WriteFile(name, []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	w.Cluster.Binary = name
}

// A daemon that may use one CPU of several has one worker.
func TestIntegrationWorkersFollowTheCPUQuota(t *testing.T) {
	if runtime.NumCPU() < 2 {
		t.Skip("one CPU has one worker anyway")
	}
	w := e2e.NewWorld(t, "kb21")
	g := newControlGroup(t, "cpu")
	if g.v2 {
		g.set(t, "cpu.max", "", "100000 100000")
	} else {
		g.set(t, "", "cpu.cfs_period_us", "100000")
		g.set(t, "", "cpu.cfs_quota_us", "100000")
	}
	g.wrap(t, w)
	d := w.Start("kb21")[0]
	line := e2e.AwaitLine(t, d, time.Time{}, "device is up")
	if !strings.Contains(line, "workers=1 ") {
		t.Errorf("with a quota of one CPU it says %s", line)
	}
}

// Eight workers under load, both ways, fit into 48 MiB with all that the daemon has.
func TestIntegrationEightWorkersFitASmallGroup(t *testing.T) {
	w := e2e.NewWorld(t, "kb21", "kb22")
	w.Cluster.Args = []string{"-workers=8"}
	w.Start("kb22")
	g := newControlGroup(t, "memory")
	const limit = 48 << 20
	g.set(t, "memory.max", "memory.limit_in_bytes", strconv.Itoa(limit))
	g.wrap(t, w)
	d := w.Start("kb21")[0]
	w.Mesh("kb21", "kb22")

	here, there := w.Container("kb21"), w.Container("kb22")
	var stop atomic.Bool
	var sending, transfers sync.WaitGroup
	errs, done := make(chan error, 2*17), make(chan struct{}) // room for all
	for _, way := range [][2]*lab.Container{{here, there}, {there, here}} {
		sending.Go(func() { errs <- blast(way[0], way[1], &stop) })
		for range 16 {
			transfers.Go(func() { errs <- e2e.CheckedTransfer(way[0].Node, way[1], 32<<20) })
		}
	}
	go func() {
		transfers.Wait()
		stop.Store(true)
		sending.Wait()
		close(done)
	}()
	select {
	case <-done:
	case <-d.Done():
		stop.Store(true)
		t.Fatalf("the daemon has ended: %v", d.Wait()) // so no transfer does
	}
	for range cap(errs) {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
	peak, err := os.ReadFile(filepath.Join(g.dir, g.file("memory.peak", "memory.max_usage_in_bytes")))
	t.Logf("its group used at most %s of %d bytes, %v", strings.TrimSpace(string(peak)), limit, err)
}

// blast sends datagrams of 64 bytes to a container until it is told to stop.
func blast(from, to *lab.Container, stop *atomic.Bool) error {
	var conn *net.UDPConn
	err := from.Do(func() (err error) {
		conn, err = net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(netip.AddrPortFrom(to.Address, 9)))
		return err
	})
	if err != nil {
		return err
	}
	defer conn.Close()
	for b := make([]byte, 64); !stop.Load(); {
		// Nobody listens, which the other side may say.
		if _, err := conn.Write(b); err != nil && errors.Is(err, net.ErrClosed) {
			return err
		}
	}
	return nil
}

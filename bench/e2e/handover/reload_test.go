package handover_test

import (
	"context"
	"fmt"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"uvxlan/bench/e2e"

	"golang.org/x/sys/unix"

	"uvxlan/bench/cluster"
	"uvxlan/bench/iperf"
	"uvxlan/bench/lab"
	"uvxlan/lease"
)

// newReloadWorld is a world of two hosts whose daemons are a program that the test
// may replace.
func newReloadWorld(t *testing.T) *e2e.World {
	t.Helper()
	w := e2e.NewWorld(t, "kb21", "kb22")
	ownProgram(w)
	return w
}

// ownProgram gives the daemons a program of their own.
func ownProgram(w *e2e.World) {
	w.T.Helper()
	w.Cluster.Binary = filepath.Join(w.Dir, "uvxland")
	install(w, e2e.DaemonBinary)
}

// install puts a copy of a program into the daemons' program's place, as a package
// manager does.
func install(w *e2e.World, program string) {
	w.T.Helper()
	text, err := os.ReadFile(program)
	if err != nil {
		w.T.Fatal(err)
	}
	installText(w, string(text), 0o755)
}

func installText(w *e2e.World, text string, mode os.FileMode) {
	w.T.Helper()
	next := w.Cluster.Binary + ".new"
	if err := os.WriteFile(next, []byte(text), mode); err != nil {
		w.T.Fatal(err)
	}
	if err := os.Rename(next, w.Cluster.Binary); err != nil {
		w.T.Fatal(err)
	}
}

// reloadDaemon reloads a daemon and waits until the next program has taken over. It
// returns how long packets have waited, at each of the two times.
func reloadDaemon(t *testing.T, d *cluster.Daemon) (pauses string) {
	t.Helper()
	begin := time.Now()
	signalDaemon(t, d, unix.SIGUSR2)
	took := e2e.AwaitLine(t, d, begin, "took over")
	_, second, _ := strings.Cut(took, "paused=")
	for line := range strings.Lines(e2e.LogOf(t, d)) {
		if _, first, ok := strings.Cut(line, "paused="); ok && strings.Contains(line, "stands by") {
			pauses = strings.TrimSpace(first) // the last one's
		}
	}
	return pauses + " and " + second
}

func signalDaemon(t *testing.T, d *cluster.Daemon, s unix.Signal) {
	t.Helper()
	if err := d.Process.Signal(s); err != nil {
		t.Fatal(err)
	}
}

// backlog is the place of what arrived for a CPU that was busy.
const backlog = "backlog"

// queueDrops is what the kernel's queues on the way from kb21's container to
// kb22's have dropped so far, by place.
func queueDrops(t *testing.T, w *e2e.World) map[string]uint64 {
	t.Helper()
	drops := map[string]uint64{}
	for _, n := range []*lab.Node{w.Host("kb21").Node, w.Host("kb22").Node, w.Container("kb21").Node, w.Container("kb22").Node} {
		links, err := n.Netlink().LinkList()
		if err != nil {
			t.Fatal(err)
		}
		for _, l := range links {
			s := l.Attrs().Statistics
			drops[n.Name+" "+l.Attrs().Name] = s.TxDropped + s.RxDropped
		}
		drops[n.Name+" sockets"] = socketDrops(t, n)
	}
	softnet, err := os.ReadFile("/proc/net/softnet_stat")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(softnet)) {
		n, err := strconv.ParseUint(strings.Fields(line)[1], 16, 64)
		if err != nil {
			t.Fatal(err)
		}
		drops[backlog] += n
	}
	return drops
}

// socketDrops is how many datagrams full buffers of UDP sockets have dropped.
func socketDrops(t *testing.T, n *lab.Node) (sum uint64) {
	t.Helper()
	var names []string
	for line := range strings.Lines(e2e.Command(t, n, "cat /proc/net/snmp")) {
		fields := strings.Fields(line)
		switch {
		case fields[0] != "Udp:":
		case names == nil:
			names = fields
		default:
			for _, name := range []string{"RcvbufErrors", "SndbufErrors"} {
				v, err := strconv.ParseUint(fields[slices.Index(names, name)], 10, 64)
				if err != nil {
					t.Fatal(err)
				}
				sum += v
			}
		}
	}
	return sum
}

// A stream of 20,000 small datagrams a second loses nothing while the daemons of
// both ends reload, neither in the device's queue nor in the daemons' sockets, even
// if the programs wait for a CPU. What iperf3's own socket or a CPU's backlog had
// no room for is not theirs.
func TestIntegrationReloadUDP(t *testing.T) {
	w := newReloadWorld(t)
	daemons := w.Start("kb21", "kb22")
	w.Mesh("kb21", "kb22")
	from, to := w.Container("kb21"), w.Container("kb22")
	const rate = 20_000
	stream := iperf.Test{
		Server: to.Node, Client: from.Node, To: to.Address, Duration: 2 * time.Second,
		UDP: true, Length: 64, Bandwidth: rate * 64 * 8,
	}
	for _, reloads := range []int{0, 4} {
		before := queueDrops(t, w)
		var result iperf.Result
		var running sync.WaitGroup
		sent := linkPackets(t, from.Node, "eth0")
		running.Go(func() {
			var err error
			if result, err = stream.Run(w.Context()); err != nil {
				t.Error(err)
			}
		})
		for n := range reloads {
			awaitPackets(t, from.Node, "eth0", sent+uint64(rate/10*(n+1)))
			t.Logf("%s: packets waited %s", daemons[n%2].Host.Name, reloadDaemon(t, daemons[n%2]))
		}
		running.Wait()
		others := int64(0)
		for place, n := range queueDrops(t, w) {
			n := int64(n - before[place])
			if place == to.Name+" sockets" || place == backlog {
				others += n
			}
			if n > 0 {
				t.Logf("%s: %d dropped", place, n)
			}
		}
		t.Logf("%d reloads: of %d datagrams, %.0f a second, %d were lost, %d of them by iperf3 or a CPU's backlog",
			reloads, result.Packets, float64(result.Packets)/result.Seconds, result.Lost, others)
		if result.Packets < rate/2 || result.Lost > others {
			t.Errorf("%d reloads: %d datagrams are lost on the way", reloads, result.Lost-others)
		}
	}
}

func linkPackets(t *testing.T, h *lab.Node, name string) uint64 {
	t.Helper()
	l, err := h.Netlink().LinkByName(name)
	if err != nil {
		t.Fatal(err)
	}
	return l.Attrs().Statistics.TxPackets
}

func awaitPackets(t *testing.T, h *lab.Node, name string, count uint64) {
	t.Helper()
	for end := time.Now().Add(e2e.Patience); linkPackets(t, h, name) < count; time.Sleep(2 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%s has not sent %d packets", name, count)
		}
	}
}

// TCP in both directions doesn't notice: what arrives is what was sent, whatever
// the model, over reload after reload at both ends.
func TestIntegrationReloadTCP(t *testing.T) {
	for _, m := range e2e.Models() {
		t.Run(m.Name, func(t *testing.T) {
			w := newReloadWorld(t)
			e2e.StrictReversePath(t, w.Host("kb21"))
			w.Configure(m.Config)
			daemons := w.Start("kb21", "kb22")
			w.Mesh("kb21", "kb22")
			m.Await(t, w, lease.Lease{})
			events := e2e.WatchRoutes(t, w.Host("kb21"))
			ends := make(chan error, 2)
			go func() { ends <- e2e.CheckedTransfer(w.Container("kb21").Node, w.Container("kb22"), e2e.Gigabyte/4) }()
			go func() { ends <- e2e.CheckedTransfer(w.Container("kb22").Node, w.Container("kb21"), e2e.Gigabyte/4) }()
			reloads := 0
			for done := 0; done < 2 || reloads < 4; {
				reloadDaemon(t, daemons[reloads%2])
				reloads++
				select {
				case err := <-ends:
					done++
					if err != nil {
						t.Error(err)
					}
				default:
				}
			}
			t.Logf("%s: %d reloads", m.Name, reloads)
			for _, e := range events() {
				t.Errorf("a route was touched: %+v", e)
			}
			m.Await(t, w, lease.Lease{})
			guest := m.Guest(t, w) // the leases are watched
			m.Await(t, w, guest)
		})
	}
}

// Both families come through, by device and by kernel routes.
func TestIntegrationReloadDualStack(t *testing.T) {
	for _, backend := range []string{"VxLAN", "host-gw"} {
		t.Run(backend, func(t *testing.T) {
			w := e2e.NewDualWorld(t, strings.Replace(e2e.DualConfig, "VxLAN", backend, 1), "kb21", "kb22")
			ownProgram(w)
			daemons := w.Start("kb21", "kb22")
			w.DualMesh("kb21", "kb22")
			for range 2 {
				for _, d := range daemons {
					reloadDaemon(t, d)
					w.DualTransfer(t, "kb21", "kb22", 4<<20)
				}
			}
			e2e.End(t, unix.SIGTERM, daemons...)
		})
	}
}

// A program that can't take over is refused with the reason, and the daemon that
// runs goes on, as the process that it was.
func TestIntegrationReloadRefused(t *testing.T) {
	w := newReloadWorld(t)
	d := w.Start("kb21", "kb22")[0]
	w.Mesh("kb21", "kb22")
	s := e2e.StartStream(t, w)
	program := e2e.DaemonBinary
	for _, c := range []struct {
		name, program string
		mode          os.FileMode
		want          string
	}{
		{"ends at once", "#!/bin/sh\nexit 7\n", 0o755, "it ended; exit status 7"},
		{"is killed", "#!/bin/sh\nkill -SEGV $$\n", 0o755, "signal: segmentation fault"},
		{"not executable", "#!/bin/sh\n", 0o644, "permission denied"},
		{"no program", "nonsense", 0o755, "exec format error"},
		{"other flags", "#!/bin/sh\nexec " + program + " -from-the-future \"$@\"\n", 0o755, "unknown flag -from-the-future"},
		{"no capability", "#!/bin/sh\nexec setpriv --bounding-set=-net_admin --inh-caps=-net_admin " + program + " \"$@\"\n", 0o755, "CAP_NET_ADMIN"},
		{"other state", "#!/bin/sh\nprintf '{\"format\":2,\"version\":\"v9\"}' >" + w.Dir + "/state\nexec 9<" + w.Dir + "/state\nexport UVXLAN_RELOAD=stand-in,9,${UVXLAN_RELOAD##*,}\nexec " + program + " \"$@\"\n", 0o755, "it is of format 2 (version v9)"},
	} {
		t.Run(c.name, func(t *testing.T) {
			installText(w, c.program, c.mode)
			begin := time.Now()
			signalDaemon(t, d, unix.SIGUSR2)
			line := e2e.AwaitLine(t, d, begin, "reload refused", "the program on disk can't take over")
			if !strings.Contains(line, c.want) {
				t.Errorf("the log says %s, without %q", line, c.want)
			}
			s.GoesOn()
		})
	}
	if err := os.Remove(w.Cluster.Binary); err != nil {
		t.Fatal(err)
	}
	begin := time.Now()
	signalDaemon(t, d, unix.SIGUSR2)
	e2e.AwaitLine(t, d, begin, "reload refused", "no such file")
	s.GoesOn()
	install(w, e2e.DaemonBinary)
	reloadDaemon(t, d)
	s.GoesOn()
	noChildren(t, d)
}

// noChildren waits until a daemon has no process of its own, dead or alive.
func noChildren(t *testing.T, d *cluster.Daemon) {
	t.Helper()
	var children string
	for end := time.Now().Add(e2e.Patience); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		children = ""
		tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", d.Process.Pid))
		if err != nil {
			t.Fatal(err)
		}
		for _, path := range tasks {
			text, _ := os.ReadFile(path) // the thread may have ended
			children += string(text)
		}
		if strings.TrimSpace(children) == "" {
			return
		}
	}
	t.Errorf("%s has the processes %s", d.Host.Name, children)
}

// openFiles waits until a process opens and closes nothing for a moment, and counts what
// it has open, by kind.
func openFiles(t *testing.T, d *cluster.Daemon) (kinds map[string]int) {
	t.Helper()
	for same, end := 0, time.Now().Add(e2e.Patience); same < 10 && time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		now := listFiles(t, d)
		if same++; !maps.Equal(now, kinds) {
			kinds, same = now, 0
		}
	}
	return kinds
}

func listFiles(t *testing.T, d *cluster.Daemon) map[string]int {
	t.Helper()
	dir := fmt.Sprintf("/proc/%d/fd", d.Process.Pid)
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	kinds := map[string]int{}
	for _, e := range entries {
		target, err := os.Readlink(filepath.Join(dir, e.Name()))
		if err != nil {
			continue // closed meanwhile
		}
		kind, _, _ := strings.Cut(target, ":[")
		if strings.HasPrefix(kind, "/proc/") { // of a thread, whose number changes
			kind = "/proc/" + filepath.Base(kind)
		}
		kinds[kind]++
	}
	return kinds
}

// serviceManager is systemd's end of a notification socket. Until a state comes it
// returns what was told of the daemon's state since the last call, in order.
func serviceManager(t *testing.T, w *e2e.World) (until func(state string) []string) {
	t.Helper()
	path := filepath.Join(w.Dir, "notify")
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	lines := make(chan string, 1000)
	var reading sync.WaitGroup
	reading.Go(func() {
		for buf := make([]byte, 4096); ; {
			n, err := conn.Read(buf)
			if err != nil {
				return
			}
			for line := range strings.Lines(string(buf[:n])) {
				if line = strings.TrimSpace(line); !strings.HasPrefix(line, "STATUS=") {
					lines <- line
				}
			}
		}
	})
	t.Cleanup(func() {
		conn.Close()
		reading.Wait()
	})
	w.Cluster.Env = append(w.Cluster.Env, "NOTIFY_SOCKET="+path)
	return func(state string) (told []string) {
		t.Helper()
		for late := time.After(e2e.Patience); ; {
			select {
			case line := <-lines:
				if told = append(told, line); line == state {
					return told
				}
			case <-late:
				t.Fatalf("the service manager was told %q, never %s", told, state)
			}
		}
	}
}

// Twenty reloads later the daemon is the same process, with the same lease and as
// many descriptors; whoever asked how it is had an answer each time; and it ends as
// one that never reloaded.
func TestIntegrationReloadTwentyTimes(t *testing.T) {
	w := newReloadWorld(t)
	kb21 := w.Host("kb21")
	w.Start("kb22")
	before := e2e.SettledState(t, kb21)
	until := serviceManager(t, w)
	d := w.StartHealthy("kb21")
	if err := d.Ready(w.Context()); err != nil {
		t.Fatal(err)
	}
	w.Mesh("kb21", "kb22")
	first, own := e2e.AskStatus(t, d), w.LeaseOf("kb21")
	if told := until("READY=1"); len(told) != 1 {
		t.Errorf("the service manager was told %q", told)
	}
	reloadDaemon(t, d)
	e2e.AwaitAnswer(t, kb21, "/readyz", 200, "watch: alive")
	if told := until("READY=1"); len(told) != 3 || told[0] != "RELOADING=1" || !strings.HasPrefix(told[1], "MONOTONIC_USEC=") {
		t.Errorf("while it reloaded the service manager was told %q", told)
	}
	noChildren(t, d)
	files := openFiles(t, d)
	ctx, cancel := context.WithCancel(t.Context())
	var asking sync.WaitGroup
	asked := 0
	asking.Go(func() {
		for ; ctx.Err() == nil; asked++ {
			if err := askHealth(kb21); err != nil {
				t.Error(err)
				return
			}
		}
	})
	for range 19 {
		reloadDaemon(t, d)
		if s := e2e.AskStatus(t, d); s.PID != first.PID || !s.Started.Equal(first.Started) || !s.Lease.Renewed.Equal(first.Lease.Renewed) {
			t.Errorf("it is process %d since %s, the lease was renewed at %s; before %+v", s.PID, s.Started, s.Lease.Renewed, first)
		}
	}
	cancel()
	asking.Wait()
	t.Logf("asked %d times", asked)
	e2e.AwaitAnswer(t, kb21, "/readyz", 200, "lease: "+own.Subnet.String(), "watch: alive")
	noChildren(t, d)
	// What a reload leaves open is there nineteen times.
	now := openFiles(t, d)
	for kind, n := range now {
		if n > files[kind]+1 {
			t.Errorf("after one reload it had %v open, after twenty %v", files, now)
		}
	}
	if l := w.LeaseOf("kb21"); !l.Equal(own) || l.Revision != own.Revision || l.ID != own.ID {
		t.Errorf("the lease was %+v and is %+v", own, l)
	}
	if _, err := e2e.LockState(d.StateDir()); err == nil || !strings.Contains(err.Error(), strconv.Itoa(first.PID)) {
		t.Errorf("taking the lock that the daemon has: %v", err)
	}
	w.Mesh("kb21", "kb22")
	e2e.End(t, unix.SIGTERM, d)
	if told := until("STOPPING=1"); len(told) != 19*3+1 {
		t.Errorf("over 19 reloads and the end the service manager was told %q", told)
	}
	e2e.ExpectState(t, kb21, before, "after SIGTERM")
	if _, err := os.Stat(d.ControlSocket()); !os.IsNotExist(err) {
		t.Errorf("the control socket is left: %v", err)
	}
}

// askHealth asks a daemon once, on a connection of its own.
func askHealth(h *lab.Host) error {
	var conn net.Conn
	err := h.Do(func() (err error) {
		conn, err = net.DialTimeout("tcp4", "127.0.0.1:"+e2e.HealthPort, e2e.Patience)
		return err
	})
	if err != nil {
		return err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(e2e.Patience)); err != nil {
		return err
	}
	if _, err := conn.Write([]byte("GET /healthz HTTP/1.0\r\n\r\n")); err != nil {
		return err
	}
	answer := make([]byte, 64)
	n, err := conn.Read(answer)
	if err == nil && !strings.Contains(string(answer[:n]), "200 OK") {
		err = fmt.Errorf("the answer is %q", answer[:n])
	}
	return err
}

// A daemon that is told to stop while it reloads stops, at whatever moment that is,
// and leaves no device, no process, no route and no setting.
func TestIntegrationReloadStopped(t *testing.T) {
	w := e2e.NewWorld(t, "kb21", "kb22")
	w.Configure(e2e.RouteConfig)
	kb21 := w.Host("kb21")
	e2e.StrictReversePath(t, kb21)
	w.Start("kb22")
	ownProgram(w)
	before := e2e.SettledState(t, kb21)
	route := e2e.RouteTo(w.Host("kb22"))
	start := func() *cluster.Daemon {
		d := w.Start("kb21")[0]
		for end := time.Now().Add(e2e.Patience); !slices.Contains(e2e.OurRoutes(t, kb21), route); time.Sleep(2 * time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("there is no route %s", route)
			}
		}
		return d
	}
	d := start()
	begin := time.Now()
	reloadDaemon(t, d)
	whole := time.Since(begin)
	const steps = 24
	byItself := 0
	for i := range time.Duration(steps) {
		signalDaemon(t, d, unix.SIGUSR2)
		time.Sleep(whole * i / steps) // the moment is the point
		s := []unix.Signal{unix.SIGTERM, unix.SIGHUP}[i%2]
		signalDaemon(t, d, s)
		// Between the two programs the signal ends it by itself, and the standby
		// cleans up.
		err := d.Wait()
		if err != nil && strings.Contains(err.Error(), "signal: "+s.String()) {
			byItself, err = byItself+1, nil
		}
		if err != nil {
			t.Errorf("%d/%d of the reload: %v", i, steps, err)
		}
		awaitGone(t, w, kb21)
		when := fmt.Sprintf("after %s at %d/%d of the reload", s, i, steps)
		if routes := e2e.OurRoutes(t, kb21); len(routes) > 0 {
			t.Errorf("%s: routes %s are left", when, routes)
		}
		e2e.ExpectState(t, kb21, before, when)
		if _, err := os.Stat(d.ControlSocket()); !os.IsNotExist(err) {
			t.Errorf("%s: the control socket is left: %v", when, err)
		}
		if i < steps-1 {
			d = start()
		}
	}
	t.Logf("the signal ended %d of %d by itself", byItself, steps)
}

// awaitGone waits until a host has neither a daemon nor a standby nor a device.
func awaitGone(t *testing.T, w *e2e.World, h *lab.Host) {
	t.Helper()
	var left string
	for end := time.Now().Add(e2e.Patience); time.Now().Before(end); time.Sleep(2 * time.Millisecond) {
		left = ""
		// The fast path's relay goes when the kernel gets to it.
		links, err := h.Netlink().LinkList()
		if err != nil {
			t.Fatal(err)
		}
		for _, l := range links {
			if name := l.Attrs().Name; name == "flannel.1" || strings.HasPrefix(name, "uvxrelay") {
				left += " " + name
			}
		}
		programs, err := filepath.Glob("/proc/[0-9]*/exe")
		if err != nil {
			t.Fatal(err)
		}
		for _, path := range programs {
			if target, _ := os.Readlink(path); strings.HasPrefix(target, w.Cluster.Binary) {
				left += " " + path
			}
		}
		if left == "" {
			return
		}
	}
	t.Fatalf("%s is left", left)
}

package main

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"uvxlan/bench/cluster"
	"uvxlan/bench/iperf"
	"uvxlan/bench/lab"
	"uvxlan/lease"
)

const (
	hybridConfig = `{"Network":"172.7.0.0/16","Backend":{"Type":"VxLAN","Directrouting":true}}`
	routeConfig  = `{"Network":"172.7.0.0/16","Backend":{"Type":"VxLAN","Directrouting":true,"DirectMode":"route"}}`
)

// awaitPath waits until the daemon says, not before since, that it reaches the
// host directly or by VXLAN, and returns its words. what is a part of them, such
// as "direct now" or "back to vxlan".
func awaitPath(t *testing.T, d *cluster.Daemon, to *lab.Host, what string, since time.Time) string {
	t.Helper()
	return awaitLine(t, d, since, "subnet="+to.Subnet.String(), what)
}

// awaitLine waits until the daemon writes a line with all the words, not before
// since, and returns it.
func awaitLine(t *testing.T, d *cluster.Daemon, since time.Time, words ...string) string {
	t.Helper()
	missing := func(line string) bool {
		return slices.ContainsFunc(words, func(word string) bool { return !strings.Contains(line, word) })
	}
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(patience); time.Now().Before(end); <-tick.C {
		for line := range strings.SplitSeq(logOf(t, d), "\n") {
			if !missing(line) && logTime(t, line).After(since.Add(-time.Millisecond)) {
				return line
			}
		}
	}
	t.Fatalf("%s never said %q", d.Host.Name, words)
	return ""
}

// logTime is when a line was written.
func logTime(t *testing.T, line string) time.Time {
	t.Helper()
	text, _, _ := strings.Cut(strings.TrimPrefix(line, "time="), " ")
	at, err := time.Parse(time.RFC3339Nano, text)
	if err != nil {
		t.Fatalf("%q: %v", line, err)
	}
	return at
}

// awaitDirect waits until all daemons that can reach each other directly do.
func awaitDirect(t *testing.T, daemons ...*cluster.Daemon) {
	t.Helper()
	for _, d := range daemons {
		for _, to := range daemons {
			if d != to {
				awaitPath(t, d, to.Host, "direct now", time.Time{})
			}
		}
	}
}

// traffic counts what passes a host's underlay interface, by the other end and
// whether it is wrapped.
type traffic struct {
	capture *lab.Capture
	t       *testing.T
}

func watchTraffic(t *testing.T, h *lab.Host) traffic {
	t.Helper()
	c, err := h.Capture(t.Context(), "eth0", func(p lab.Packet) bool {
		_, _, _, ok := p.IPv4()
		return ok
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return traffic{c, t}
}

// count returns how many packets went to or came from the host's containers
// plainly, and how many went to or came from the host in VXLAN.
func (c traffic) count(far *lab.Host) (plain, wrapped int) {
	c.t.Helper()
	if n, err := c.capture.Drops(); n > 0 || err != nil {
		c.t.Errorf("the capture missed %d packets: %v", n, err)
	}
	for _, p := range c.capture.Packets() {
		src, dst, _, _ := p.IPv4()
		switch {
		case far.Subnet.Contains(src), far.Subnet.Contains(dst):
			plain++
		case p.IsUDP(lease.DefaultPort) && (src == far.Address || dst == far.Address):
			wrapped++
		}
	}
	return plain, wrapped
}

// Hosts of one network send to each other plainly, and by VXLAN to the host
// behind the router.
func TestIntegrationHybrid(t *testing.T) {
	for name, config := range map[string]string{"socket": hybridConfig, "route": routeConfig} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.configure(config)
			daemons := w.start("kb21", "kb22", "kb31")
			w.mesh("kb21", "kb22", "kb31")
			awaitDirect(t, daemons[:2]...)
			w.mesh("kb21", "kb22") // nothing is on its way by VXLAN any more
			seen := watchTraffic(t, w.Host("kb21"))
			noLoss(t, w.Hosts())
			for _, pair := range [][2]string{{"kb21", "kb22"}, {"kb22", "kb21"}, {"kb21", "kb31"}, {"kb31", "kb21"}, {"kb22", "kb31"}} {
				transfer(t, w.container(pair[0]).Node, w.container(pair[1]), 64<<20)
			}
			transfer(t, w.Host("kb21").Node, w.container("kb22"), 1<<20)
			if plain, wrapped := seen.count(w.Host("kb22")); plain == 0 || wrapped > 0 {
				t.Errorf("between kb21 and kb22: %d packets plain, %d in VXLAN", plain, wrapped)
			}
			if plain, wrapped := seen.count(w.Host("kb31")); plain > 0 || wrapped == 0 {
				t.Errorf("between kb21 and kb31: %d packets plain, %d in VXLAN", plain, wrapped)
			}
			throughput(t, w.container("kb21"), w.container("kb22"), w.container("kb31"))
		})
	}
}

// throughput runs iperf3 from one container to others.
func throughput(t *testing.T, from *lab.Container, to ...*lab.Container) {
	t.Helper()
	for _, c := range to {
		tcp := iperfRun(t, iperf.Test{Server: c.Node, Client: from.Node, To: c.Address, Duration: time.Second})
		udp := iperfRun(t, iperf.Test{Server: c.Node, Client: from.Node, To: c.Address, Duration: time.Second, UDP: true, Bandwidth: 50e6})
		t.Logf("%s -> %s: TCP %.2f Gbit/s; UDP %d datagrams, %d lost", from.Name, c.Name, tcp.BitsPerSecond/1e9, udp.Packets, udp.Lost)
		if tcp.Bytes == 0 || udp.Packets == 0 || udp.Lost*1000 > udp.Packets {
			t.Errorf("%s -> %s: TCP %+v, UDP %+v", from.Name, c.Name, tcp, udp)
		}
	}
}

// One host sends plainly and the other by VXLAN: each decides alone.
func TestIntegrationHybridOneSided(t *testing.T) {
	w := newWorld(t, "kb21", "kb22")
	w.configure(hybridConfig)
	d := w.start("kb21")[0]
	w.configure(vxlanConfig)
	w.start("kb22")
	w.mesh("kb21", "kb22")
	awaitPath(t, d, w.Host("kb22"), "direct now", time.Time{})
	seen := watchTraffic(t, w.Host("kb21"))
	transfer(t, w.container("kb21").Node, w.container("kb22"), 64<<20)
	transfer(t, w.container("kb22").Node, w.container("kb21"), 64<<20)
	if plain, wrapped := seen.count(w.Host("kb22")); plain == 0 || wrapped == 0 {
		t.Errorf("%d packets plain, %d in VXLAN, want both", plain, wrapped)
	}
}

// A strict reverse-path filter doesn't stop what comes without VXLAN, and is as
// before when the daemon has stopped.
func TestIntegrationHybridReversePathFilter(t *testing.T) {
	w := newWorld(t, "kb21", "kb22")
	for _, h := range w.Hosts() {
		for _, iface := range []string{"all", "eth0"} {
			if err := h.Sysctl("ipv4/conf/"+iface+"/rp_filter", "1"); err != nil {
				t.Fatal(err)
			}
		}
	}
	w.configure(hybridConfig)
	daemons := w.start("kb21", "kb22")
	w.mesh("kb21", "kb22")
	awaitDirect(t, daemons...)
	noLoss(t, w.Hosts())
	for _, d := range daemons {
		if err := d.Stop(w.context()); err != nil {
			t.Error(err)
		}
		out, err := d.Host.Run(w.context(), "cat", "/proc/sys/net/ipv4/conf/eth0/rp_filter")
		if err != nil || strings.TrimSpace(string(out)) != "1" {
			t.Errorf("rp_filter on %s is %q afterwards, %v", d.Host.Name, out, err)
		}
	}
}

// A kernel VXLAN peer that routes directly, as flannel does it.
func TestIntegrationHybridKernelPeer(t *testing.T) {
	w := newWorld(t)
	w.configure(hybridConfig)
	d := w.start("kb21", "kb31")[0]
	peer := newKernelPeer(t, w.Host("kb22"))
	if _, err := w.registry().Create(w.context(), peer.lease(), time.Hour); err != nil {
		t.Fatal(err)
	}
	peer.learn(w.leaseOf("kb31"))
	kb21 := w.Host("kb21")
	if out, err := w.Host("kb22").Run(w.context(), "ip", "route", "replace", kb21.Subnet.String(), "via", kb21.Address.String()); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	awaitPath(t, d, w.Host("kb22"), "direct now", time.Time{})
	w.mesh("kb21", "kb22", "kb31")
	seen := watchTraffic(t, kb21)
	transfer(t, w.container("kb21").Node, w.container("kb22"), 64<<20)
	transfer(t, w.container("kb22").Node, w.container("kb21"), 64<<20)
	throughput(t, w.container("kb22"), w.container("kb21"), w.container("kb31"))
	if plain, wrapped := seen.count(w.Host("kb22")); plain == 0 || wrapped > 0 {
		t.Errorf("%d packets plain, %d in VXLAN", plain, wrapped)
	}
}

// The underlay changes under a running TCP stream: the path follows within
// 200 ms, and the stream goes on.
func TestIntegrationHybridChanges(t *testing.T) {
	for name, config := range map[string]string{"socket": hybridConfig, "route": routeConfig} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.configure(config)
			daemons := w.start("kb21", "kb22", "kb31")
			w.mesh("kb21", "kb22", "kb31")
			awaitDirect(t, daemons[:2]...)
			s := startStream(t, w)
			for _, c := range changesOf(w, name) {
				c.make(t, w, daemons[0])
				if c.name == "link down" {
					s.stalls() // nothing can pass
				} else {
					s.goesOn()
				}
			}
		})
	}
}

// change is something that happens to the underlay of kb21, with the word that
// its daemon must have for the way to kb22.
type change struct {
	name     string
	commands []string // on the host that they begin with
	want     []string
}

func changesOf(w *world, mode string) []change {
	kb22 := w.Host("kb22").Address
	changes := []change{
		{"via gateway", []string{fmt.Sprintf("kb21 ip route add %s/32 via %s dev eth0", kb22, w.Host("kb21").Gateway)}, []string{"back to vxlan"}},
		{"on-link again", []string{fmt.Sprintf("kb21 ip route del %s/32", kb22)}, []string{"direct now"}},
		{"link down", []string{"kb21 ip link set eth0 down"}, []string{"back to vxlan"}},
		{"link up", []string{"kb21 ip link set eth0 up", fmt.Sprintf("kb21 ip route add default via %s", w.Host("kb21").Gateway)}, []string{"direct now"}},
	}
	if mode == "socket" {
		changes = append(changes,
			change{"neighbour fails", []string{fmt.Sprintf("kb21 ip neigh change %s dev eth0 nud failed", kb22)}, []string{"neighbour failed", "direct now"}},
			change{"peer's MAC changes", []string{
				"kb22 sysctl -qw net.ipv4.conf.eth0.arp_notify=1",
				"kb22 ip link set eth0 address 02:00:00:00:22:22",
			}, []string{"02:00:00:00:22:22"}},
		)
	}
	return changes
}

// make makes the change and waits for the daemon to follow.
func (c change) make(t *testing.T, w *world, d *cluster.Daemon) {
	t.Helper()
	begin := time.Now()
	for _, command := range c.commands {
		host, rest, _ := strings.Cut(command, " ")
		args := strings.Fields(rest)
		begin = time.Now()
		if out, err := w.Host(host).Run(w.context(), args[0], args[1:]...); err != nil {
			t.Fatalf("%s: %v: %s", command, err, out)
		}
	}
	for _, want := range c.want {
		line := awaitPath(t, d, w.Host("kb22"), want, begin)
		took := logTime(t, line).Sub(begin)
		t.Logf("%s: followed after %s: %s", c.name, took, line)
		if took > 200*time.Millisecond {
			t.Errorf("%s: followed after %s", c.name, took)
		}
	}
}

// stream is a TCP connection from kb21's container to kb22's that never pauses.
type stream struct {
	t        *testing.T
	received atomic.Int64 // bytes
	failed   chan error
}

func startStream(t *testing.T, w *world) *stream {
	t.Helper()
	to := w.container("kb22")
	var listener net.Listener
	err := to.Do(func() (err error) {
		listener, err = net.Listen("tcp4", netip.AddrPortFrom(to.Address, 0).String())
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	var out net.Conn
	err = w.container("kb21").Do(func() (err error) {
		out, err = net.DialTimeout("tcp4", listener.Addr().String(), patience)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	in, err := listener.Accept()
	if err != nil {
		t.Fatal(err)
	}
	s := &stream{t: t, failed: make(chan error, 2)}
	var wg sync.WaitGroup
	wg.Go(func() {
		for block := make([]byte, 256<<10); ; {
			if _, err := out.Write(block); err != nil {
				s.failed <- err
				return
			}
		}
	})
	wg.Go(func() {
		for block := make([]byte, 256<<10); ; {
			n, err := in.Read(block)
			s.received.Add(int64(n))
			if err != nil {
				s.failed <- err
				return
			}
		}
	})
	t.Cleanup(func() {
		out.Close()
		in.Close()
		listener.Close()
		wg.Wait()
	})
	return s
}

// goesOn waits until the stream has brought more than could be on its way when
// the underlay changed.
func (s *stream) goesOn() {
	s.t.Helper()
	const inFlight = 64 << 20
	begin := s.received.Load()
	s.await(func() bool { return s.received.Load() > begin+inFlight })
}

// stalls waits until nothing has come for a while.
func (s *stream) stalls() {
	s.t.Helper()
	last, since := s.received.Load(), time.Now()
	s.await(func() bool {
		if now := s.received.Load(); now != last {
			last, since = now, time.Now()
		}
		return time.Since(since) > 300*time.Millisecond
	})
}

func (s *stream) await(done func() bool) {
	s.t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(patience); !done(); <-tick.C {
		select {
		case err := <-s.failed:
			s.t.Fatalf("the stream broke: %v", err)
		default:
		}
		if time.Now().After(end) {
			s.t.Fatalf("the stream stands at %d bytes", s.received.Load())
		}
	}
}

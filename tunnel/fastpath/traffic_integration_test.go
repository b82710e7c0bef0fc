package fastpath

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"uvxlan/tunnel/internal/testhost"
	"uvxlan/tunnel/netnstest"
	"uvxlan/tunnel/onlink"
)

// echo has a UDP socket in a container send back what comes, and one in another
// container that is connected to it.
func echo(t *testing.T, from, to *testhost.Host, address string) *net.UDPConn {
	t.Helper()
	far := testhost.Inside(to, func() (*net.UDPConn, error) { return net.ListenUDP("udp", &net.UDPAddr{IP: net.ParseIP(address)}) })
	var running sync.WaitGroup
	running.Go(func() {
		buf := make([]byte, 1<<16)
		for {
			n, from, err := far.ReadFromUDPAddrPort(buf)
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if err == nil {
				_, _ = far.WriteToUDPAddrPort(buf[:n], from)
			}
		}
	})
	near := testhost.Inside(from, func() (*net.UDPConn, error) { return net.DialUDP("udp", nil, far.LocalAddr().(*net.UDPAddr)) })
	t.Cleanup(func() {
		testhost.Must(t, errors.Join(near.Close(), far.Close()))
		running.Wait()
	})
	return near
}

// datagrams sends datagrams of a length, each sent several at once as a superpacket if
// there is more than one of them, and compares what comes back.
func datagrams(t *testing.T, c *net.UDPConn, times, length, segments int) {
	t.Helper()
	if segments > 1 {
		raw, err := c.SyscallConn()
		testhost.Must(t, err)
		testhost.Must(t, raw.Control(func(fd uintptr) {
			err = unix.SetsockoptInt(int(fd), unix.IPPROTO_UDP, unix.UDP_SEGMENT, length)
		}))
		testhost.Must(t, err)
	}
	out, in := make([]byte, length*segments), make([]byte, 1<<16)
	for i := range times {
		for j := 0; j+8 <= len(out); j += 8 {
			binary.BigEndian.PutUint64(out[j:], uint64(i)<<32|uint64(j))
		}
		testhost.Must(t, c.SetDeadline(time.Now().Add(testhost.Patience)))
		if _, err := c.Write(out); err != nil {
			t.Fatal(err)
		}
		for at := 0; at < len(out); at += length {
			n, err := c.Read(in)
			if err != nil {
				t.Fatalf("datagram %d of %d bytes, from byte %d: %v", i, length, at, err)
			}
			if !bytes.Equal(in[:n], out[at:at+length]) {
				t.Fatalf("datagram %d of %d bytes, from byte %d, comes back as another", i, length, at)
			}
		}
	}
}

// both runs a test over an underlay that passes superpackets, and over one that doesn't.
func both(t *testing.T, f func(t *testing.T, prepare func(a, b *testhost.Host))) {
	t.Helper()
	t.Run("superpackets", func(t *testing.T) { f(t, nil) })
	t.Run("single packets", func(t *testing.T) {
		f(t, func(a, b *testhost.Host) {
			withoutTunnelOffload(t, a)
			withoutTunnelOffload(t, b)
		})
	})
}

func TestIntegrationFastPathCarriesUDP(t *testing.T) {
	both(t, func(t *testing.T, prepare func(a, b *testhost.Host)) {
		a, b := newPair(t, onlink.Off, Config{}, prepare)
		for _, address := range []string{b.addr(), b.addr6()} {
			for _, length := range []int{8, 64, 1024, 1402} {
				datagrams(t, echo(t, a.container, b.container, address), 100, length, 1)
			}
		}
		a.expectCarried(600, 600)
		for _, address := range []string{b.addr(), b.addr6()} {
			datagrams(t, echo(t, a.container, b.container, address), 50, 1200, 12)
		}
		if left := a.fast.Report().LeftTx["udp_superpacket"]; left < 1 {
			t.Errorf("no superpacket of UDP came: %s", a.left())
		}
		for _, n := range []*node{a, b} {
			n.expectCarried(600, 600)
		}
	})
}

func TestIntegrationFastPathToContainersOfSmallerMTU(t *testing.T) {
	t.Parallel() // it waits more than it works
	both(t, func(t *testing.T, prepare func(a, b *testhost.Host)) {
		a, b := newPair(t, onlink.Off, Config{}, prepare)
		run(t, b.host, "ip", "link", "set", "c0", "mtu", "1300")
		run(t, b.container, "ip", "link", "set", "eth0", "mtu", "1300")
		bothWays(t, a, b)
		if !tryPing(t, a.container, b.addr(), 1300) || tryPing(t, a.container, b.addr(), 1301) {
			t.Error("the container's MTU isn't what a sender learns")
		}
		for _, n := range []*node{a, b} {
			n.expectCarried(150, 150)
		}
	})
}

// newKernelNode is a host with the kernel's VXLAN instead of a router.
func newKernelNode(t *testing.T, n int, wide bool, host *testhost.Host, peer int) *node {
	t.Helper()
	nd := &node{t: t, n: n, wide: wide, host: host, container: testhost.New(t), ctx: t.Context()}
	sysctl(t, host, "net.ipv4.ip_forward", "1")
	sysctl(t, host, "net.ipv6.conf.all.forwarding", "1")
	nd.joinContainer()
	testhost.Must(t, host.LinkAdd(&netlink.Vxlan{
		LinkAttrs: netlink.LinkAttrs{Name: "flannel.1", MTU: 1450, HardwareAddr: func() net.HardwareAddr { m := mac(n); return m[:] }()},
		VxlanId:   testVNI, Port: testhost.Port, SrcAddr: nd.outer().AsSlice(), VtepDevIndex: host.Index("eth0"), Learning: false,
	}))
	m := mac(peer)
	for _, c := range []string{
		fmt.Sprintf("ip addr add 10.0.%d.0/32 dev flannel.1", n),
		"ip link set flannel.1 up",
		fmt.Sprintf("ip neigh add 10.0.%d.0 lladdr %s dev flannel.1", peer, m),
		fmt.Sprintf("ip neigh add fd00:0:0:%d:: lladdr %s dev flannel.1", peer, m),
		fmt.Sprintf("bridge fdb add %s dst %s dev flannel.1", m, (&node{n: peer, wide: wide}).outer()),
		fmt.Sprintf("ip route add 10.0.%d.0/24 via 10.0.%d.0 dev flannel.1 onlink", peer, peer),
		fmt.Sprintf("ip route add fd00:0:0:%d::/64 via fd00:0:0:%d:: dev flannel.1 onlink", peer, peer),
	} {
		f := strings.Fields(c)
		run(t, host, f[0], f[1:]...)
	}
	return nd
}

func TestIntegrationFastPathWithKernelVXLAN(t *testing.T) {
	for _, wide := range []bool{false, true} {
		t.Run(underlayName(wide), func(t *testing.T) {
			both(t, func(t *testing.T, prepare func(a, b *testhost.Host)) {
				a, b := newMixedPair(t, wide, prepare)
				bothWays(t, a, b)
				ping(t, b.container, a.addr(), 100)
				for _, address := range []string{b.addr(), b.addr6()} {
					datagrams(t, echo(t, a.container, b.container, address), 50, 1024, 1)
					datagrams(t, echo(t, a.container, b.container, address), 20, 1200, 12)
				}
				a.expectCarried(300, 300)
			})
		})
	}
}

// newMixedPair makes a pair of which the second is a kernel's VXLAN.
func newMixedPair(t *testing.T, wide bool, prepare func(a, b *testhost.Host)) (a, b *node) {
	t.Helper()
	hostA, hostB := newHosts(t, wide)
	if prepare != nil {
		prepare(hostA, hostB)
	}
	b = newKernelNode(t, 2, wide, hostB, 1)
	a = newNode(t, 1, wide, hostA, onlink.Off)
	a.attach(Config{})
	a.know(b)
	return a, b
}

// Frames to an on-link peer leave with the interfaces' MACs, whatever there is between
// the routers: so a tap sees them.
func TestIntegrationFastPathDirectMACs(t *testing.T) {
	a, b := newPair(t, onlink.Socket, Config{}, nil)
	testhost.Await(t, "the peer's direct way", func() bool { return a.router.Path(b.subnet()).Direct && b.router.Path(a.subnet()).Direct })
	ping(t, a.container, b.addr(), 5)
	before := a.router.Stats().FastPath.TxDirect
	tap := testhost.Tap(b.host, "eth0")
	ping(t, a.container, b.addr(), 5)
	c := tap.Next()
	if c.VXLAN || c.Source != a.host.MAC("eth0") || c.Target != b.host.MAC("eth0") {
		t.Errorf("a frame from %s to %s, in VXLAN: %t, want %s, %s", c.Source, c.Target, c.VXLAN, a.host.MAC("eth0"), b.host.MAC("eth0"))
	}
	if after := a.router.Stats().FastPath.TxDirect; after < before+1 {
		t.Errorf("the fast path sent %d, before %d", after, before)
	}
	// Superpackets of UDP go whole, as a bridge would pass them on.
	for _, address := range []string{b.addr(), b.addr6()} {
		datagrams(t, echo(t, a.container, b.container, address), 50, 1200, 12)
	}
	bothWays(t, a, b)
	for _, n := range []*node{a, b} {
		n.expectCarried(150, 0)
	}
}

// reordered is how often TCP of a container found that packets had overtaken others:
// counters of TcpExt (net/ipv4/proc.c).
func reordered(t *testing.T, h *testhost.Host) (n int) {
	t.Helper()
	text := testhost.Inside(h, func() (string, error) {
		b, err := os.ReadFile("/proc/thread-self/net/netstat")
		return string(b), err
	})
	lines := strings.Split(text, "\n")
	for i := 0; i+1 < len(lines); i += 2 {
		names, values := strings.Fields(lines[i]), strings.Fields(lines[i+1])
		for j, name := range names {
			if slices.Contains([]string{"TCPSACKReorder", "TCPRenoReorder", "TCPTSReorder", "TCPDSACKRecv", "TCPDSACKOfoRecv", "TCPDSACKOldSent"}, name) {
				v, err := strconv.Atoi(values[j])
				testhost.Must(t, err)
				n += v
			}
		}
	}
	return n
}

// steer has all that arrives at a host's interfaces handled by one CPU (RPS:
// networking/scaling.rst). Otherwise a sender that moves from one CPU to another
// overtakes itself in their backlogs, with the kernel's VXLAN just as well.
func steer(t *testing.T, h *testhost.Host) {
	t.Helper()
	run(t, h, "unshare", "-m", "sh", "-ec",
		"mount -t sysfs none /sys; for q in /sys/class/net/*/queues/rx-*/rps_cpus; do echo 1 > $q; grep -q 1 $q; done")
}

// Acknowledgements, ends of bursts and full packets of a flow go different ways. Flows
// are held for a time only, so on a busy machine, where workers are late, some packets
// overtake others that wait for one: the test tells how many, and fails where it is one
// in a hundred. TestIntegrationFastPathHoldsFlows is about the holding.
func TestIntegrationFastPathReordersLittle(t *testing.T) {
	both(t, func(t *testing.T, prepare func(a, b *testhost.Host)) {
		a, b := newPair(t, onlink.Off, Config{}, prepare)
		for _, h := range []*testhost.Host{a.host, b.host, a.container, b.container} {
			steer(t, h)
		}
		load := func() int {
			before := reordered(t, a.container) + reordered(t, b.container)
			for range 3 {
				var wg sync.WaitGroup
				wg.Go(func() { transfer(t, a.container, b.container, b.addr(), transferSize) })
				wg.Go(func() { transfer(t, b.container, a.container, a.addr6(), transferSize) })
				wg.Wait()
			}
			return reordered(t, a.container) + reordered(t, b.container) - before
		}
		fast := load()
		for _, n := range []*node{a, b} {
			n.expectCarried(100, 100)
			testhost.Must(t, n.fast.Close())
		}
		workers := load()
		const segment = 1398 // bytes of a packet of the device's MTU
		if limit := workers + 6*transferSize/segment/100; fast > limit {
			t.Errorf("packets overtook others %d times with the fast path, want at most %d", fast, limit)
		}
		t.Logf("packets overtook others %d times with the fast path, %d times without", fast, workers)
	})
}

// What follows a packet of its flow that was left to the workers goes after it.
func TestIntegrationFastPathHoldsFlows(t *testing.T) {
	a, b := newPair(t, onlink.Off, Config{}, nil)
	c := echo(t, a.container, b.container, b.addr())
	datagrams(t, c, 1, 64, 1) // so that neighbours are known
	testhost.Must(t, c.SetDeadline(time.Now().Add(testhost.Patience)))
	raw, err := c.SyscallConn()
	testhost.Must(t, err)
	testhost.Must(t, raw.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.IPPROTO_UDP, unix.UDP_SEGMENT, 1000) }))
	testhost.Must(t, err)
	before := a.fast.Report().LeftTx
	buf := make([]byte, 1<<16)
	for i := range 200 {
		super, last := bytes.Repeat([]byte{byte(i)}, 4000), []byte{byte(i), 1, 2}
		_, err := c.Write(super)
		_, err2 := c.Write(last) // alone, and most times at once
		testhost.Must(t, errors.Join(err, err2))
		got := 0
		for range 5 { // in order but where sender and worker were both late
			n, err := c.Read(buf)
			testhost.Must(t, err)
			got += n
		}
		if want := len(super) + len(last); got != want {
			t.Fatalf("in turn %d %d bytes came back, want %d", i, got, want)
		}
	}
	after := a.fast.Report().LeftTx
	if after["udp_superpacket"] < before["udp_superpacket"]+100 || after["flowlet"] < before["flowlet"]+20 {
		t.Errorf("no flow was held:%s", a.left())
	}
}

// killed is set in the environment of the process that TestIntegrationKilled kills.
const killed = "UVXLAN_TEST_KILLED"

// TestKilled is that process: it has a fast path that carries packets until it is killed.
func TestKilled(t *testing.T) {
	kind := os.Getenv(killed)
	if kind == "" {
		t.Skip("a part of TestIntegrationKilled")
	}
	r, err := openRouter(1, netip.MustParseAddr("10.66.0.1"), onlink.Off)
	testhost.Must(t, err)
	testhost.Must(t, r.UpdatePeers((&node{n: 2}).peers(), nil))
	f, err := Attach(r, Config{Clsact: kind == "clsact"})
	testhost.Must(t, err)
	go func() { testhost.Must(t, r.Run(t.Context())) }()
	testhost.Await(t, "a packet to be carried", func() bool { return f.Stats().RxPackets > 0 })
	fmt.Println("carries")
	select {}
}

// expectNothingTaken fails unless a frame comes to the VXLAN port of a host.
func expectNothingTaken(t *testing.T, h *testhost.Host, c net.Conn, frame []byte) {
	t.Helper()
	port := testhost.Inside(h, func() (*net.UDPConn, error) { return net.ListenUDP("udp4", &net.UDPAddr{Port: testhost.Port}) })
	defer port.Close()
	got := make([]byte, 1500)
	testhost.Must(t, port.SetReadDeadline(time.Now().Add(testhost.Patience)))
	if _, err := c.Write(frame); err != nil {
		t.Fatal(err)
	}
	if n, err := port.Read(got); err != nil || !bytes.Equal(got[:n], frame) {
		t.Errorf("a frame comes as %d bytes: %v", n, err)
	}
}

// What a killed process leaves: nothing with tcx, and with clsact what RemoveStale
// removes, and what takes no frame until then.
func TestIntegrationKilled(t *testing.T) {
	netnstest.RequireRoot(t)
	for _, kind := range []string{"tcx", "clsact"} {
		t.Run(kind, func(t *testing.T) {
			hostA, hostB := testhost.New(t), testhost.New(t)
			testhost.Join(hostA, hostB, "eth0", "10.66.0")
			cmd := exec.CommandContext(t.Context(), "/proc/self/exe", "-test.run=^TestKilled$", "-test.v")
			cmd.Env = append(os.Environ(), killed+"="+kind)
			out, err := cmd.StdoutPipe()
			testhost.Must(t, err)
			testhost.Must(t, hostA.Do(cmd.Start))
			c := testhost.Inside(hostB, func() (net.Conn, error) {
				return net.DialUDP("udp4", &net.UDPAddr{IP: net.IPv4(10, 66, 0, 2), Port: 40000}, &net.UDPAddr{IP: net.IPv4(10, 66, 0, 1), Port: testhost.Port})
			})
			defer c.Close()
			frame := forge(testVNI, mac(1), mac(2), testhost.UDPPacket("10.0.2.2", "10.0.1.2", 64))
			sending, stop := context.WithCancel(t.Context())
			defer stop()
			var sender sync.WaitGroup
			sender.Go(func() {
				for sending.Err() == nil {
					_, _ = c.Write(frame) // nobody may listen yet
					time.Sleep(5 * time.Millisecond)
				}
			})
			var text []byte
			for buf := make([]byte, 4096); !bytes.Contains(text, []byte("carries\n")); {
				n, err := out.Read(buf)
				text = append(text, buf[:n]...)
				if err != nil {
					t.Fatalf("%v: %s", err, text)
				}
			}
			if attachedTo(t, hostA) == "" {
				t.Fatal("nothing is attached")
			}
			stop()
			sender.Wait()
			testhost.Must(t, cmd.Process.Kill())
			_ = cmd.Wait() // it was killed
			expectNothingTaken(t, hostA, c, frame)
			if kind == "clsact" {
				if removed := testhost.Inside(hostA, func() ([]string, error) { return RemoveStale("flannel.1") }); len(removed) == 0 {
					t.Error("there was nothing to remove")
				}
			}
			testhost.Await(t, "nothing to be attached", func() bool { return attachedTo(t, hostA) == "" })
			testhost.Await(t, "the relay to be gone", func() bool { return len(relays(t, hostA)) == 0 })
		})
	}
}

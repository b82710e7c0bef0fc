package tunnel_test

import (
	"bytes"
	"context"
	"net"
	"net/netip"
	"os"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"strconv"
	"testing"
	"time"

	"uvxlan/encap"
	"uvxlan/tunnel"
	"uvxlan/tunnel/device"
	"uvxlan/tunnel/link"
	"uvxlan/tunnel/netnstest"
	"uvxlan/tunnel/offload"
	"uvxlan/tunnel/onlink"
	"uvxlan/tunnel/tunneltest"
	"uvxlan/tunnel/underlay"
)

// use is what a process holds of its host, memory in bytes.
type use struct {
	goroutines, threads, descriptors int
	heap, resident                   int
}

// inUse measures once whatever is being closed is.
func inUse(t *testing.T) (u use) {
	t.Helper()
	for range 2 { // finalizers of the first run free for the second
		debug.FreeOSMemory()
	}
	u.threads, u.descriptors = entries(t, "/proc/self/task"), entries(t, "/proc/self/fd")
	u.goroutines = runtime.NumGoroutine()
	heap := []metrics.Sample{{Name: "/memory/classes/heap/objects:bytes"}}
	metrics.Read(heap)
	u.heap = int(heap[0].Value.Uint64())
	statm, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		t.Fatal(err)
	}
	pages, err := strconv.Atoi(string(bytes.Fields(statm)[1]))
	if err != nil {
		t.Fatal(err)
	}
	u.resident = pages * os.Getpagesize()
	return u
}

func entries(t *testing.T, dir string) int {
	t.Helper()
	all, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	return len(all)
}

// grew says what is more than the loop's own noise. Threads and memory that the Go
// runtime keeps for later aren't lost, but there is an end to them.
func (u use) grew(before use) bool {
	const mebibyte = 1 << 20
	return u.goroutines > before.goroutines || u.descriptors > before.descriptors || u.threads > before.threads+3 ||
		u.heap > before.heap+2*mebibyte || u.resident > before.resident+32*mebibyte
}

// checkLeaks opens and closes many routers after some that warm the process up.
func checkLeaks(t *testing.T, routers int, open func(i int)) {
	t.Helper()
	for i := range 20 {
		open(i)
	}
	before, started := inUse(t), time.Now()
	for i := range routers {
		open(i)
	}
	took, after := time.Since(started), inUse(t)
	for deadline := time.Now().Add(20 * time.Second); after.grew(before) && time.Now().Before(deadline); after = inUse(t) {
		time.Sleep(10 * time.Millisecond) // the runtime ends threads and goroutines when it likes
	}
	if after.grew(before) {
		t.Errorf("after %d routers: %+v, before: %+v", routers, after, before)
	}
	t.Logf("%d routers in %v; before %+v, after %+v", routers, took.Round(time.Millisecond), before, after)
}

var (
	leakHost = netip.MustParseAddr("127.0.0.1")
	leakPeer = tunnel.Peer{Subnet: netip.MustParsePrefix("10.0.2.0/24"), Underlay: netip.MustParseAddr("127.0.0.2"), MAC: encap.MAC{2, 2}}
)

// runRouter runs a router on device while use uses it.
func runRouter(t *testing.T, device device.Device, u underlay.Config, c tunnel.Config, use func(*tunnel.Router)) {
	t.Helper()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	underlay, err := underlay.Listen(u)
	must(err)
	router, err := tunnel.New(device, underlay, c)
	must(err)
	must(router.ReplacePeers([]tunnel.Peer{leakPeer}))
	ended := make(chan error, 1)
	go func() { ended <- router.Run(context.Background()) }()
	use(router)
	must(router.Close())
	must(<-ended)
}

// A thousand sandboxes that come and go leave nothing behind.
func TestRoutersLeaveNothing(t *testing.T) {
	port := freeUDPPort(t)
	// 10.0.1.2 asks for a subnet that nobody has, and is told so.
	packet := []byte{0x45, 0, 0, 28, 0, 0, 0, 0, 64, encap.ProtoUDP, 0, 0, 10, 0, 1, 2, 10, 0, 3, 2, 0, 1, 0, 1, 0, 8, 0, 0}
	encap.IPv4(packet).UpdateChecksum()
	checkLeaks(t, 1000, func(int) {
		device, err := tunneltest.NewDevice("memory0", 1)
		if err != nil {
			t.Fatal(err)
		}
		runRouter(t, device, underlay.Config{Address: leakHost, Port: port}, tunnel.Config{
			VNI: 1, MAC: encap.MAC{2, 1}, Link: link.Config{MTU: 1450, Addresses: []netip.Addr{netip.MustParseAddr("10.0.1.0")}},
		}, func(*tunnel.Router) {
			if err := device.Send(packet); err != nil {
				t.Fatal(err)
			}
			if answer, err := device.Receive(t.Context()); err != nil || len(answer) < 28 || answer[9] != encap.ProtoICMP {
				t.Fatalf("the answer is % x, %v", answer, err)
			}
		})
	})
}

// The same with real devices, packet sockets, kernel routes and all offloads.
func TestIntegrationRoutersLeaveNothing(t *testing.T) {
	netnstest.Enter(t)
	vtep, network := netip.MustParseAddr("10.0.1.0"), netip.MustParsePrefix("10.0.0.0/16")
	modes := []onlink.Mode{onlink.Off, onlink.Socket, onlink.Route}
	checkLeaks(t, 200, func(i int) {
		device, err := device.Open("flannel.1", device.Config{Queues: 2, Offloads: offload.All})
		if err != nil {
			t.Fatal(err)
		}
		runRouter(t, device, underlay.Config{
			Address: leakHost, Port: 4789, Workers: 2, Offloads: offload.All,
		}, tunnel.Config{
			VNI: 1, MAC: encap.MAC{2, 1}, Link: link.Config{MTU: 1450, Addresses: []netip.Addr{vtep}}, OnLink: openOnLink(t, modes[i%len(modes)]),
		}, func(r *tunnel.Router) {
			if err := link.Configure("flannel.1", link.Config{
				Addresses: []netip.Addr{vtep}, Networks: []netip.Prefix{network}, MTU: 1450,
			}); err != nil {
				t.Fatal(err)
			}
			askNobody(t, r)
		})
	})
	if links, err := net.Interfaces(); err != nil || len(links) != 1 {
		t.Errorf("the interfaces are %v, %v", links, err)
	}
}

func openOnLink(t *testing.T, mode onlink.Mode) *onlink.Paths {
	t.Helper()
	if mode == onlink.Off {
		return nil
	}
	p, err := onlink.Open(onlink.Config{Mode: mode, Workers: 2})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// askNobody sends into a subnet that nobody has until the router has seen it.
func askNobody(t *testing.T, r *tunnel.Router) {
	t.Helper()
	c, err := net.DialUDP("udp4", nil, net.UDPAddrFromAddrPort(netip.MustParseAddrPort("10.0.3.2:9")))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.Write([]byte("?")); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(time.Millisecond) {
		s := r.Stats()
		if s.Drop(tunnel.DropNoRoute) > 0 {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("the router saw nothing: %+v", s)
		}
	}
}

func freeUDPPort(t *testing.T) uint16 {
	t.Helper()
	c, err := net.ListenUDP("udp4", &net.UDPAddr{})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	return c.LocalAddr().(*net.UDPAddr).AddrPort().Port()
}

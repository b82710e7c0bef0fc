package fastpath

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"uvxlan/encap"
	"uvxlan/tunnel/internal/testhost"
	"uvxlan/tunnel/netnstest"
	"uvxlan/tunnel/onlink"
)

// newBridgedHosts makes two hosts at the ports of a third's bridge, which segments and
// fills in whatever they have left undone: from there on it is as on a wire.
func newBridgedHosts(t *testing.T, wide bool) (hosts [2]*testhost.Host) {
	t.Helper()
	netnstest.RequireRoot(t)
	between := testhost.New(t)
	script(t, between, "ip link add br0 type bridge")
	for i := range hosts {
		hosts[i] = testhost.New(t)
		port := fmt.Sprintf("p%d", i)
		testhost.Must(t, between.LinkAdd(&netlink.Veth{
			LinkAttrs: netlink.LinkAttrs{Name: port}, PeerName: "eth0", PeerNamespace: netlink.NsFd(hosts[i].FD()),
		}))
		leaveNothingUndone(t, between, port)
		for name, h := range map[string]*testhost.Host{port: between, "eth0": hosts[i]} {
			testhost.Must(t, h.LinkSetMTU(h.Link(name), 1450+encap.OverheadIPv6))
			testhost.Must(t, h.LinkSetUp(h.Link(name)))
		}
		script(t, between, "ip link set "+port+" master br0")
		if wide {
			hosts[i].Address("eth0", fmt.Sprintf("fd66::%d/64", i+1))
		} else {
			hosts[i].Address("eth0", fmt.Sprintf("10.66.0.%d/24", i+1))
		}
	}
	script(t, between, "ip link set br0 up")
	return hosts
}

// leaveNothingUndone has an interface send only what is complete.
func leaveNothingUndone(t *testing.T, h *testhost.Host, link string) {
	t.Helper()
	for _, feature := range []string{
		"tx-checksum-ip-generic", "tx-generic-segmentation", "tx-udp_tnl-segmentation", "tx-udp_tnl-csum-segmentation",
	} {
		changeFeatureOf(t, h, link, feature, false)
	}
}

// watcher is tcpdump at an interface, of what arrives.
type watcher struct {
	t    *testing.T
	cmd  *exec.Cmd
	file *os.File
}

func watch(t *testing.T, h *testhost.Host, link string) *watcher {
	t.Helper()
	file, err := os.Create(filepath.Join(t.TempDir(), "pcap"))
	testhost.Must(t, err)
	t.Cleanup(func() { file.Close() })
	cmd := exec.CommandContext(context.WithoutCancel(t.Context()), "tcpdump",
		"-i", link, "-Q", "in", "-n", "-B", "65536", "--immediate-mode", "-U", "-w", "-")
	cmd.Stdout = file
	says, err := cmd.StderrPipe()
	testhost.Must(t, err)
	testhost.Must(t, h.Do(cmd.Start))
	lines := bufio.NewScanner(says)
	for lines.Scan() {
		if strings.Contains(lines.Text(), "listening on") {
			return &watcher{t, cmd, file}
		}
	}
	t.Fatalf("tcpdump: %v", errors.Join(lines.Err(), cmd.Wait()))
	return nil
}

// stopAll ends captures of what goes from one node to another when they have all that was
// sent before, and reads them.
func stopAll(t *testing.T, a, b *node, watchers ...*watcher) (all []sums) {
	t.Helper()
	mark := make([]byte, 32)
	_, _ = rand.Read(mark)
	c := echo(t, a.container, b.container, b.addr())
	for _, w := range watchers {
		testhost.Await(t, "tcpdump to have got what arrived", func() bool {
			if _, err := c.Write(mark); err != nil {
				t.Error(err)
			}
			return w.has(mark)
		})
		all = append(all, w.stop())
	}
	return all
}

// has tells whether the last part of the capture has some bytes.
func (w *watcher) has(what []byte) bool {
	w.t.Helper()
	info, err := w.file.Stat()
	testhost.Must(w.t, err)
	tail := make([]byte, 1<<16)
	n, err := w.file.ReadAt(tail, max(info.Size()-int64(len(tail)), 0))
	if err != nil && !errors.Is(err, io.EOF) {
		w.t.Error(err)
	}
	return bytes.Contains(tail[:n], what)
}

// stop ends the capture and reads it.
func (w *watcher) stop() (s sums) {
	w.t.Helper()
	testhost.Must(w.t, w.cmd.Process.Signal(unix.SIGINT))
	_ = w.cmd.Wait() // it may tell of the signal
	out, err := exec.CommandContext(w.t.Context(), "tcpdump", "-r", w.file.Name(), "-n", "-vv").Output()
	testhost.Must(w.t, err)
	for line := range bytes.Lines(out) {
		s.tcp += len(rightTCP.FindAll(line, -1))
		s.udp += len(rightUDP.FindAll(line, -1))
		s.icmp += len(rightICMP.FindAll(line, -1))
		s.none += len(noSum.FindAll(line, -1))
		if wrongSum.Match(line) {
			s.wrong = append(s.wrong, string(line))
		}
	}
	return s
}

// sums are the checksums that tcpdump has found in a capture.
type sums struct {
	tcp, udp, icmp, none int
	wrong                []string // lines
}

var (
	rightTCP  = regexp.MustCompile(`cksum 0x[0-9a-f]{4} \(correct\)`)
	rightUDP  = regexp.MustCompile(`\[udp sum ok\]`)
	rightICMP = regexp.MustCompile(`\[icmp6 sum ok\]`)
	noSum     = regexp.MustCompile(`\[no cksum\]`)
	wrongSum  = regexp.MustCompile(`incorrect|bad [a-z0-9]* ?cksum|wrong icmp`)
)

func (s sums) String() string {
	return fmt.Sprintf("TCP %d, UDP %d, ICMPv6 %d right, %d without, %d wrong", s.tcp, s.udp, s.icmp, s.none, len(s.wrong))
}

// A receiver whose interface verifies nothing finds every checksum right: those of the
// datagrams on the underlay, of the packets in them, and in the container.
func TestIntegrationChecksums(t *testing.T) {
	if _, err := exec.LookPath("tcpdump"); err != nil && os.Getenv("CI") == "" {
		t.Skip("tcpdump isn't installed")
	}
	t.Parallel() // it waits more than it works
	for _, wide := range []bool{false, true} {
		for _, fast := range []bool{true, false} {
			for _, whole := range []bool{true, false} {
				t.Run(fmt.Sprintf("%s, fast path %t, superpackets %t", underlayName(wide), fast, whole), func(t *testing.T) {
					var nodes [2]*node
					for i, h := range newBridgedHosts(t, wide) {
						if !whole {
							withoutTunnelOffload(t, h)
						}
						nodes[i] = newNode(t, i+1, wide, h, onlink.Off)
						leaveNothingUndone(t, h, "c0")
						if fast {
							nodes[i].attach(Config{})
						}
					}
					a, b := nodes[0], nodes[1]
					a.know(b)
					b.know(a)
					if fast {
						a.expectCarrying(b)
					}
					checksums(t, a, b, fast && whole && !wide)
					spoiltChecksum(t, a, b)
					if fast {
						a.expectCarried(100, 0)
					}
				})
			}
		}
	}
}

var places = []string{"on the underlay", "in the container"}

// checksums looks at what comes from one node to another. Over IPv4 segments of TCP
// superpackets that the fast path carried whole have no outer checksum.
func checksums(t *testing.T, a, b *node, whole bool) {
	t.Helper()
	wire, inside := watch(t, b.host, "eth0"), watch(t, b.container, "eth0")
	for _, address := range []string{b.addr(), b.addr6()} {
		ping(t, a.container, address, 20)
		transfer(t, a.container, b.container, address, 4<<20)
		for _, length := range []int{1, 64, 777, 1402} {
			datagrams(t, echo(t, a.container, b.container, address), 20, length, 1)
		}
		datagrams(t, echo(t, a.container, b.container, address), 10, 1201, 12)
	}
	for i, s := range stopAll(t, a, b, wire, inside) {
		t.Logf("%s: %s", places[i], s)
		if len(s.wrong) > 0 {
			t.Errorf("%s: %s; the first: %s", places[i], s, s.wrong[0])
		}
		if s.tcp < 1000 || s.udp < 200 || s.icmp < 20 || (s.none > 0) != (whole && i == 0) {
			t.Errorf("%s there is something else than was sent: %s", places[i], s)
		}
	}
}

// spoiltChecksum makes sure that a wrong checksum is found.
func spoiltChecksum(t *testing.T, a, b *node) {
	t.Helper()
	wire, inside := watch(t, b.host, "eth0"), watch(t, b.container, "eth0")
	spoilt := testhost.UDPPacket(a.addr(), b.addr(), 100)
	spoilt[26] ^= 1
	raw := testhost.Inside(a.container, func() (int, error) {
		return unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
	})
	defer unix.Close(raw)
	testhost.Must(t, unix.Sendto(raw, spoilt, 0, &unix.SockaddrInet4{Addr: netip.MustParseAddr(b.addr()).As4()}))
	for i, s := range stopAll(t, a, b, wire, inside) {
		if len(s.wrong) == 0 {
			t.Errorf("%s a wrong checksum isn't found: %s", places[i], s)
		}
	}
}

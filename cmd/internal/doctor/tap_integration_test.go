package doctor

import (
	"encoding/binary"
	"net/netip"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"uvxlan/encap"
	"uvxlan/tunnel/netnstest"
)

// wire is a host in whose network namespace the test is, and another one beyond an
// Ethernet.
type wire struct {
	far         *netnstest.Namespace
	near, other netip.Addr
}

func newWire(t *testing.T) *wire {
	t.Helper()
	w := &wire{near: netip.MustParseAddr("192.0.2.1"), other: netip.MustParseAddr("192.0.2.2")}
	netnstest.Enter(t)
	w.far = netnstest.New(t)
	netnstest.Run(t, "sh", "-c", "ip link add eth0 type veth peer name eth1 && ip addr add 192.0.2.1/24 dev eth0 && ip link set eth0 up")
	eth1, err := netlink.LinkByName("eth1")
	if err == nil {
		err = netlink.LinkSetNsFd(eth1, w.far.FD())
	}
	if err != nil {
		t.Fatal(err)
	}
	err = w.far.Do(func() error {
		netnstest.Run(t, "sh", "-c", "ip addr add 192.0.2.2/24 dev eth1 && ip link set eth1 up")
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return w
}

// send sends an IPv4 packet of our own making from the far host, as it is.
func (w *wire) send(t *testing.T, packet []byte) {
	t.Helper()
	err := w.far.Do(func() error {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		return unix.Sendto(fd, packet, 0, &unix.SockaddrInet4{Addr: w.near.As4()})
	})
	if err != nil {
		t.Fatal(err)
	}
}

// datagram is a UDP datagram in an IPv4 packet, with a checksum that is right or
// off by some.
func (w *wire) datagram(payload []byte, off uint16) []byte {
	b := make([]byte, encap.IPv4HeaderLen+udpHeaderLen, encap.IPv4HeaderLen+udpHeaderLen+len(payload))
	b = append(b, payload...)
	ip := encap.IPv4(b)
	ip[0], ip[9] = 0x45, unix.IPPROTO_UDP
	ip.SetTotalLen(len(b))
	ip.SetTTL(64)
	src, dst := w.other.As4(), w.near.As4()
	copy(ip[12:], src[:])
	copy(ip[16:], dst[:])
	udp := ip.Payload()
	binary.BigEndian.PutUint16(udp, 50000)
	binary.BigEndian.PutUint16(udp[2:], 4789)
	binary.BigEndian.PutUint16(udp[4:], uint16(len(udp)))
	sum := encap.Checksum(udp, encap.PseudoHeaderSum(w.other, w.near, unix.IPPROTO_UDP, len(udp)))
	binary.BigEndian.PutUint16(udp[6:], sum+off)
	return b
}

// The tap tells a datagram with a wrong checksum from one with a right one, and sees
// nothing but what it is for.
func TestIntegrationTap(t *testing.T) {
	w := newWire(t)
	tap, err := openTap(4789)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := tap.close(); err != nil {
			t.Error(err)
		}
	}()
	e := overlayEcho{vni: 7, mac: encap.MAC{2, 0, 0, 0, 0, 9}, src: netip.MustParseAddr("10.0.1.0"), dst: netip.MustParseAddr("10.0.2.0"), id: 77}
	for seq, off := range []uint16{0, 1} {
		e.seq = uint16(seq)
		w.send(t, w.datagram(e.frame(), off))
	}
	tcp := e.frame()
	tcp[encap.FrameHeaderLen+9] = unix.IPPROTO_TCP
	w.send(t, w.datagram(tcp, 0)) // not for the tap
	e.seq = 2
	w.send(t, w.datagram(append(e.frame(), e.frame()...), 0)) // joined frames
	seen := tap.await(4, 10*time.Second, func(s *sighting) bool { return !s.out && s.frame != nil })
	if len(seen) != 4 {
		t.Fatalf("%d frames are seen, want 4", len(seen))
	}
	for i, want := range []checksum{checksumRight, checksumWrong, checksumUnknown, checksumUnknown} {
		s := seen[i]
		if s.frame.checksum != want || s.message.id != 77 || int(s.message.seq) != min(i, 2) || s.frame.vni != 7 || s.frame.mac != e.mac || s.frame.port != 4789 ||
			s.frame.src != e.src || s.frame.dst != e.dst || s.src != w.other || s.dst != w.near || s.frame.length != leastEcho {
			t.Errorf("frame %d: %+v, %+v", i, s, *s.frame)
		}
	}
}

// What the tap has no room for isn't taken for what didn't happen.
func TestIntegrationTapMisses(t *testing.T) {
	w := newWire(t)
	tapped, err := openTap(4789)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = tapped.close() })
	ping := func() { netnstest.Run(t, "ping", "-c", "1", w.other.String()) }
	if ping(); tapped.missed() {
		t.Error("one ping is too much for the tap")
	}
	// Who reads waits for the lock, and the socket's queue fills.
	tapped.mu.Lock()
	if err := setOption(tapped.file, unix.SOL_SOCKET, unix.SO_RCVBUF, 0); err != nil {
		t.Error(err)
	}
	for range 20 {
		ping()
	}
	tapped.mu.Unlock()
	if !tapped.missed() {
		t.Error("nothing was missed by a tap without room")
	}
}

// The next hop to an IPv4 address may be an IPv6 one.
func TestIntegrationNeighbourOfOtherFamily(t *testing.T) {
	newWire(t)
	netnstest.Run(t, "sh", "-ec", "ip route add 198.51.100.1 via inet6 fe80::9 dev eth0; ip -6 neigh add fe80::9 lladdr 02:00:00:00:00:09 dev eth0 nud permanent")
	n := neighbourOf(netip.MustParseAddr("198.51.100.1"))
	if n.err != nil || n.onLink || n.hop != netip.MustParseAddr("fe80::9") || n.state != "permanent" {
		t.Errorf("the next hop is %+v", n)
	}
}

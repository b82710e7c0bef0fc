package tunnel

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"uvxlan/encap"
	"uvxlan/tunnel/netnstest"
)

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// machine is a network namespace without a name, which goes with the test.
type machine struct {
	*netnstest.Namespace
	t *testing.T
}

func newMachine(t *testing.T) *machine {
	t.Helper()
	return &machine{netnstest.New(t), t}
}

// inside runs f in the machine.
func inside[T any](h *machine, f func() (T, error)) (result T) {
	h.t.Helper()
	must(h.t, h.Do(func() (err error) {
		result, err = f()
		return err
	}))
	return result
}

func (h *machine) link(name string) netlink.Link {
	h.t.Helper()
	l, err := h.LinkByName(name)
	must(h.t, err)
	return l
}

func (h *machine) index(name string) int { return h.link(name).Attrs().Index }

func (h *machine) mac(name string) encap.MAC { return encap.MAC(h.link(name).Attrs().HardwareAddr) }

func (h *machine) address(name, prefix string) {
	h.t.Helper()
	a, err := netlink.ParseAddr(prefix)
	must(h.t, err)
	if a.IP.To4() == nil {
		a.Flags = unix.IFA_F_NODAD // usable at once
	}
	must(h.t, h.AddrAdd(h.link(name), a))
}

// routes lists the kernel's that have our protocol, as "subnet via gateway".
func (h *machine) routes() (list []string) {
	h.t.Helper()
	filter := &netlink.Route{Protocol: RouteProtocol, Table: unix.RT_TABLE_MAIN}
	routes, err := h.RouteListFiltered(netlink.FAMILY_V4, filter, netlink.RT_FILTER_PROTOCOL|netlink.RT_FILTER_TABLE)
	must(h.t, err)
	for _, r := range routes {
		list = append(list, fmt.Sprintf("%s via %s", r.Dst, r.Gw))
	}
	slices.Sort(list)
	return list
}

func (h *machine) expectRoutes(want ...string) {
	h.t.Helper()
	if got := h.routes(); !slices.Equal(got, want) {
		h.t.Errorf("the kernel has %q, want %q", got, want)
	}
}

// join makes a link of a name between two hosts, with the addresses net.1 and
// net.2.
func join(a, b *machine, name, network string) {
	a.t.Helper()
	must(a.t, a.LinkAdd(&netlink.Veth{
		LinkAttrs: netlink.LinkAttrs{Name: name},
		PeerName:  name, PeerNamespace: netlink.NsFd(b.FD()),
	}))
	for i, h := range []*machine{a, b} {
		must(h.t, h.LinkSetUp(h.link(name)))
		h.address(name, fmt.Sprintf("%s.%d/24", network, i+1))
	}
}

// patience bounds what should take a moment, on a loaded machine.
const patience = 20 * time.Second

// await waits until something that nobody tells of is so.
func await(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !ok(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("never: %s", what)
		}
	}
}

// wiretap receives what comes by a link, superpackets whole.
type wiretap struct {
	t  *testing.T
	fd int
}

// capture is an IP packet that came behind an Ethernet header, and what is left
// undone of it, counted from the IP header.
type capture struct {
	source, target encap.MAC
	packet         []byte
	offload        Offload
	vxlan          bool // the packet was in a datagram
}

func tapWire(h *machine, name string) *wiretap {
	h.t.Helper()
	index := h.index(name)
	fd := inside(h, func() (int, error) {
		all := binary.NativeEndian.Uint16([]byte{0, unix.ETH_P_ALL})
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return -1, err
		}
		growBuffer(fd, unix.SO_RCVBUFFORCE, unix.SO_RCVBUF)
		return fd, errors.Join(
			unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_VNET_HDR, 1),
			unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_IGNORE_OUTGOING, 1),
			unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: all, Ifindex: index}))
	})
	h.t.Cleanup(func() { unix.Close(fd) })
	return &wiretap{h.t, fd}
}

// next is the next packet of the overlay network 10.0.0.0/16 or its IPv6 part.
func (w *wiretap) next() capture {
	w.t.Helper()
	for buf := make([]byte, MaxPacket+100); ; {
		limit := unix.NsecToTimespec(int64(patience))
		n, err := pollFor([]unix.PollFd{{Fd: int32(w.fd), Events: unix.POLLIN}}, &limit)
		if err != nil || n == 0 {
			w.t.Fatalf("no packet came: %v", errors.Join(err, os.ErrDeadlineExceeded))
		}
		n, err = unix.Read(w.fd, buf)
		if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.ENETDOWN) {
			continue
		}
		must(w.t, err)
		if a, ok := parseCapture(buf[:n]); ok {
			return a
		}
	}
}

func parseCapture(b []byte) (a capture, ok bool) {
	vnet := vnetHeader(b)
	a.offload = vnet.offload()
	a.offload.HeaderLen = 0 // any
	if a.offload.NeedsChecksum {
		a.offload.ChecksumStart -= encap.EthernetHeaderLen
	}
	frame := b[vnetHeaderLen:]
	a.target, a.source = encap.MAC(frame), encap.MAC(frame[6:])
	a.packet = frame[encap.EthernetHeaderLen:]
	kind := binary.BigEndian.Uint16(frame[12:])
	dst, _, length := destination(a.packet)
	switch {
	case length == 0 || kind != encap.EtherTypeIPv4 && kind != encap.EtherTypeIPv6:
		return a, false
	case kind == encap.EtherTypeIPv4 && a.packet[9] == encap.ProtoUDP && binary.BigEndian.Uint16(a.packet[22:]) == wirePort:
		a.vxlan = true
		a.packet = a.packet[28+encap.FrameHeaderLen : length]
		return a, true
	}
	a.packet = a.packet[:length]
	return a, netip.MustParsePrefix("10.0.0.0/16").Contains(dst) || netip.MustParsePrefix("fd00::/16").Contains(dst)
}

// wirePort is where the tests' hosts receive VXLAN.
const wirePort = 4789

// linesOf are those of a log that say what.
func linesOf(log, what string) (n int) {
	for line := range strings.Lines(log) {
		if strings.Contains(line, what) {
			n++
		}
	}
	return n
}

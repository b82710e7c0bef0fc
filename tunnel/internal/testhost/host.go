// Package testhost makes hosts in network namespaces for the tests of package
// tunnel and the packages below it.
package testhost

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"uvxlan/encap"
	"uvxlan/tunnel/internal/vnet"
	"uvxlan/tunnel/kroute"
	"uvxlan/tunnel/netnstest"
)

// Must ends the test with an error that isn't nil.
func Must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// Host is a network namespace without a name, which goes with the test.
type Host struct {
	*netnstest.Namespace
	T *testing.T
}

// New makes a host that goes with the test.
func New(t *testing.T) *Host {
	t.Helper()
	return &Host{netnstest.New(t), t}
}

// Inside runs f in the machine.
func Inside[T any](h *Host, f func() (T, error)) (result T) {
	h.T.Helper()
	Must(h.T, h.Do(func() (err error) {
		result, err = f()
		return err
	}))
	return result
}

// Link is an interface of the host.
func (h *Host) Link(name string) netlink.Link {
	h.T.Helper()
	l, err := h.LinkByName(name)
	Must(h.T, err)
	return l
}

// Index is an interface's.
func (h *Host) Index(name string) int { return h.Link(name).Attrs().Index }

// MAC is an interface's.
func (h *Host) MAC(name string) encap.MAC { return encap.MAC(h.Link(name).Attrs().HardwareAddr) }

// Address gives an interface an address such as "10.9.0.1/24".
func (h *Host) Address(name, prefix string) {
	h.T.Helper()
	a, err := netlink.ParseAddr(prefix)
	Must(h.T, err)
	if a.IP.To4() == nil {
		a.Flags = unix.IFA_F_NODAD // usable at once
	}
	Must(h.T, h.AddrAdd(h.Link(name), a))
}

// Routes lists the kernel's that have our protocol, as "subnet via gateway".
func (h *Host) Routes() (list []string) {
	h.T.Helper()
	filter := &netlink.Route{Protocol: kroute.Protocol, Table: unix.RT_TABLE_MAIN}
	routes, err := h.RouteListFiltered(netlink.FAMILY_V4, filter, netlink.RT_FILTER_PROTOCOL|netlink.RT_FILTER_TABLE)
	Must(h.T, err)
	for _, r := range routes {
		list = append(list, fmt.Sprintf("%s via %s", r.Dst, r.Gw))
	}
	slices.Sort(list)
	return list
}

// ExpectRoutes compares what Routes lists.
func (h *Host) ExpectRoutes(want ...string) {
	h.T.Helper()
	if got := h.Routes(); !slices.Equal(got, want) {
		h.T.Errorf("the kernel has %q, want %q", got, want)
	}
}

// Join makes a link of a name between two hosts, with the addresses net.1 and
// net.2.
func Join(a, b *Host, name, network string) {
	a.T.Helper()
	Must(a.T, a.LinkAdd(&netlink.Veth{
		LinkAttrs: netlink.LinkAttrs{Name: name},
		PeerName:  name, PeerNamespace: netlink.NsFd(b.FD()),
	}))
	for i, h := range []*Host{a, b} {
		Must(h.T, h.LinkSetUp(h.Link(name)))
		h.Address(name, fmt.Sprintf("%s.%d/24", network, i+1))
	}
}

// Patience bounds what should take a moment, on a loaded machine.
const Patience = 20 * time.Second

// Await waits until something that nobody tells of is so.
func Await(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(Patience); !ok(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("never: %s", what)
		}
	}
}

// Wiretap receives what comes by a link, superpackets whole.
type Wiretap struct {
	t  *testing.T
	FD int
}

// Capture is an IP packet that came behind an Ethernet header, and what is left
// undone of it, counted from the IP header.
type Capture struct {
	Source, Target encap.MAC
	Packet         []byte
	Offload        encap.Offload
	VXLAN          bool // the packet was in a datagram
}

// Tap opens a wiretap at an interface.
func Tap(h *Host, name string) *Wiretap {
	h.T.Helper()
	index := h.Index(name)
	fd := Inside(h, func() (int, error) {
		all := binary.NativeEndian.Uint16([]byte{0, unix.ETH_P_ALL})
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return -1, err
		}
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 8<<20)
		return fd, errors.Join(
			unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_VNET_HDR, 1),
			unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_IGNORE_OUTGOING, 1),
			unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: all, Ifindex: index}))
	})
	h.T.Cleanup(func() { unix.Close(fd) })
	return &Wiretap{h.T, fd}
}

// Next is the next packet of the overlay network 10.0.0.0/16 or its IPv6 part.
func (w *Wiretap) Next() Capture {
	w.t.Helper()
	for buf := make([]byte, 1<<16+100); ; {
		limit := unix.NsecToTimespec(int64(Patience))
		n, err := unix.Ppoll([]unix.PollFd{{Fd: int32(w.FD), Events: unix.POLLIN}}, &limit, nil)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil || n == 0 {
			w.t.Fatalf("no packet came: %v", errors.Join(err, os.ErrDeadlineExceeded))
		}
		n, err = unix.Read(w.FD, buf)
		if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EINTR) || errors.Is(err, unix.ENETDOWN) {
			continue
		}
		Must(w.t, err)
		if a, ok := parseCapture(buf[:n]); ok {
			return a
		}
	}
}

func parseCapture(b []byte) (a Capture, ok bool) {
	header := vnet.Header(b)
	a.Offload = header.Offload()
	a.Offload.HeaderLen = 0 // any
	if a.Offload.NeedsChecksum {
		a.Offload.ChecksumStart -= encap.EthernetHeaderLen
	}
	frame := b[vnet.HeaderLen:]
	a.Target, a.Source = encap.MAC(frame), encap.MAC(frame[6:])
	a.Packet = frame[encap.EthernetHeaderLen:]
	kind := binary.BigEndian.Uint16(frame[12:])
	dst, length := destination(a.Packet)
	switch {
	case length == 0 || kind != encap.EtherTypeIPv4 && kind != encap.EtherTypeIPv6:
		return a, false
	case kind == encap.EtherTypeIPv4 && a.Packet[9] == encap.ProtoUDP && binary.BigEndian.Uint16(a.Packet[22:]) == Port:
		a.VXLAN = true
		a.Packet = a.Packet[28+encap.FrameHeaderLen : length]
		return a, true
	}
	a.Packet = a.Packet[:length]
	return a, netip.MustParsePrefix("10.0.0.0/16").Contains(dst) || netip.MustParsePrefix("fd00::/16").Contains(dst)
}

func destination(packet []byte) (dst netip.Addr, length int) {
	if p, err := encap.ParseIPv4(packet); err == nil {
		return p.Dst(), len(p)
	}
	if p, err := encap.ParseIPv6(packet); err == nil {
		return p.Dst(), len(p)
	}
	return netip.Addr{}, 0
}

// Port is where the tests' hosts receive VXLAN.
const Port = 4789

// LinesOf are those of a log that say what.
func LinesOf(log, what string) (n int) {
	for line := range strings.Lines(log) {
		if strings.Contains(line, what) {
			n++
		}
	}
	return n
}

// TUNPath is the device node that queues are opened at.
const TUNPath = "/dev/net/tun"

// AttachTUN attaches a queue as anybody would, by the device node at a path.
func AttachTUN(path, name string, flags uint16) (int, error) {
	ifr, err := unix.NewIfreq(name)
	if err != nil {
		return -1, err
	}
	fd, err := unix.Open(path, unix.O_RDWR, 0)
	if err != nil {
		return -1, err
	}
	ifr.SetUint16(flags)
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, ifr); err != nil {
		return -1, errors.Join(err, unix.Close(fd))
	}
	return fd, nil
}

// IsOpen tells whether fd is an open descriptor.
func IsOpen(fd int) bool {
	_, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0)
	return err == nil
}

// IPNet is a prefix as netlink takes it.
func IPNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// StaleRoute makes a route as an earlier run left it.
func StaleRoute(h *Host, subnet, via string) {
	h.T.Helper()
	Must(h.T, h.RouteAdd(&netlink.Route{
		Dst: IPNet(netip.MustParsePrefix(subnet)), Gw: netip.MustParseAddr(via).AsSlice(), Protocol: kroute.Protocol,
	}))
}

// OpenUDP opens a socket as anybody would, bound to an address and port, with others
// if shared.
func OpenUDP(t testing.TB, address string, port uint16, shared bool) int {
	t.Helper()
	a := netip.MustParseAddr(address)
	family, local := unix.AF_INET6, unix.Sockaddr(&unix.SockaddrInet6{Port: int(port), Addr: a.As16()})
	if a.Is4() {
		family, local = unix.AF_INET, &unix.SockaddrInet4{Port: int(port), Addr: a.As4()}
	}
	fd, err := unix.Socket(family, unix.SOCK_DGRAM, 0)
	Must(t, err)
	t.Cleanup(func() { unix.Close(fd) }) // no error if it was closed before: see IsOpen
	if shared {
		Must(t, unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEPORT, 1))
	}
	Must(t, unix.Bind(fd, local))
	return fd
}

// FreePort is a UDP port that no socket has.
func FreePort(t testing.TB) uint16 {
	t.Helper()
	c, err := net.ListenUDP("udp4", &net.UDPAddr{})
	Must(t, err)
	defer c.Close()
	return c.LocalAddr().(*net.UDPAddr).AddrPort().Port()
}

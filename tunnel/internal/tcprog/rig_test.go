package tcprog

import (
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"uvxlan/encap"
	"uvxlan/tunnel/device"
	"uvxlan/tunnel/internal/vnet"
	"uvxlan/tunnel/netnstest"
	"uvxlan/tunnel/offload"
	"uvxlan/tunnel/underlay"
)

// rig is a host with a device and an underlay, at which the programs are attached, and
// the far end of the underlay's link. What the test sends into the device comes out
// at the far end, or from the device's queue if the program leaves it.
type rig struct {
	*Programs
	tb        testing.TB
	host, far *netnstest.Namespace
	queue     device.Queue
	device    int // indexes
	under     int
	other     int
	settings  Settings
	peers     []Peer
	into      int // packet socket at the device
	wire      int // at the far end
	mac       encap.MAC
	farMAC    encap.MAC
	buf       []byte
}

// patience bounds what should take a moment, on a loaded machine.
const patience = 20 * time.Second

const (
	ownLink   = "under"
	gateway   = "10.66.0.254"
	gateway6  = "fd66::fe"
	rigDevice = "flannel.1"
)

func newRig(tb testing.TB) *rig {
	tb.Helper()
	r := &rig{tb: tb, host: netnstest.New(tb), far: netnstest.New(tb), buf: make([]byte, 1<<17)}
	for _, n := range []*netnstest.Namespace{r.host, r.far} {
		must(tb, n.Do(quiet))
	}
	for _, name := range []string{ownLink, "other"} {
		must(tb, r.host.LinkAdd(&netlink.Veth{
			LinkAttrs: netlink.LinkAttrs{Name: name}, PeerName: name, PeerNamespace: netlink.NsFd(r.far.FD()),
		}))
		up(tb, r.far, name)
	}
	for _, n := range []*netnstest.Namespace{r.host, r.far} { // full packets pass either family
		l, err := n.LinkByName(ownLink)
		must(tb, err)
		must(tb, n.LinkSetMTU(l, testMTU+encap.OverheadIPv6))
	}
	r.openDevice()
	ownEnd, farMAC := up(tb, r.far, ownLink)
	r.farMAC = farMAC
	r.under, r.mac = up(tb, r.host, ownLink)
	r.other, _ = up(tb, r.host, "other")
	r.device, _ = up(tb, r.host, rigDevice)
	r.route()
	r.into = socket(tb, r.host, r.device, 0)
	r.wire = socket(tb, r.far, ownEnd, unix.ETH_P_ALL)
	r.load()
	return r
}

// quiet has a namespace send nothing of its own accord, and forward.
func quiet() error {
	return sysctls(map[string]string{
		"ipv6/conf/all/disable_ipv6": "1", "ipv6/conf/default/disable_ipv6": "1", "ipv6/conf/all/forwarding": "1", "ipv4/ip_forward": "1",
	})
}

func sysctls(values map[string]string) error {
	var errs []error
	for name, value := range values {
		if err := os.WriteFile("/proc/sys/net/"+name, []byte(value), 0); !errors.Is(err, os.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

func up(tb testing.TB, n *netnstest.Namespace, name string) (index int, mac encap.MAC) {
	tb.Helper()
	l, err := n.LinkByName(name)
	must(tb, err)
	must(tb, n.LinkSetUp(l))
	if a := l.Attrs().HardwareAddr; len(a) == len(mac) {
		mac = encap.MAC(a)
	}
	return l.Attrs().Index, mac
}

func (r *rig) openDevice() {
	r.tb.Helper()
	must(r.tb, r.host.Do(func() error {
		d, err := device.Open(rigDevice, device.Config{Driver: device.DriverNative, Offloads: offload.All})
		if err == nil {
			r.queue = d.Queues()[0]
			r.tb.Cleanup(func() { d.Close() })
		}
		return err
	}))
	l, err := r.host.LinkByName(rigDevice)
	must(r.tb, err)
	must(r.tb, r.host.LinkSetMTU(l, 9000)) // anything may be sent into it
}

// route makes ways to the peers, good ones and others.
func (r *rig) route() {
	r.tb.Helper()
	for _, name := range []string{ownLink, "other"} { // without an address of its own making
		must(r.tb, r.host.Do(func() error { return sysctls(map[string]string{"ipv6/conf/" + name + "/addr_gen_mode": "1"}) }))
		must(r.tb, r.host.Do(func() error { return sysctls(map[string]string{"ipv6/conf/" + name + "/disable_ipv6": "0"}) }))
	}
	for _, at := range [][2]string{{ownLink, "10.66.0.1/24"}, {"other", "10.80.0.1/24"}, {ownLink, "fd66::1/64"}, {"other", "fd80::1/64"}} {
		l, err := r.host.LinkByName(at[0])
		must(r.tb, err)
		a, err := netlink.ParseAddr(at[1])
		must(r.tb, err)
		if a.IP.To4() == nil {
			a.Flags = unix.IFA_F_NODAD
		}
		must(r.tb, r.host.AddrAdd(l, a))
	}
	for _, neighbour := range []string{"10.66.0.2", "10.66.0.5", gateway, "fd66::6", gateway6} {
		must(r.tb, r.host.NeighAdd(&netlink.Neigh{
			LinkIndex: r.under, State: netlink.NUD_PERMANENT, IP: net.ParseIP(neighbour), HardwareAddr: r.farMAC[:],
		}))
	}
	for _, route := range []netlink.Route{
		{Dst: ipNet("10.77.0.0/24"), Gw: net.ParseIP(gateway)},
		{Dst: ipNet("10.78.0.0/24"), Gw: net.ParseIP(gateway), MTU: 1000, MTULock: true},
		{Dst: ipNet("10.79.0.0/24"), Type: unix.RTN_UNREACHABLE},
		{Dst: ipNet("fd77::/64"), Gw: net.ParseIP(gateway6)},
		{Dst: ipNet("a42:2::/64"), Gw: net.ParseIP(gateway6)},
		{Dst: ipNet("fd78::/64"), Gw: net.ParseIP(gateway6), MTU: 1400, MTULock: true},
		{Dst: ipNet("fd79::/64"), Type: unix.RTN_UNREACHABLE},
	} {
		must(r.tb, r.host.RouteAdd(&route))
	}
}

func ipNet(prefix string) *net.IPNet {
	p := netip.MustParsePrefix(prefix)
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// load loads and attaches the programs.
func (r *rig) load() {
	r.tb.Helper()
	r.Programs = load(r.tb)
	r.settings, r.peers = settings(), slices.Clone(testPeers)
	r.settings.Device, r.settings.Underlay = r.device, r.under
	for port := range uint16(61) {
		r.settings.IPv4.SourcePorts = append(r.settings.IPv4.SourcePorts, 33000+port)
		r.settings.IPv6.SourcePorts = append(r.settings.IPv6.SourcePorts, 36000+port)
	}
	r.configure()
	must(r.tb, r.Put(r.peers))
	must(r.tb, r.host.Do(func() error {
		for _, o := range []link.TCXOptions{
			{Interface: r.device, Program: r.Egress(), Attach: ebpf.AttachTCXEgress},
			{Interface: r.under, Program: r.Ingress(), Attach: ebpf.AttachTCXIngress},
		} {
			l, err := link.AttachTCX(o)
			if errors.Is(err, ebpf.ErrNotSupported) {
				r.tb.Skipf("needs tcx (Linux 6.6): %v", err)
			}
			if err != nil {
				return err
			}
			r.tb.Cleanup(func() { must(r.tb, l.Close()) })
		}
		return nil
	}))
}

func (r *rig) configure() {
	r.tb.Helper()
	must(r.tb, r.Configure(r.settings))
}

// socket is a packet socket that gets what comes in by an interface, of a protocol, 0
// for none, with a vnet header.
func socket(tb testing.TB, n *netnstest.Namespace, index int, protocol uint16) int {
	tb.Helper()
	fd := -1
	must(tb, n.Do(func() (err error) {
		if fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0); err != nil {
			return err
		}
		return errors.Join(
			unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 8<<20),
			unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_VNET_HDR, 1),
			unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_IGNORE_OUTGOING, 1),
			unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: order16(protocol), Ifindex: index}))
	}))
	tb.Cleanup(func() { unix.Close(fd) })
	return fd
}

// inject sends a packet by an interface, as its kernel would.
func (r *rig) inject(fd, index int, packet []byte, etherType uint16, o encap.Offload) {
	r.tb.Helper()
	var h vnet.Header
	h.Set(o)
	to := &unix.SockaddrLinklayer{Protocol: order16(etherType), Ifindex: index}
	if err := unix.Sendto(fd, slices.Concat(h[:], packet), 0, to); err != nil {
		r.tb.Fatalf("send %d bytes, %+v: %v", len(packet), o, err)
	}
}

// capture is what came out, and what is left undone of it.
type capture struct {
	packet  []byte // from the Ethernet header on if it is carried
	offload encap.Offload
	carried bool
}

// pass sends a packet into the device and returns what comes out. It is valid until
// the next call.
func (r *rig) pass(packet []byte, etherType uint16, o encap.Offload) capture {
	r.tb.Helper()
	r.inject(r.into, r.device, packet, etherType, o)
	for deadline := time.Now().Add(patience); ; {
		fds := []unix.PollFd{{Fd: int32(r.wire), Events: unix.POLLIN}, {Fd: int32(r.queue.FD()), Events: unix.POLLIN}}
		if _, err := unix.Poll(fds, 100); err != nil && !errors.Is(err, unix.EINTR) {
			r.tb.Fatal(err)
		}
		if c, ok := r.next(); ok {
			return c
		}
		if time.Now().After(deadline) {
			r.tb.Fatalf("gone (%s): % x", r.reasons(), packet[:min(len(packet), 80)])
		}
	}
}

// next is what has come out, if anything has.
func (r *rig) next() (c capture, ok bool) {
	r.tb.Helper()
	if c, ok = r.receive(r.wire); ok {
		c.carried = true
		return c, true
	}
	n, o, err := r.queue.Read(r.buf)
	if errors.Is(err, unix.EAGAIN) {
		return c, false
	}
	must(r.tb, err)
	return capture{r.buf[:n], o, false}, true
}

func (r *rig) receive(fd int) (c capture, ok bool) {
	r.tb.Helper()
	for {
		n, from, err := unix.Recvfrom(fd, r.buf, 0)
		if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EINTR) {
			return c, false
		}
		must(r.tb, err)
		if from.(*unix.SockaddrLinklayer).Pkttype == unix.PACKET_MULTICAST { // hosts' own
			continue
		}
		h := vnet.Header(r.buf)
		c.offload, c.packet = h.Offload(), r.buf[vnet.HeaderLen:n]
		return c, true
	}
}

// frameOf is what a worker sends for a packet, on the wire, with the IP ID 0; nil if
// it has no peer.
func (r *rig) frameOf(packet []byte) []byte {
	var dst netip.Addr
	var ecn uint8
	if p, err := encap.ParseIPv4(packet); err == nil {
		packet, dst, ecn = p, p.Dst(), p.ECN()
	} else if p, err := encap.ParseIPv6(packet); err == nil {
		packet, dst, ecn = p, p.Dst(), p.ECN()
	} else {
		return nil
	}
	peer, ok := peerOf(r.peers, dst)
	if !ok {
		return nil
	}
	h := encap.MakeFrameHeader(r.settings.VNI, peer.MAC, r.settings.MAC, etherTypeOf(packet))
	local, to, ports := testLocal, peer.Underlay.AsSlice(), r.settings.IPv4.SourcePorts
	if peer.Underlay.Is6() {
		local, ports = testLocal6, r.settings.IPv6.SourcePorts
	}
	b := datagram(local, r.farMAC, ecn, h, packet)
	copy(b[6:], r.mac[:])
	copy(b[udpAt(b)-len(to):], to)
	binary.BigEndian.PutUint16(b[udpAt(b):], ports[encap.FlowHash(packet)%uint32(len(ports))])
	finish(b, true)
	return b
}

// withoutID checks the checksum of an outer IP header and returns the frame with the
// ID, or the flow label, 0.
func (r *rig) withoutID(frame []byte) []byte {
	r.tb.Helper()
	frame = slices.Clone(frame)
	if udpAt(frame) == 14+encap.IPv6HeaderLen {
		frame[14+1] &= 0xf0
		frame[14+2], frame[14+3] = 0, 0
		return frame
	}
	ip, err := encap.ParseIPv4(frame[14:])
	must(r.tb, err)
	if !ip.HeaderChecksumOK() {
		r.tb.Fatalf("wrong checksum of the outer IP header: % x", frame)
	}
	ip.SetID(0)
	ip.UpdateChecksum()
	return frame
}

// done makes sure that nothing more has come out.
func (r *rig) done() {
	r.tb.Helper()
	if c, ok := r.next(); ok {
		r.tb.Errorf("one more came out, carried is %v: % x", c.carried, c.packet[:min(len(c.packet), 100)])
	}
}

// workersSockets are sockets as workers have them, whose source ports the programs take.
func (r *rig) workersSockets() (u *underlay.UDP) {
	r.tb.Helper()
	must(r.tb, r.host.Do(func() (err error) {
		u, err = underlay.Listen(underlay.Config{Address: testLocal, AddressV6: testLocal6, Port: testPort})
		return err
	}))
	r.tb.Cleanup(func() { must(r.tb, u.Close()) })
	for local, ports := range map[netip.Addr]*[]uint16{testLocal: &r.settings.IPv4.SourcePorts, testLocal6: &r.settings.IPv6.SourcePorts} {
		var err error
		*ports, err = u.SourcePorts(local)
		must(r.tb, err)
	}
	r.configure()
	return u
}

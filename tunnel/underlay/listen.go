package underlay

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"

	"uvxlan/tunnel/batch"
	"uvxlan/tunnel/internal/descriptor"
	"uvxlan/tunnel/internal/family"
	"uvxlan/tunnel/offload"
)

// Defaults of [Config].
const (
	// DefaultSourcePorts is the number of outer source ports.
	DefaultSourcePorts = 16
)

// ErrPortInUse says that another process, or a VXLAN device of the kernel,
// holds the VXLAN port.
var ErrPortInUse = errors.New("the port is in use")

// Config describes the sockets of [Listen].
type Config struct {
	// Address is the local address that datagrams are sent from and received
	// at; peers know us by it, or by what a NAT makes of it. Required.
	Address netip.Addr
	// AddressV6 is an IPv6 address beside an IPv4 Address, for those peers whose
	// own are IPv6; the zero Addr if there are none.
	AddressV6 netip.Addr
	// Port is the VXLAN port, ours and every peer's. Required.
	Port uint16
	// Workers is the number of receiving sockets, and so of workers, as many as
	// the device has queues; 0 means one.
	Workers int
	// SourcePorts is the number of sending sockets a worker has, each on another
	// port of the kernel's local range, the same for all workers; 0 means
	// DefaultSourcePorts. There are fewer where that range is used up, or so narrow
	// that they would take more than a quarter of it. Where there are none, everything
	// leaves from the VXLAN port.
	SourcePorts int
	// Offloads are those wanted of the sockets, offload.GSO and offload.GRO; what
	// the kernel refuses is left out.
	Offloads offload.Set
}

// UDP is the UDP sockets that VXLAN datagrams come and go by: for each
// worker one receiving socket of an SO_REUSEPORT group on the VXLAN port, and a
// pool of sending sockets, so that the inner flows spread over outer source
// ports (RFC 7348, section 5). IPv4 and IPv6 have sockets of their own: one for
// both couldn't be bound to an address of each, and IPv4 would pay for the
// mapping.
type UDP struct {
	offloads offload.Set
	sockets  [family.Count]*socketSet // nil for a family without an address
	locals   []netip.AddrPort
	fewPorts fewPorts
	probe    routeProbe
}

// socketSet is the sockets of one address family, by worker.
type socketSet struct {
	rx []int
	tx [][]int
}

// Listen opens the sockets in the calling thread's network namespace. The
// caller owns the result until it hands it to [tunnel.New]. A port that someone else
// holds is [ErrPortInUse].
func Listen(c Config) (*UDP, error) {
	c.Workers = max(c.Workers, 1)
	if c.SourcePorts <= 0 {
		c.SourcePorts = DefaultSourcePorts
	}
	u := &UDP{offloads: c.Offloads & (offload.GSO | offload.GRO), probe: newRouteProbe()}
	if err := u.open(c); err != nil {
		return nil, errors.Join(fmt.Errorf("open underlay: %w", err), u.Close())
	}
	return u, nil
}

func (u *UDP) open(c Config) error {
	locals := []netip.Addr{c.Address}
	if c.AddressV6.IsValid() {
		if !c.Address.Is4() || !c.AddressV6.Is6() {
			return fmt.Errorf("%s and %s: must be an IPv4 and an IPv6 address", c.Address, c.AddressV6)
		}
		locals = append(locals, c.AddressV6)
	}
	for _, local := range locals {
		if err := u.openFamily(c, local); err != nil {
			return err
		}
	}
	u.countPorts(c)
	return nil
}

// openFamily opens the sockets of the family that a local address has.
func (u *UDP) openFamily(c Config, address netip.Addr) error {
	local, f := netip.AddrPortFrom(address, c.Port), family.Of(address)
	if err := probePort(local); err != nil {
		return err
	}
	s := &socketSet{}
	u.sockets[f] = s
	u.locals = append(u.locals, local)
	for range c.Workers {
		fd, err := openReceiver(local)
		if err != nil {
			return err
		}
		s.rx = append(s.rx, fd)
		u.setGRO(fd)
	}
	u.tryGSO(f)
	if err := s.openSenders(c, address); err != nil {
		return err
	}
	u.probe.open(address)
	return nil
}

// setGRO turns UDP_GRO on if it is wanted, for good if the kernel refuses.
func (u *UDP) setGRO(fd int) {
	on := 0
	if u.offloads.Has(offload.GRO) {
		on = 1
	}
	if unix.SetsockoptInt(fd, unix.IPPROTO_UDP, unix.UDP_GRO, on) != nil {
		u.offloads &^= offload.GRO
	}
}

// tryGSO gives offload.GSO up where the kernel doesn't do it right.
func (u *UDP) tryGSO(f family.Family) {
	if u.offloads.Has(offload.GSO) && !segmentationWorks(func() error { return probeSegmentation(f) }) {
		u.offloads &^= offload.GSO
	}
}

// Workers is for how many workers there are sockets.
func (u *UDP) Workers() int {
	for _, s := range u.sockets {
		if s != nil {
			return len(s.rx)
		}
	}
	return 0
}

// Locals are the local addresses and the VXLAN port, at most one a family.
func (u *UDP) Locals() []netip.AddrPort { return slices.Clone(u.locals) }

// Descriptors are the sockets as [Adopt] takes them, one set a family. They stay
// the underlay's.
func (u *UDP) Descriptors() (all []Sockets) {
	for _, s := range u.sockets {
		if s != nil {
			all = append(all, s.descriptors())
		}
	}
	return all
}

// share lets others bind to the port of a socket and returns its address. The
// port must be chosen before, or the kernel may choose one that is shared.
func share(fd int) (netip.AddrPort, error) {
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEPORT, 1); err != nil {
		return netip.AddrPort{}, fmt.Errorf("set SO_REUSEPORT: %w", err)
	}
	return boundTo(fd)
}

// boundTo is the address that a socket is bound to.
func boundTo(fd int) (netip.AddrPort, error) {
	name, err := unix.Getsockname(fd)
	switch a := name.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrPortFrom(netip.AddrFrom4(a.Addr), uint16(a.Port)), nil
	case *unix.SockaddrInet6:
		return netip.AddrPortFrom(netip.AddrFrom16(a.Addr), uint16(a.Port)), nil
	}
	return netip.AddrPort{}, fmt.Errorf("read a socket's address: %w", err)
}

// probePort binds the port once without SO_REUSEPORT, which is refused when
// anybody holds it: a second process of the same user would otherwise join the
// group unnoticed and take its share of the datagrams.
func probePort(local netip.AddrPort) error {
	fd, err := udpSocket(local.Addr().Is6())
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return bind(fd, local)
}

func bind(fd int, local netip.AddrPort) error {
	err := unix.Bind(fd, unixSockaddr(local))
	if errors.Is(err, unix.EADDRINUSE) {
		return fmt.Errorf("bind %s: %w: %w", local, ErrPortInUse, err)
	}
	if err != nil {
		return fmt.Errorf("bind %s: %w", local, err)
	}
	return nil
}

func udpSocket(v6 bool) (int, error) {
	family := unix.AF_INET
	if v6 {
		family = unix.AF_INET6
	}
	fd, err := unix.Socket(family, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, unix.IPPROTO_UDP)
	if err != nil {
		return -1, fmt.Errorf("open UDP socket: %w", err)
	}
	if v6 {
		err = unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 1)
	}
	if err != nil {
		unix.Close(fd)
		return -1, fmt.Errorf("set IPV6_V6ONLY: %w", err)
	}
	return fd, nil
}

type sockopt struct {
	name       string
	level, opt int
	value      int
}

func newSocket(local netip.AddrPort, opts []sockopt) (int, error) {
	fd, err := udpSocket(local.Addr().Is6())
	if err != nil {
		return -1, err
	}
	err = setOptions(fd, opts)
	if err == nil {
		err = bind(fd, local)
	}
	if err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

func setOptions(fd int, opts []sockopt) error {
	for _, o := range opts {
		if err := unix.SetsockoptInt(fd, o.level, o.opt, o.value); err != nil {
			return fmt.Errorf("set %s: %w", o.name, err)
		}
	}
	return nil
}

var reusePort = sockopt{"SO_REUSEPORT", unix.SOL_SOCKET, unix.SO_REUSEPORT, 1}

// receiverOptions are those of a receiving socket, of whoever opened it. Without
// RECVERR what ICMP says of one peer's datagrams is no error of the socket.
func receiverOptions(f family.Family) []sockopt {
	if f == family.IPv6 {
		return []sockopt{
			{"IPV6_RECVTCLASS", unix.IPPROTO_IPV6, unix.IPV6_RECVTCLASS, 1},
			{"IPV6_RECVERR", unix.IPPROTO_IPV6, unix.IPV6_RECVERR, 0},
		}
	}
	return []sockopt{
		{"IP_RECVTOS", unix.IPPROTO_IP, unix.IP_RECVTOS, 1},
		{"IP_RECVERR", unix.IPPROTO_IP, unix.IP_RECVERR, 0},
	}
}

func openReceiver(local netip.AddrPort) (int, error) {
	fd, err := newSocket(local, append(receiverOptions(family.Of(local.Addr())), reusePort))
	if err == nil {
		_ = batch.SetReceiveBuffer(fd) // the kernel caps what it may not give
	}
	return fd, err
}

// senderOptions are those of a sending socket, of whoever opened it. DF stays
// unset and the TTL is 64, as kernel VXLAN has them.
func senderOptions(f family.Family) []sockopt {
	if f == family.IPv6 {
		return []sockopt{
			{"IPV6_MTU_DISCOVER", unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER, unix.IPV6_PMTUDISC_DONT},
			{"IPV6_UNICAST_HOPS", unix.IPPROTO_IPV6, unix.IPV6_UNICAST_HOPS, 64},
			{"IPV6_RECVERR", unix.IPPROTO_IPV6, unix.IPV6_RECVERR, 0},
		}
	}
	return []sockopt{
		{"IP_MTU_DISCOVER", unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_DONT},
		{"IP_TTL", unix.IPPROTO_IP, unix.IP_TTL, 64},
		{"IP_RECVERR", unix.IPPROTO_IP, unix.IP_RECVERR, 0},
	}
}

// openSender opens a socket that only sends.
func openSender(local netip.AddrPort, shared bool) (int, error) {
	opts := senderOptions(family.Of(local.Addr()))
	if shared {
		opts = append(opts, reusePort)
	}
	fd, err := newSocket(local, opts)
	if err != nil {
		return -1, err
	}
	_ = batch.SetSendBuffer(fd)
	if err := refuseAll(fd); err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

// refuseAll has the kernel drop what anybody sends to a sending socket's port,
// rather than keep it in a buffer that nobody reads.
func refuseAll(fd int) error {
	return attachFilter(fd, []unix.SockFilter{{Code: unix.BPF_RET | unix.BPF_K, K: 0}})
}

func attachFilter(fd int, filter []unix.SockFilter) error {
	program := &unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	if err := unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, program); err != nil {
		return fmt.Errorf("attach socket filter: %w", err)
	}
	return nil
}

// Offloads are those of the wanted ones that work.
func (u *UDP) Offloads() offload.Set { return u.offloads }

// Close closes every socket.
func (u *UDP) Close() error {
	errs := []error{u.probe.close()}
	for _, s := range u.sockets {
		if s != nil {
			errs = append(errs, s.close())
		}
	}
	u.sockets = [family.Count]*socketSet{}
	return errors.Join(errs...)
}

func (s *socketSet) close() error {
	fds := slices.Concat(append([][]int{s.rx}, s.tx...)...)
	slices.Sort(fds) // an adopted socket may do for both ways
	return descriptor.CloseAll(slices.Compact(fds))
}

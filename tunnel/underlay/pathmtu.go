package underlay

import (
	"errors"
	"net/netip"
	"sync"

	"golang.org/x/sys/unix"

	"uvxlan/encap"
	"uvxlan/tunnel/internal/descriptor"
	"uvxlan/tunnel/internal/family"
)

// routeProbe asks the kernel for the MTU of paths. It has a socket a family that is
// connected to one host after the other and never sends: what the kernel then says
// (IP_MTU, ip(7)) is what it holds our datagrams against, be it a route's MTU, one
// that ICMP has told and that expires, an interface's, or what IPsec leaves. That
// takes no privilege, and unlike the routes' events it tells of expiry as well.
type routeProbe struct {
	mu  sync.Mutex // guards the rest
	fds [family.Count]int
}

func newRouteProbe() routeProbe { return routeProbe{fds: [family.Count]int{-1, -1}} }

// open opens the socket for the family of a local address. Without it, as where no
// port is left, the family's paths aren't known.
func (p *routeProbe) open(local netip.Addr) {
	fd, err := newSocket(netip.AddrPortFrom(local, 0), nil)
	if err != nil {
		return
	}
	if refuseAll(fd) != nil {
		unix.Close(fd)
		return
	}
	p.fds[family.Of(local)] = fd
}

// adopt is open beside a socket that somebody else has opened. It does nothing
// where that is of another network namespace than the calling thread's, whose routes
// say nothing about it.
func (p *routeProbe) adopt(local netip.Addr, beside int) {
	p.open(local)
	fd := &p.fds[family.Of(local)]
	if *fd < 0 {
		return // the address isn't here
	}
	ours, unknown := unix.GetsockoptUint64(*fd, unix.SOL_SOCKET, unix.SO_NETNS_COOKIE)
	if unknown != nil {
		return // before Linux 5.14; that the address is here must do
	}
	if theirs, err := unix.GetsockoptUint64(beside, unix.SOL_SOCKET, unix.SO_NETNS_COOKIE); err != nil || ours != theirs {
		unix.Close(*fd)
		*fd = -1
	}
}

// ask returns the MTU of the path to a host and a port, 0 if it isn't known.
func (p *routeProbe) ask(to netip.AddrPort) encap.OuterMTU {
	p.mu.Lock()
	defer p.mu.Unlock()
	fd := p.fds[family.Of(to.Addr())]
	if fd < 0 || unix.Connect(fd, unixSockaddr(to)) != nil {
		return 0
	}
	level, name := unix.IPPROTO_IP, unix.IP_MTU
	if to.Addr().Is6() {
		level, name = unix.IPPROTO_IPV6, unix.IPV6_MTU
	}
	return encap.OuterMTU(max(option(fd, level, name), 0))
}

func (p *routeProbe) close() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	var errs []error
	for f, fd := range p.fds {
		if fd >= 0 {
			errs = append(errs, descriptor.CloseAll([]int{fd}))
		}
		p.fds[f] = -1
	}
	return errors.Join(errs...)
}

// PathMTU asks the kernel for the longest IP packet that the path to a host takes
// in one piece, 0 if it isn't known: nothing leads there, or the sockets were
// adopted from another network namespace than that of Adopt's caller. It takes two
// short system calls. It may be called from any goroutine, also after Close.
func (u *UDP) PathMTU(to netip.Addr) encap.OuterMTU {
	return u.probe.ask(netip.AddrPortFrom(to, u.locals[0].Port()))
}

// Release closes what isn't among the Descriptors, which are the caller's from here
// on. Close is for the other case.
func (u *UDP) Release() error { return u.probe.close() }

package underlay

import (
	"encoding/binary"
	"net/netip"

	"golang.org/x/sys/unix"
)

// sockaddr is a struct sockaddr_in or sockaddr_in6 in the form the kernel
// takes and gives.
type sockaddr struct {
	Raw [unix.SizeofSockaddrInet6]byte
	Len uint32
}

// addrPort is the address and port, the zero value for another family.
func (s *sockaddr) addrPort() netip.AddrPort {
	port := binary.BigEndian.Uint16(s.Raw[2:])
	switch binary.NativeEndian.Uint16(s.Raw[:]) {
	case unix.AF_INET:
		return netip.AddrPortFrom(netip.AddrFrom4([4]byte(s.Raw[4:8])), port)
	case unix.AF_INET6:
		return netip.AddrPortFrom(netip.AddrFrom16([16]byte(s.Raw[8:24])).Unmap(), port)
	}
	return netip.AddrPort{}
}

func unixSockaddr(a netip.AddrPort) unix.Sockaddr {
	if a.Addr().Is4() {
		return &unix.SockaddrInet4{Port: int(a.Port()), Addr: a.Addr().As4()}
	}
	return &unix.SockaddrInet6{Port: int(a.Port()), Addr: a.Addr().As16()}
}

package lab

import (
	"encoding/binary"
	"errors"
	"net/netip"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

const ethernetHeader = 14

// receive reads one frame into buf; its Frame lies there.
func receive(raw syscall.RawConn, buf []byte) (Packet, error) {
	var (
		n    int
		from unix.Sockaddr
		err  error
	)
	readErr := raw.Read(func(fd uintptr) bool {
		n, from, err = unix.Recvfrom(int(fd), buf, unix.MSG_TRUNC)
		return !errors.Is(err, unix.EAGAIN)
	})
	if readErr != nil {
		return Packet{}, os.ErrClosed // without deadlines Read has no other failure
	}
	if err != nil {
		return Packet{}, os.NewSyscallError("recvfrom", err)
	}
	link, ok := from.(*unix.SockaddrLinklayer)
	return Packet{
		Frame:    buf[:min(n, snapLength)],
		Length:   n,
		Outgoing: ok && link.Pkttype == unix.PACKET_OUTGOING,
	}, nil
}

// IPv4 returns the packet's IPv4 addresses and protocol, ok false if it is
// something else.
func (p Packet) IPv4() (src, dst netip.Addr, protocol uint8, ok bool) {
	b := p.network()
	if b == nil {
		return src, dst, 0, false
	}
	return netip.AddrFrom4([4]byte(b[12:])), netip.AddrFrom4([4]byte(b[16:])), b[9], true
}

// IPv6 returns the packet's IPv6 addresses and the number of the header that
// follows, ok false if it is something else.
func (p Packet) IPv6() (src, dst netip.Addr, next uint8, ok bool) {
	const smallest = 40
	if len(p.Frame) < ethernetHeader+smallest || binary.BigEndian.Uint16(p.Frame[12:]) != unix.ETH_P_IPV6 {
		return src, dst, 0, false
	}
	b := p.Frame[ethernetHeader:]
	return netip.AddrFrom16([16]byte(b[8:])), netip.AddrFrom16([16]byte(b[24:])), b[6], true
}

// IsUDP reports whether the packet is an IPv4 UDP datagram to the port, or its
// first fragment.
func (p Packet) IsUDP(port uint16) bool {
	const fragmentOffset = 0x1fff
	b := p.network()
	if b == nil || b[9] != unix.IPPROTO_UDP || binary.BigEndian.Uint16(b[6:])&fragmentOffset != 0 {
		return false
	}
	header := int(b[0]&0xf) * 4
	return len(b) >= header+4 && binary.BigEndian.Uint16(b[header+2:]) == port
}

// network returns the packet from its IPv4 header on, nil if it has none.
func (p Packet) network() []byte {
	const smallest = 20
	if len(p.Frame) < ethernetHeader+smallest || binary.BigEndian.Uint16(p.Frame[12:]) != unix.ETH_P_IP {
		return nil
	}
	b := p.Frame[ethernetHeader:]
	if b[0]>>4 != 4 {
		return nil
	}
	return b
}

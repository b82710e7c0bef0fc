package doctor

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"uvxlan/encap"
)

// sender sends packets that the host's own way to the overlay would not: VXLAN frames
// from a port of its own, and ICMP messages from any of the host's addresses. Who
// answers them is seen by the tap. Its methods may be called from any goroutine.
type sender struct {
	// immutable
	framed, unsummed *net.UDPConn // with and without a UDP checksum
	plain            map[netip.Addr]*net.IPConn
}

// openSender sends frames from local, the underlay's IPv4 address, and messages from
// each of sources.
func openSender(local netip.Addr, sources ...netip.Addr) (*sender, error) {
	s := &sender{plain: map[netip.Addr]*net.IPConn{}}
	err := s.open(local, sources)
	if err != nil {
		return nil, errors.Join(err, s.close())
	}
	return s, nil
}

func (s *sender) open(local netip.Addr, sources []netip.Addr) (err error) {
	at := net.UDPAddrFromAddrPort(netip.AddrPortFrom(local, 0))
	if s.framed, err = net.ListenUDP("udp4", at); err != nil {
		return err
	}
	if s.unsummed, err = net.ListenUDP("udp4", at); err != nil {
		return err
	}
	if err := setOption(s.unsummed, unix.SOL_SOCKET, unix.SO_NO_CHECK, 1); err != nil {
		return fmt.Errorf("leave checksums away: %w", err)
	}
	for _, a := range sources {
		if s.plain[a], err = net.ListenIP("ip4:icmp", &net.IPAddr{IP: a.AsSlice()}); err != nil {
			delete(s.plain, a)
			return err
		}
		// What comes is seen by the tap. These sockets would get all that comes.
		_ = setOption(s.plain[a], unix.SOL_SOCKET, unix.SO_RCVBUF, 0)
	}
	return nil
}

func (s *sender) close() error {
	var errs []error
	for _, c := range []*net.UDPConn{s.framed, s.unsummed} {
		if c != nil {
			errs = append(errs, c.Close())
		}
	}
	for _, c := range s.plain {
		errs = append(errs, c.Close())
	}
	return errors.Join(errs...)
}

func setOption(c syscall.Conn, level, name, value int) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	var optionErr error
	if err := raw.Control(func(fd uintptr) { optionErr = unix.SetsockoptInt(int(fd), level, name, value) }); err != nil {
		return err
	}
	return optionErr
}

// overlayEcho is an echo request in a VXLAN frame.
type overlayEcho struct {
	to       netip.AddrPort // the peer's underlay address
	vni      encap.VNI
	mac      encap.MAC // the peer's VTEP's
	src, dst netip.Addr
	id, seq  uint16
	size     int // of the inner packet, in bytes; 0 means the least
}

const leastEcho = encap.IPv4HeaderLen + 8 + 8

// frame is the VXLAN frame.
func (e overlayEcho) frame() []byte {
	size := max(e.size, leastEcho)
	from := encap.MAC{2, 0x75, 0x76, 0x78, 0x6c, 0x6e} // nobody answers by it
	header := encap.MakeFrameHeader(e.vni, e.mac, from, encap.EtherTypeIPv4)
	b := slices.Concat(header[:], make([]byte, size))
	ip := encap.IPv4(b[len(header):])
	ip[0], ip[9] = 4<<4|encap.IPv4HeaderLen/4, unix.IPPROTO_ICMP
	ip.SetTotalLen(size)
	ip.SetTTL(64)
	src, dst := e.src.As4(), e.dst.As4()
	copy(ip[12:], src[:])
	copy(ip[16:], dst[:])
	ip.UpdateChecksum()
	putEcho(ip.Payload(), echoRequest, e.id, e.seq)
	return b
}

// question is a frame that asks by ARP for the peer's VTEP (RFC 826), from ours: no
// firewall has a say in the answer.
func (e overlayEcho) question(ours encap.MAC) []byte {
	header := encap.MakeFrameHeader(e.vni, e.mac, ours, encap.EtherTypeARP)
	src, dst, unknown := e.src.As4(), e.dst.As4(), encap.MAC{}
	ethernet := []byte{0, 1, 8, 0, 6, 4, 0, 1} // and IPv4, a request
	return slices.Concat(header[:], ethernet, ours[:], src[:], unknown[:], dst[:])
}

// ask sends a question.
func (s *sender) ask(e overlayEcho, ours encap.MAC) error {
	_, err := s.framed.WriteToUDPAddrPort(e.question(ours), e.to)
	return err
}

// putEcho writes an ICMP message of the echo's form.
func putEcho(b []byte, kind byte, id, seq uint16) {
	clear(b)
	b[0] = kind
	binary.BigEndian.PutUint16(b[4:], id)
	binary.BigEndian.PutUint16(b[6:], seq)
	binary.BigEndian.PutUint16(b[2:], encap.Checksum(b, 0))
}

// sendFrame sends a frame of our own making, without a UDP checksum if summed isn't
// set.
func (s *sender) sendFrame(e overlayEcho, summed bool) error {
	conn := s.framed
	if !summed {
		conn = s.unsummed
	}
	_, err := conn.WriteToUDPAddrPort(e.frame(), e.to)
	return err
}

// sendTogether sends n frames, with sequence numbers that count on, as one message
// that the kernel or the interface divides (udp(7), UDP_SEGMENT).
func (s *sender) sendTogether(e overlayEcho, n int) error {
	var all []byte
	for range n {
		all = append(all, e.frame()...)
		e.seq++
	}
	size := uint16(len(all) / n)
	control := make([]byte, unix.CmsgSpace(2))
	header := (*unix.Cmsghdr)(unsafe.Pointer(&control[0]))
	header.Level, header.Type = unix.SOL_UDP, unix.UDP_SEGMENT
	header.SetLen(unix.CmsgLen(2))
	binary.NativeEndian.PutUint16(control[unix.CmsgLen(0):], size)
	_, _, err := s.framed.WriteMsgUDPAddrPort(all, control, e.to)
	return err
}

// sendMessage sends an ICMP message of the echo's form beside the overlay.
func (s *sender) sendMessage(src, dst netip.Addr, kind byte, id, seq uint16) error {
	conn := s.plain[src]
	if conn == nil {
		return fmt.Errorf("send from %s: %w", src, os.ErrInvalid)
	}
	b := make([]byte, 8+12) // as long as a timestamp request
	putEcho(b, kind, id, seq)
	_, err := conn.WriteToIP(b, &net.IPAddr{IP: dst.AsSlice()})
	return err
}

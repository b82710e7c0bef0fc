package probe

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// socket sends echo requests of one ID and receives what answers them. Sending and
// receiving may go on at once, each by one goroutine.
//
// A raw socket gets every ICMP message to the host, of which the filter leaves our
// own. A ping socket gets replies to its ID only, which the kernel chooses; errors
// come by its error queue (ip(7), IP_RECVERR).
type socket struct {
	// immutable
	format *format
	file   *os.File
	conn   syscall.RawConn
	raw    bool
	id     uint16

	fragments trool // what setDontFragment has set; the sender's
	oob       [256]byte
}

// trool is a bool that may not be known.
type trool uint8

const (
	unknown trool = iota
	allowed
	forbidden
)

// bufferSize is for bursts: of requests, which the kernel keeps while it asks for a
// neighbour's MAC, and of their replies.
const bufferSize = 1 << 20

// openSocket opens a raw socket or, without the privilege, a ping socket.
func openSocket(c Config) (*socket, error) {
	s, err := open(c, unix.SOCK_RAW)
	if errors.Is(err, unix.EPERM) || errors.Is(err, unix.EACCES) {
		if ping, pingErr := open(c, unix.SOCK_DGRAM); pingErr == nil {
			return ping, nil
		}
	}
	return s, err
}

func open(c Config, kind int) (*socket, error) {
	s := &socket{format: formatOf(c.Source), raw: kind == unix.SOCK_RAW}
	fd, err := unix.Socket(s.format.family, kind|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, s.format.protocol)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	if err := s.set(fd, c); err != nil {
		return nil, errors.Join(err, unix.Close(fd))
	}
	s.file = os.NewFile(uintptr(fd), "icmp")
	if s.conn, err = s.file.SyscallConn(); err != nil {
		return nil, errors.Join(err, s.file.Close())
	}
	return s, nil
}

func (s *socket) set(fd int, c Config) error {
	if err := s.choose(fd, c.Source); err != nil {
		return err
	}
	// Smaller buffers do, too.
	_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUF, bufferSize)
	_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, bufferSize)
	if c.KernelTime {
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TIMESTAMPNS, 1); err != nil {
			return os.NewSyscallError("setsockopt SO_TIMESTAMPNS", err)
		}
	}
	return nil
}

// choose gives the socket its address and its ID, and has it receive what answers
// that.
func (s *socket) choose(fd int, source netip.Addr) error {
	if s.raw {
		s.id = uint16(rand.Uint32())
		filter := s.format.filter(s.id)
		program := &unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
		if err := unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, program); err != nil {
			return fmt.Errorf("attach socket filter: %w", err)
		}
		return os.NewSyscallError("bind", unix.Bind(fd, sockaddr(source)))
	}
	if err := unix.Bind(fd, sockaddr(source)); err != nil {
		return os.NewSyscallError("bind", err)
	}
	local, err := unix.Getsockname(fd)
	if err != nil {
		return os.NewSyscallError("getsockname", err)
	}
	level, option := unix.SOL_IP, unix.IP_RECVERR
	switch local := local.(type) {
	case *unix.SockaddrInet4:
		s.id = uint16(local.Port)
	case *unix.SockaddrInet6:
		s.id = uint16(local.Port)
		level, option = unix.SOL_IPV6, unix.IPV6_RECVERR
	}
	return os.NewSyscallError("setsockopt IP_RECVERR", unix.SetsockoptInt(fd, level, option, 1))
}

func sockaddr(a netip.Addr) unix.Sockaddr {
	if a.Is4() {
		return &unix.SockaddrInet4{Addr: a.As4()}
	}
	return &unix.SockaddrInet6{Addr: a.As16()}
}

func addrOf(a unix.Sockaddr) netip.Addr {
	switch a := a.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrFrom4(a.Addr)
	case *unix.SockaddrInet6:
		return netip.AddrFrom16(a.Addr)
	}
	return netip.Addr{}
}

// setDontFragment is for the packets that are sent from here on (ip(7),
// IP_MTU_DISCOVER; RFC 3542, section 11.2).
func (s *socket) setDontFragment(dont bool) error {
	want, mode, number := allowed, unix.IP_PMTUDISC_DONT, 0
	if dont {
		want, mode, number = forbidden, unix.IP_PMTUDISC_PROBE, 1
	}
	if s.fragments == want {
		return nil
	}
	s.fragments = unknown
	err := s.control(func(fd int) error {
		if s.format == formatV4 {
			return unix.SetsockoptInt(fd, unix.SOL_IP, unix.IP_MTU_DISCOVER, mode)
		}
		return errors.Join(unix.SetsockoptInt(fd, unix.SOL_IPV6, unix.IPV6_MTU_DISCOVER, mode),
			unix.SetsockoptInt(fd, unix.SOL_IPV6, unix.IPV6_DONTFRAG, number))
	})
	if err != nil {
		return fmt.Errorf("set don't fragment: %w", err)
	}
	s.fragments = want
	return nil
}

// control runs f, unless the socket is closed.
func (s *socket) control(f func(fd int) error) error {
	var err error
	if s.conn.Control(func(fd uintptr) { err = f(int(fd)) }) != nil {
		return net.ErrClosed
	}
	return err
}

// send doesn't wait for room. A ping socket may tell at first of an error to an
// earlier request, which is in its error queue as well.
func (s *socket) send(packet []byte, to netip.Addr) error {
	sa := sockaddr(to)
	try := func(fd int) error { return unix.Sendto(fd, packet, unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL, sa) }
	err := s.control(try)
	if err != nil && !s.raw {
		err = s.control(try)
	}
	return os.NewSyscallError("sendto", err)
}

// errAgain is for what was received that is no answer.
var errAgain = errors.New("not an answer")

// receive waits for an answer, which lies in buf. Any error but net.ErrClosed is of
// something that is no answer.
func (s *socket) receive(buf []byte) (message, error) {
	var m message
	var err error
	readErr := s.conn.Read(func(fd uintptr) bool {
		if !s.raw {
			if m, err = s.receiveError(int(fd), buf); !errors.Is(err, unix.EAGAIN) {
				return true
			}
		}
		m, err = s.receiveMessage(int(fd), buf)
		return !errors.Is(err, unix.EAGAIN)
	})
	if readErr != nil {
		return message{}, net.ErrClosed
	}
	return m, err
}

func (s *socket) receiveMessage(fd int, buf []byte) (message, error) {
	n, oobn, _, from, err := unix.Recvmsg(fd, buf, s.oob[:], unix.MSG_DONTWAIT)
	if err != nil {
		return message{}, err
	}
	b := buf[:n]
	if s.raw && s.format == formatV4 {
		if n < s.format.headerLen {
			return message{}, errAgain
		}
		b = b[min(int(b[0]&0xf)*4, n):]
	}
	m, ok := s.format.parse(b, addrOf(from), s.id)
	if !ok {
		return message{}, errAgain
	}
	m.read, m.kernel = time.Now(), timeOf(s.oob[:oobn])
	return m, nil
}

// timeOf finds the kernel's time in a control message (socket(7), SO_TIMESTAMPNS).
func timeOf(oob []byte) time.Time {
	var t unix.Timespec
	for _, c := range controls(oob) {
		if c.Header.Level == unix.SOL_SOCKET && c.Header.Type == unix.SCM_TIMESTAMPNS && len(c.Data) >= int(unsafe.Sizeof(t)) {
			copy(unsafe.Slice((*byte)(unsafe.Pointer(&t)), unsafe.Sizeof(t)), c.Data)
			return time.Unix(t.Unix())
		}
	}
	return time.Time{}
}

func controls(oob []byte) []unix.SocketControlMessage {
	all, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil
	}
	return all
}

// receiveError reads the error queue of a ping socket, where the quoted packet begins
// with its ICMP header.
func (s *socket) receiveError(fd int, buf []byte) (message, error) {
	n, oobn, _, to, err := unix.Recvmsg(fd, buf, s.oob[:], unix.MSG_DONTWAIT|unix.MSG_ERRQUEUE)
	if err != nil {
		return message{}, err
	}
	quoted := buf[:n]
	if n < echoHeaderLen || quoted[0] != s.format.echo {
		return message{}, errAgain
	}
	for _, c := range controls(s.oob[:oobn]) {
		e := icmpErrorOf(c)
		if e == nil {
			continue
		}
		return message{from: e.From, seq: binary.BigEndian.Uint16(quoted[6:]), to: addrOf(to), failure: e}, nil
	}
	return message{}, errAgain
}

// icmpErrorOf reads a control message of an error queue; nil is for all but ICMP
// errors.
func icmpErrorOf(c unix.SocketControlMessage) *ICMPError {
	const (
		originAt, typeAt, codeAt, infoAt = 4, 5, 6, 8 // struct sock_extended_err
		errLen                           = 16
	)
	isError := c.Header.Level == unix.SOL_IP && c.Header.Type == unix.IP_RECVERR ||
		c.Header.Level == unix.SOL_IPV6 && c.Header.Type == unix.IPV6_RECVERR
	if !isError || len(c.Data) < errLen {
		return nil
	}
	if origin := c.Data[originAt]; origin != unix.SO_EE_ORIGIN_ICMP && origin != unix.SO_EE_ORIGIN_ICMP6 {
		return nil
	}
	failure := &ICMPError{From: offender(c.Data[errLen:]), Type: c.Data[typeAt], Code: c.Data[codeAt]}
	failure.setMTU(binary.NativeEndian.Uint32(c.Data[infoAt:]))
	return failure
}

// offender is who sent an ICMP error: the address that follows it in the message.
func offender(b []byte) netip.Addr {
	switch {
	case len(b) >= unix.SizeofSockaddrInet6 && binary.NativeEndian.Uint16(b) == unix.AF_INET6:
		return netip.AddrFrom16([16]byte(b[8:]))
	case len(b) >= unix.SizeofSockaddrInet4 && binary.NativeEndian.Uint16(b) == unix.AF_INET:
		return netip.AddrFrom4([4]byte(b[4:]))
	}
	return netip.Addr{}
}

func (s *socket) close() error {
	if err := s.file.Close(); err != nil {
		return fmt.Errorf("close ICMP socket: %w", err)
	}
	return nil
}

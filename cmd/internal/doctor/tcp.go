package doctor

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"

	"uvxlan/encap"
)

// A TCP connection to a port where nobody listens is refused by a host that is well:
// that takes one segment each way, whose checksums are the business of the kernels
// and their devices. The same segment with a checksum of our own making tells whether
// it is they who spoil it.

// closedPort is one where hardly anybody listens: of tcpmux (RFC 1078).
const closedPort = 1

// connect begins a TCP connection. The answer may be either: that nobody listens, or
// that somebody does.
func connect(ctx context.Context, from, to netip.Addr, timeout time.Duration) (answered bool) {
	d := net.Dialer{Timeout: timeout, LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(from, 0))}
	conn, err := d.DialContext(ctx, "tcp", netip.AddrPortFrom(to, closedPort).String())
	if err == nil {
		conn.Close()
		return true
	}
	return isRefused(err)
}

// isRefused tells whether the other host says that nobody listens.
func isRefused(err error) bool { return errors.Is(err, unix.ECONNREFUSED) }

// segment is what came back to a TCP segment of our own making.
type segment struct {
	answered bool
	// damaged says that the answer's checksum is wrong.
	damaged bool
}

// sendSYN sends a SYN with a checksum of our own making, IPv4 only.
func sendSYN(from, to netip.Addr, timeout time.Duration) (s segment, err error) {
	// The port is reserved, so that nobody else gets the answer.
	reserved, err := net.ListenTCP("tcp4", net.TCPAddrFromAddrPort(netip.AddrPortFrom(from, 0)))
	if err != nil {
		return s, err
	}
	defer reserved.Close()
	port := uint16(reserved.Addr().(*net.TCPAddr).Port)
	conn, err := net.DialIP("ip4:tcp", &net.IPAddr{IP: from.AsSlice()}, &net.IPAddr{IP: to.AsSlice()})
	if err != nil {
		return s, err
	}
	defer conn.Close()
	if err := onlyPort(conn, port); err != nil {
		return s, err
	}
	const headerLen, syn = 20, 2
	b := make([]byte, headerLen)
	binary.BigEndian.PutUint16(b, port)
	binary.BigEndian.PutUint16(b[2:], closedPort)
	binary.BigEndian.PutUint32(b[4:], uint32(time.Now().UnixNano()))
	b[12], b[13] = headerLen/4<<4, syn
	binary.BigEndian.PutUint16(b[14:], 1024) // the window
	binary.BigEndian.PutUint16(b[16:], encap.Checksum(b, encap.PseudoHeaderSum(from, to, unix.IPPROTO_TCP, len(b))))
	if _, err := conn.Write(b); err != nil {
		return s, err
	}
	if err := conn.SetReadDeadline(time.Now().Add(timeout)); err != nil {
		return s, err
	}
	buf := make([]byte, 1500)
	n, _, err := conn.ReadFrom(buf)  // without the IP header
	if err != nil || n < headerLen { // no answer tells something too
		return s, nil
	}
	sum := encap.Checksum(buf[:n], encap.PseudoHeaderSum(to, from, unix.IPPROTO_TCP, n))
	return segment{answered: true, damaged: sum != 0}, nil
}

// onlyPort has a raw TCP socket get only what comes to a port. An IPv4 packet begins
// with its header.
func onlyPort(conn *net.IPConn, port uint16) error {
	program := []unix.SockFilter{
		{Code: unix.BPF_LDX | unix.BPF_B | unix.BPF_MSH},
		{Code: unix.BPF_LD | unix.BPF_H | unix.BPF_IND, K: 2},
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: uint32(port), Jf: 1},
		{Code: unix.BPF_RET | unix.BPF_K, K: 1<<32 - 1},
		{Code: unix.BPF_RET | unix.BPF_K},
	}
	raw, err := conn.SyscallConn()
	if err != nil {
		return err
	}
	var filterErr error
	err = raw.Control(func(fd uintptr) {
		filterErr = unix.SetsockoptSockFprog(int(fd), unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &unix.SockFprog{Len: uint16(len(program)), Filter: &program[0]})
	})
	if err = errors.Join(err, filterErr); err != nil {
		return fmt.Errorf("filter packets: %w", err)
	}
	return nil
}

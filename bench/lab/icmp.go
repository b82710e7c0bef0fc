package lab

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"

	"golang.org/x/sys/unix"
)

// ICMP types and codes of RFC 792 and RFC 1191.
const (
	echoReply         = 0
	unreachable       = 3
	echoRequest       = 8
	codeFragmentation = 4
	icmpHeader        = 8
)

// dontFragment makes the kernel refuse packets that are too large for the path.
func dontFragment(conn *net.IPConn) error {
	raw, err := conn.SyscallConn()
	if err != nil {
		return err
	}
	var optErr error
	err = raw.Control(func(fd uintptr) {
		optErr = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_DO)
	})
	return errors.Join(err, os.NewSyscallError("setsockopt", optErr))
}

// echo makes an echo request; id fills its identifier and sequence number.
func echo(payload int, id uint32) []byte {
	b := make([]byte, icmpHeader+payload)
	b[0] = echoRequest
	binary.BigEndian.PutUint32(b[4:], id)
	for i := range b[icmpHeader:] {
		b[icmpHeader+i] = byte(i)
	}
	binary.BigEndian.PutUint16(b[2:], internetChecksum(b))
	return b
}

// answers reports whether the ICMP message settles the request: nil for the
// reply, an error for a destination unreachable message about it.
func answers(message, request []byte) (done bool, err error) {
	if len(message) < icmpHeader {
		return false, nil
	}
	switch message[0] {
	case echoReply:
		if !bytes.Equal(message[4:8], request[4:8]) {
			return false, nil
		}
		if !bytes.Equal(message[icmpHeader:], request[icmpHeader:]) {
			return true, errors.New("reply differs from the request")
		}
		return true, nil
	case unreachable:
		return quotes(message[icmpHeader:], request), unreachableError(message[1])
	}
	return false, nil
}

func unreachableError(code byte) error {
	if code == codeFragmentation {
		return unix.EMSGSIZE
	}
	return fmt.Errorf("%w (code %d)", ErrUnreachable, code)
}

// quotes reports whether an ICMP error's body is the begin of the request.
func quotes(body, request []byte) bool {
	if len(body) == 0 {
		return false
	}
	header := int(body[0]&0xf) * 4
	return len(body) >= header+icmpHeader &&
		body[header] == echoRequest && bytes.Equal(body[header+4:header+8], request[4:8])
}

// internetChecksum is that of RFC 1071.
func internetChecksum(b []byte) uint16 {
	var sum uint32
	for ; len(b) >= 2; b = b[2:] {
		sum += uint32(binary.BigEndian.Uint16(b))
	}
	if len(b) == 1 {
		sum += uint32(b[0]) << 8
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}

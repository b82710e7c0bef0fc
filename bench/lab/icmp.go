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

const icmpHeader = 8

// icmp is what differs between ICMP and ICMPv6.
type icmp struct {
	network   string // to listen on
	ipHeader  int
	request   byte // types
	reply     byte
	refused   byte
	tooBig    [2]byte // type and code
	fragments [3]int  // level, option and value that forbid them
}

// The types and codes are those of RFC 792 and RFC 1191, and of RFC 4443.
var (
	icmp4 = icmp{"ip4:icmp", 20, 8, 0, 3, [2]byte{3, 4}, [3]int{unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_DO}}
	icmp6 = icmp{"ip6:ipv6-icmp", 40, 128, 129, 1, [2]byte{2, 0}, [3]int{unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER, unix.IPV6_PMTUDISC_DO}}
)

// dontFragment makes the kernel refuse packets that are too large for the path.
func (m *icmp) dontFragment(conn *net.IPConn) error {
	raw, err := conn.SyscallConn()
	if err != nil {
		return err
	}
	var optErr error
	err = raw.Control(func(fd uintptr) {
		optErr = unix.SetsockoptInt(int(fd), m.fragments[0], m.fragments[1], m.fragments[2])
	})
	return errors.Join(err, os.NewSyscallError("setsockopt", optErr))
}

// echo makes an echo request; id fills its identifier and sequence number. The
// checksum is ICMP's; the kernel fills in that of ICMPv6.
func (m *icmp) echo(payload int, id uint32) []byte {
	b := make([]byte, icmpHeader+payload)
	b[0] = m.request
	binary.BigEndian.PutUint32(b[4:], id)
	for i := range b[icmpHeader:] {
		b[icmpHeader+i] = byte(i)
	}
	binary.BigEndian.PutUint16(b[2:], internetChecksum(b))
	return b
}

// answers reports whether the message settles the request: nil for the reply, an
// error for one that says that it didn't arrive.
func (m *icmp) answers(message, request []byte) (done bool, err error) {
	if len(message) < icmpHeader {
		return false, nil
	}
	switch message[0] {
	case m.reply:
		if !bytes.Equal(message[4:8], request[4:8]) {
			return false, nil
		}
		if !bytes.Equal(message[icmpHeader:], request[icmpHeader:]) {
			return true, errors.New("reply differs from the request")
		}
		return true, nil
	case m.refused, m.tooBig[0]:
		return m.quotes(message[icmpHeader:], request), m.refusal(message)
	}
	return false, nil
}

func (m *icmp) refusal(message []byte) error {
	if [2]byte(message) == m.tooBig {
		return unix.EMSGSIZE
	}
	return fmt.Errorf("%w (code %d)", ErrUnreachable, message[1])
}

// quotes reports whether an error's body is the begin of the request.
func (m *icmp) quotes(body, request []byte) bool {
	if len(body) == 0 {
		return false
	}
	header := m.ipHeader
	if body[0]>>4 == 4 {
		header = int(body[0]&0xf) * 4
	}
	return len(body) >= header+icmpHeader &&
		body[header] == m.request && bytes.Equal(body[header+4:header+8], request[4:8])
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

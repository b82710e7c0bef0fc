package scenario

import (
	"context"
	"encoding/binary"
	"errors"
	"net/netip"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// interval is between two pings: what carries them has time to fall asleep.
	interval = time.Millisecond
	// lost is after which a ping counts as lost; a lost one isn't in the result.
	lost = time.Second

	echoRequest = 8 // RFC 792
	echoReply   = 0
	echoSize    = 64
)

// echoer pings one address from the namespace and OS thread it was made on. Its
// receiving call blocks in the kernel: the runtime's poller would add its own
// delay to each round trip.
type echoer struct {
	fd  int
	to  unix.SockaddrInet4
	seq uint16
}

func newEchoer(to netip.Addr) (*echoer, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_ICMP)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	timeout := unix.NsecToTimeval(lost.Nanoseconds())
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &timeout); err != nil {
		return nil, errors.Join(os.NewSyscallError("setsockopt", err), unix.Close(fd))
	}
	return &echoer{fd: fd, to: unix.SockaddrInet4{Addr: to.As4()}}, nil
}

// Close closes the socket.
func (e *echoer) Close() error { return unix.Close(e.fd) }

// run pings for a time and returns the round trips that succeeded.
func (e *echoer) run(ctx context.Context, d time.Duration) ([]time.Duration, error) {
	rtts := make([]time.Duration, 0, d/interval+1)
	for end := time.Now().Add(d); time.Now().Before(end); time.Sleep(interval) {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		rtt, err := e.ping()
		switch {
		case errors.Is(err, unix.EAGAIN):
		case err != nil:
			return nil, err
		default:
			rtts = append(rtts, rtt)
		}
	}
	return rtts, nil
}

// ping returns EAGAIN if there was no answer in time.
func (e *echoer) ping() (time.Duration, error) {
	e.seq++
	request := e.request()
	start := time.Now()
	if err := unix.Sendto(e.fd, request, 0, &e.to); err != nil {
		return 0, os.NewSyscallError("sendto", err)
	}
	var buf [512]byte
	for {
		n, _, err := unix.Recvfrom(e.fd, buf[:], 0)
		rtt := time.Since(start)
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return 0, os.NewSyscallError("recvfrom", err)
		case e.answers(buf[:n]):
			return rtt, nil
		}
		if rtt > lost {
			return 0, unix.EAGAIN
		}
	}
}

func (e *echoer) request() []byte {
	b := make([]byte, echoSize)
	b[0] = echoRequest
	binary.BigEndian.PutUint16(b[4:], uint16(e.fd))
	binary.BigEndian.PutUint16(b[6:], e.seq)
	var sum uint32
	for i := 0; i < len(b); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	binary.BigEndian.PutUint16(b[2:], ^uint16(sum))
	return b
}

// answers reports whether an IPv4 packet is the reply to the last request.
func (e *echoer) answers(packet []byte) bool {
	if len(packet) == 0 {
		return false
	}
	header := int(packet[0]&0xf) * 4
	if len(packet) < header+8 {
		return false
	}
	m := packet[header:]
	return m[0] == echoReply && binary.BigEndian.Uint16(m[4:]) == uint16(e.fd) && binary.BigEndian.Uint16(m[6:]) == e.seq
}

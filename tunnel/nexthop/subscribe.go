package nexthop

import (
	"errors"
	"fmt"
	"syscall"

	"golang.org/x/sys/unix"
)

const (
	// eventBuffer is asked of the kernel for each subscription, in bytes: some
	// thousand events that come while we are busy.
	eventBuffer = 4 << 20
	// messageBuffer holds the longest report; the kernel's are below 32 KiB.
	messageBuffer = 64 << 10
	// drainLimit bounds the reads from one socket before the others' turn.
	drainLimit = 256
)

// subscription is a socket that the kernel sends its events to. One goroutine
// uses it.
type subscription struct {
	fd  int
	buf []byte
}

// subscribe opens a socket in the calling thread's network namespace. Groups
// above 32, which would take a socket option each, aren't needed.
func subscribe(buffer int, groups ...uint) (*subscription, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("open netlink socket: %w", err)
	}
	if unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, buffer) != nil {
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, buffer)
	}
	address := &unix.SockaddrNetlink{Family: unix.AF_NETLINK}
	for _, g := range groups {
		address.Groups |= 1 << (g - 1)
	}
	if err := unix.Bind(fd, address); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("subscribe to the kernel's events: %w", err)
	}
	return &subscription{fd: fd, buf: make([]byte, messageBuffer)}, nil
}

func (s *subscription) close() error { return unix.Close(s.fd) }

// drain hands over what has come, message by message; handle keeps none. It is
// lost when the kernel had more than the socket holds, or said what can't be
// read: then everything must be asked for anew.
func (s *subscription) drain(handle func(syscall.NetlinkMessage) error) (lost bool, err error) {
	for range drainLimit {
		n, from, err := unix.Recvfrom(s.fd, s.buf, unix.MSG_TRUNC)
		switch {
		case errors.Is(err, unix.EAGAIN):
			return lost, nil
		case errors.Is(err, unix.EINTR):
			continue
		case errors.Is(err, unix.ENOBUFS):
			lost = true
			continue
		case err != nil:
			return lost, fmt.Errorf("receive the kernel's events: %w", err)
		case n > len(s.buf):
			lost = true
			continue
		}
		if sender, ok := from.(*unix.SockaddrNetlink); !ok || sender.Pid != 0 {
			continue // only the kernel's word counts
		}
		lost = !handleAll(s.buf[:n], handle) || lost
	}
	return lost, nil
}

func handleAll(b []byte, handle func(syscall.NetlinkMessage) error) (ok bool) {
	messages, err := syscall.ParseNetlinkMessage(b)
	ok = err == nil
	for _, m := range messages {
		ok = handle(m) == nil && ok
	}
	return ok
}

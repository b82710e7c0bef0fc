package handover

import (
	"fmt"
	"io"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// link is a socket between the main process and the standby. There are two
// messages, of a byte each: "ready" one way and "go" the other. The byte of "ready"
// says what the standby's program takes over. If the main
// process ends its side, that is the order to stop. If the standby ends its
// side, it has stopped. Whoever dies says the same.
type link struct {
	fd   int // the file's, whose Fd method would make it blocking
	file *os.File
}

// newLink returns one end, and the other as a mere descriptor.
func newLink() (*link, int, error) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, -1, os.NewSyscallError("socketpair", err)
	}
	l, err := openLink(pair[0])
	if err != nil {
		unix.Close(pair[0])
		unix.Close(pair[1])
		return nil, -1, err
	}
	return l, pair[1], nil
}

// openLink makes a link of an inherited descriptor.
func openLink(fd int) (*link, error) {
	unix.CloseOnExec(fd)
	if err := unix.SetNonblock(fd, true); err != nil {
		return nil, fmt.Errorf("open link %d: %w", fd, err)
	}
	return &link{fd: fd, file: os.NewFile(uintptr(fd), "link")}, nil
}

// What a program takes over, in the byte of "ready". Others take over all that a
// standby needs and nothing else.
const (
	takesTunnel   byte = 1
	takesFastPath byte = 2 // and the tunnel
)

func (l *link) send(message byte) error {
	_, err := l.file.Write([]byte{message})
	return err
}

// await waits for a message and returns it. io.EOF means that the other side has ended, and
// os.ErrDeadlineExceeded that the limit has passed. A limit of 0 is none.
func (l *link) await(limit time.Duration) (byte, error) {
	var until time.Time
	if limit > 0 {
		until = time.Now().Add(limit)
	}
	if err := l.file.SetReadDeadline(until); err != nil {
		return 0, err
	}
	var message [1]byte
	_, err := io.ReadFull(l.file, message[:])
	return message[0], err
}

// interrupt ends an await.
func (l *link) interrupt() { _ = l.file.SetReadDeadline(time.Unix(1, 0)) }

// end says that no message will follow.
func (l *link) end() error { return os.NewSyscallError("shutdown", unix.Shutdown(l.fd, unix.SHUT_WR)) }

// closed tells whether the other side is closed, and hasn't only said its last
// message.
func (l *link) closed() bool {
	fds := []unix.PollFd{{Fd: int32(l.fd)}}
	_, err := unix.Poll(fds, 0)
	return err == nil && fds[0].Revents&unix.POLLHUP != 0
}

func (l *link) close() error { return l.file.Close() }

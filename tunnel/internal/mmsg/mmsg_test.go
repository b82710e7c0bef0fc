package mmsg

import (
	"errors"
	"net"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// A call doesn't block although the socket would: a thread in it would hold up
// the garbage collector.
func TestNeverBlocks(t *testing.T) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if err := unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		t.Fatal(err)
	}
	result := make(chan error, 1)
	go func() {
		_, err := Do(unix.SYS_RECVMMSG, fd, make([]Header, 1))
		result <- err
	}()
	select {
	case err := <-result:
		if !errors.Is(err, unix.EAGAIN) {
			t.Errorf("the error is %v", err)
		}
	case <-time.After(10 * time.Second):
		release(t, fd)
		t.Errorf("the call blocks, then: %v", <-result)
	}
}

// release sends a datagram to a socket.
func release(t *testing.T, fd int) {
	name, err := unix.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	conn, err := net.DialUDP("udp4", nil, &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1), Port: name.(*unix.SockaddrInet4).Port})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := conn.Write([]byte{1}); err != nil {
		t.Fatal(err)
	}
}

func TestSend(t *testing.T) {
	conn, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if err := unix.Connect(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}, Port: conn.LocalAddr().(*net.UDPAddr).Port}); err != nil {
		t.Fatal(err)
	}
	if n, errno := Send(fd, make([]Header, 3)); n != 3 || errno != 0 {
		t.Errorf("%d sent, %v", n, errno)
	}
	if n, errno := Send(-1, make([]Header, 3)); n != 0 || errno != unix.EBADF {
		t.Errorf("%d sent by no socket, %v", n, errno)
	}
}

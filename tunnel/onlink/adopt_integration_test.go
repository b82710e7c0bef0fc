package onlink

import (
	"errors"
	"testing"

	"golang.org/x/sys/unix"

	"uvxlan/tunnel/internal/descriptor"
	"uvxlan/tunnel/internal/testhost"
)

// A packet socket that is given twice would be closed twice, the second time
// perhaps another's.
func TestIntegrationOpenRefusesASocketTwice(t *testing.T) {
	fd := testhost.Inside(testhost.New(t), openSocket)
	defer unix.Close(fd)
	p, err := Open(Config{Mode: Socket, Sockets: []int{fd, fd}})
	if !errors.Is(err, descriptor.ErrUnfit) {
		t.Errorf("adopted: %v, %v", p, err)
	}
	if !testhost.IsOpen(fd) {
		t.Error("the socket is closed after the refusal")
	}
}

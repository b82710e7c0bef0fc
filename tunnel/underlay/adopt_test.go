package underlay

import (
	"errors"
	"net"
	"testing"

	"uvxlan/tunnel/internal/testhost"

	"golang.org/x/sys/unix"
)

// What doesn't fit is refused in words, and stays its owner's.
func TestAdoptRefusesSockets(t *testing.T) {
	port := testhost.FreePort(t)
	alone := testhost.OpenUDP(t, "127.0.0.4", port, false)
	shared := []int{testhost.OpenUDP(t, "127.0.0.5", port, true), testhost.OpenUDP(t, "127.0.0.5", port, true)}
	other, sender := testhost.OpenUDP(t, "127.0.0.6", port, true), testhost.OpenUDP(t, "127.0.0.5", 0, false)
	unbound, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM, 0)
	testhost.Must(t, err)
	t.Cleanup(func() { unix.Close(unbound) })
	tcp, err := net.Listen("tcp4", "127.0.0.1:0")
	testhost.Must(t, err)
	t.Cleanup(func() { tcp.Close() })
	file, err := tcp.(*net.TCPListener).File()
	testhost.Must(t, err)
	t.Cleanup(func() { file.Close() })
	stream := int(file.Fd())
	for name, sockets := range map[string][]Sockets{
		"none":                     {},
		"TCP":                      udp([]int{stream}),
		"unbound":                  udp([]int{unbound}),
		"another address":          udp([]int{shared[0], other}),
		"without SO_REUSEPORT":     udp([]int{alone, alone}),
		"pools missing":            udp(shared, []int{sender}),
		"an empty pool":            udp(shared, []int{sender}, []int{}),
		"ports differ":             udp(shared, []int{sender}, []int{testhost.OpenUDP(t, "127.0.0.5", 0, false)}),
		"no one address":           udp([]int{testhost.OpenUDP(t, "0.0.0.0", port, true)}),
		"the same twice":           udp([]int{shared[0], shared[0]}),
		"families' ports differ":   {{Receive: []int{alone}}, {Receive: []int{testhost.OpenUDP(t, "::1", testhost.FreePort(t), false)}}},
		"one family twice":         {{Receive: []int{alone}}, {Receive: []int{other}}},
		"a descriptor that is not": udp([]int{1 << 20}),
	} {
		u, err := Adopt(sockets, 0)
		if u != nil || !errors.Is(err, ErrUnfit) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, fd := range []int{alone, shared[0], shared[1], other, sender, unbound, stream} {
		if !testhost.IsOpen(fd) {
			t.Errorf("descriptor %d was closed", fd)
		}
	}
}

func udp(receive []int, send ...[]int) []Sockets {
	return []Sockets{{Receive: receive, Send: send}}
}

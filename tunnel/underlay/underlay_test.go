package underlay

import (
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"

	"uvxlan/tunnel/internal/family"
	"uvxlan/tunnel/internal/testhost"
)

// A flow keeps its outer source port whichever worker sends it: the workers'
// pools have the same ports, in the same order, and each port once.
func TestWorkersShareSourcePorts(t *testing.T) {
	const workers, ports = 3, 5
	u, err := Listen(Config{
		Address: netip.MustParseAddr("127.0.0.1"), Port: testhost.FreePort(t), Workers: workers, SourcePorts: ports,
	})
	if err != nil {
		t.Fatal(err)
	}
	defer u.Close()
	seen := map[int]bool{}
	for i := range ports {
		first := localPort(t, u.sockets[family.IPv4].tx[0][i])
		if seen[first] {
			t.Errorf("port %d is in the pool twice", first)
		}
		seen[first] = true
		for w := range workers {
			if port := localPort(t, u.sockets[family.IPv4].tx[w][i]); port != first {
				t.Errorf("worker %d sends from port %d, worker 0 from %d", w, port, first)
			}
		}
	}
}

func localPort(t *testing.T, fd int) int {
	t.Helper()
	name, err := unix.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	return name.(*unix.SockaddrInet4).Port
}

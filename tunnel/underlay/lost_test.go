package underlay

import (
	"net"
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"

	"uvxlan/tunnel/internal/testhost"
)

// What a socket had no room for before it was adopted was somebody else's loss.
func TestLostCountsFromOpen(t *testing.T) {
	port := testhost.FreePort(t)
	fd := testhost.OpenUDP(t, "127.0.0.8", port, false)
	testhost.Must(t, unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, 4096))
	out, err := net.Dial("udp4", netip.AddrPortFrom(netip.MustParseAddr("127.0.0.8"), port).String())
	testhost.Must(t, err)
	defer out.Close()
	flood := func() {
		for range 100 {
			before, _ := meminfo(fd)
			_, err := out.Write(make([]byte, 1000))
			testhost.Must(t, err)
			testhost.Await(t, "the datagram, or its loss", func() bool {
				now, ok := meminfo(fd)
				return !ok || now != before
			})
		}
	}
	flood()
	u, err := Adopt(udp([]int{fd}), 0)
	testhost.Must(t, err)
	defer u.Close()
	c, err := u.Open(0, false)
	testhost.Must(t, err)
	defer c.Close()
	if n := c.Lost(); n != 0 {
		t.Errorf("%d datagrams are lost before any came", n)
	}
	flood()
	if n := c.Lost(); n != 100 {
		t.Errorf("%d datagrams of 100 are lost at a full socket", n)
	}
	if n := c.Lost(); n != 100 {
		t.Errorf("asked again, %d datagrams are lost", n)
	}
}

// The kernel's numbers have 32 bits.
func TestLostCountsOnWhenTheKernelWraps(t *testing.T) {
	fd := testhost.OpenUDP(t, "127.0.0.8", testhost.FreePort(t), false)
	l := lost{last: []uint32{1<<32 - 5}, total: 7} // the kernel is at 0 now
	if n := l.count([]int{fd}); n != 12 {
		t.Errorf("after 7 and 5 more there are %d", n)
	}
}

package device_test

import (
	"bytes"
	"errors"
	"net"
	"net/netip"
	"os"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"uvxlan/encap"
	"uvxlan/tunnel/device"
	"uvxlan/tunnel/internal/testhost"
	"uvxlan/tunnel/netnstest"
	"uvxlan/tunnel/offload"
)

// A file that takes no flag is read without, from then on.
func TestReadWithoutFlag(t *testing.T) {
	const name = "/proc/self/status" // has no FMODE_NOWAIT
	whole, err := os.ReadFile(name)
	testhost.Must(t, err)
	f, err := os.Open(name)
	testhost.Must(t, err)
	defer f.Close()
	buf := make([]byte, 5)
	n, without, err := device.ReadFile(int(f.Fd()), buf)
	if err != nil || !bytes.Equal(buf[:n], whole[5:10]) || !without {
		t.Errorf("read %q, %v; without the flag: %t", buf[:n], err, without)
	}
}

// A call that must not block doesn't, whatever the open file description says, and
// the kernel takes the flag with TUN.
func TestIntegrationQueueNeverBlocks(t *testing.T) {
	netnstest.Enter(t)
	d, err := device.Open("flag0", device.Config{Offloads: offload.All})
	testhost.Must(t, err)
	defer d.Close()
	q := d.Queues()[0]
	shared, err := unix.Dup(q.FD())
	testhost.Must(t, err)
	defer unix.Close(shared)
	blocks := func(blocking bool) {
		if err := unix.SetNonblock(shared, !blocking); err != nil {
			t.Fatal(err)
		}
	}
	blocks(false)
	if _, _, err := q.Read(make([]byte, device.MaxPacket)); !errors.Is(err, unix.EAGAIN) {
		t.Fatalf("an empty queue: %v", err)
	}
	if *device.DescriptionOnly(q) {
		t.Skip("the kernel's TUN takes no RWF_NOWAIT (Linux 5.11)") // a read would block for ever
	}
	blocks(true)
	if _, _, err := q.Read(make([]byte, device.MaxPacket)); !errors.Is(err, unix.EAGAIN) {
		t.Errorf("an empty queue: %v", err)
	}
	if err := q.Write(encap.Offload{}, [][]byte{testhost.UDPPacket("10.0.1.9", "10.0.2.9", 10)}); !errors.Is(err, unix.EIO) {
		t.Errorf("an interface that is down: %v", err)
	}
}

// BenchmarkIntegrationQueue is the calls of a queue, with the flag and without.
func BenchmarkIntegrationQueue(b *testing.B) {
	n := netnstest.Enter(b)
	d, err := device.Open("bench0", device.Config{Offloads: offload.All})
	testhost.Must(b, err)
	defer d.Close()
	link, err := n.LinkByName("bench0")
	testhost.Must(b, err)
	address := netip.MustParsePrefix("10.0.1.1/24")
	testhost.Must(b, n.AddrAdd(link, &netlink.Addr{IPNet: testhost.IPNet(address)}))
	testhost.Must(b, n.LinkSetUp(link))
	q := d.Queues()[0]
	conn, err := net.Dial("udp4", "10.0.1.9:9")
	testhost.Must(b, err)
	defer conn.Close()
	buf, payload := make([]byte, device.MaxPacket), make([]byte, 1000)
	for { // what the interface sends by itself
		if _, _, err := q.Read(buf); err != nil {
			break
		}
	}
	// Nobody listens there: it is taken and dropped.
	packet := [][]byte{testhost.UDPPacket("10.0.1.9", "10.0.1.77", 1000)}
	for _, c := range []struct {
		name string
		call func() error
	}{
		{"empty", func() error {
			if _, _, err := q.Read(buf); !errors.Is(err, unix.EAGAIN) {
				return err
			}
			return nil
		}},
		{"write", func() error { return q.Write(encap.Offload{}, packet) }},
		{"send and read", func() error {
			if _, err := conn.Write(payload); err != nil {
				return err
			}
			for { // the interface also sends by itself
				n, _, err := q.Read(buf)
				if err != nil || bytes.HasSuffix(buf[:n], payload) {
					return err
				}
			}
		}},
	} {
		for _, without := range []bool{false, true} {
			name := map[bool]string{false: "flag", true: "plain"}[without]
			b.Run(c.name+"/"+name, func(b *testing.B) {
				*device.DescriptionOnly(q) = without
				for b.Loop() {
					if err := c.call(); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
}
